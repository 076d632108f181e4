//! The program as the benchmarks run it natively.

use std::fs;
use std::process::Command;

/// The lines' names and checksums.
fn run() -> Vec<(String, String)> {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_croft-bench-guest"))
        .arg(directory.path())
        .output()
        .expect("the program");
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}{text}");
    let left = fs::read_dir(directory.path()).expect("a directory");
    assert_eq!(left.count(), 0, "files are left");

    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("bench-begin"));
    let end = lines
        .next_back()
        .and_then(|line| line.strip_prefix("bench-end "));
    let time: u64 = end.expect("an end").parse().expect("nanoseconds");
    assert!(time > 0);
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let ["bench", name, value, _, checksum] = words[..] else {
                panic!("{line}");
            };
            let value: f64 = value.parse().expect(line);
            assert!(value > 0.0, "{line}");
            (name.to_owned(), checksum.to_owned())
        })
        .collect()
}

#[test]
fn every_line_runs_and_repeats_itself() {
    let first = run();
    assert!(first.len() > 20, "{first:?}");
    assert_eq!(first, run());
}

#[test]
fn without_a_directory_it_says_what_it_wants() {
    let output = Command::new(env!("CARGO_BIN_EXE_croft-bench-guest"))
        .output()
        .expect("the program");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("usage: croft-bench-guest DIRECTORY"),
        "{errors}"
    );
}
