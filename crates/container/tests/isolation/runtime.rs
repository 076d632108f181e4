//! The runtime itself as the way out.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::bundle::{Bundle, outcomes, possible};

/// CVE-2019-5736: the container writes to the program of whoever brings
/// another program in, through `/proc/PID/exe`, once nobody runs it and it is
/// busy no more.
#[test]
fn the_runtimes_program_is_not_written() {
    if !possible() {
        return;
    }
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("croft-oci");
    if !program.exists() {
        eprintln!("skipped: no croft-oci beside the tests (scripts/build-static)");
        return;
    }
    for make in [Bundle::new, Bundle::mapped] {
        let mut bundle = make(&["overwrite=/tmp/enough"]);
        let state = tempfile::tempdir().unwrap();
        // What is attacked is a copy, made by a process of its own: one that
        // this process has had open for writing may be busy for a moment, by
        // what another test's thread forks.
        let copy = state.path().join("croft-oci");
        let copied = Command::new("cp").arg(&program).arg(&copy).status();
        assert!(copied.unwrap().success());
        let said = state.path().join("output");
        let output = fs::File::create(&said).unwrap();
        let runtime = |words: &[&str]| {
            let mut command = Command::new(&copy);
            command
                .arg("--root")
                .arg(state.path().join("state"))
                .args(words);
            command
        };
        bundle.spec["process"]["terminal"] = false.into();
        let path = bundle.write();
        let path = path.to_str().unwrap();
        let name = format!("intruder-{}", std::process::id());
        let status = runtime(&["run", "--detach", "--bundle", path, &name])
            .stdin(Stdio::null())
            .stdout(output)
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        for index in 0..12 {
            // Its own program again, in there, and one that is soon done.
            let words = match index % 2 {
                0 => ["exec", &name, "/proc/self/exe", "--version"],
                _ => ["exec", &name, "sleep", "0.02"],
            };
            // Where it has written to the program, that may not run.
            let _ = runtime(&words).output().unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        fs::write(bundle.root().join("tmp/enough"), "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        let text = loop {
            let text = fs::read_to_string(&said).unwrap();
            if text.ends_with('\n') || Instant::now() > deadline {
                break text;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let deleted = runtime(&["delete", "--force", &name]).output().unwrap();
        assert!(deleted.status.success(), "{deleted:?}");
        assert!(text.starts_with("overwrite=/tmp/enough: "), "{text}");
        assert!(!text.contains("done"), "{text}");
        let same = fs::read(&program).unwrap() == fs::read(&copy).unwrap();
        assert!(same, "the program has changed");
    }
}

/// Whatever its maker has open by mistake.
#[test]
fn no_descriptor_of_the_maker_is_left() {
    if !possible() {
        return;
    }
    let host = fs::File::open("/").unwrap();
    for make in [Bundle::new, Bundle::mapped] {
        let mut bundle = make(&["descriptors"]);
        // A hook that is the container's own program.
        bundle.spec["hooks"]["startContainer"] = serde_json::json!([{
            "path": "/intruder", "args": ["intruder", "descriptors"]
        }]);
        let mut command = bundle.command();
        let number = host.as_raw_fd();
        // Numbers beside those that are used, and one far away.
        let mut line = String::new();
        for to in [3, 4, 9, 63] {
            line.push_str(&format!(
                "exec {to}</proc/{}/fd/{number}; ",
                std::process::id()
            ));
        }
        let mut shell = std::process::Command::new("bash");
        shell
            .arg("-c")
            .arg(format!("{line} exec \"$@\""))
            .arg("bash");
        shell.arg(command.get_program()).args(command.get_args());
        command = shell;
        let output = command.output().unwrap();
        let found = outcomes(&output);
        assert_eq!(found.len(), 2, "{found:?}");
        for (_, one) in &found {
            let words: Vec<&str> = one.split(' ').collect();
            assert_eq!(words.len(), 3, "{found:?}");
            assert!(
                ["0=", "1=", "2="]
                    .iter()
                    .zip(&words)
                    .all(|(number, word)| word.starts_with(number))
            );
        }
    }
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime's,
/// which leads to the host.
#[test]
fn no_working_directory_is_a_descriptor() {
    if !possible() {
        return;
    }
    for directory in (3..24).map(|number| format!("/proc/self/fd/{number}")) {
        let plain = Bundle::new(&["cwd"]);
        // The same by a link of the image.
        let linked = Bundle::new(&["cwd"]);
        std::os::unix::fs::symlink(&directory, linked.root().join("work")).unwrap();
        for (mut bundle, cwd) in [(plain, directory.as_str()), (linked, "/work")] {
            bundle.spec["process"]["cwd"] = cwd.into();
            let output = bundle.run();
            // It is refused, or it is a directory of the container.
            if output.status.success() {
                let found = outcomes(&output);
                assert!(found[0].1.starts_with('/'), "{directory}: {found:?}");
            }
        }
    }
}
