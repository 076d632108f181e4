//! The runtime itself as the way out.

use std::fs;
use std::os::fd::AsRawFd;

use crate::bundle::{Bundle, outcomes, possible};

/// CVE-2019-5736: the container writes to the program of whoever brings
/// another program in, through `/proc/PID/exe`.
#[test]
fn the_runtimes_program_is_not_written() {
    if !possible() {
        return;
    }
    for make in [Bundle::new, Bundle::mapped] {
        let mut bundle = make(&["overwrite=2"]);
        for _ in 0..10 {
            // Its own program again, in there, and one that is slow to find.
            bundle.exec(&["/proc/self/exe", "inside", "sleep=0.05"]);
            bundle.exec(&["sleep", "0.02"]);
        }
        let before = bundle.command();
        let program = before.get_program().to_owned();
        let before = fs::read(&program).unwrap();
        let output = bundle.run();
        let found = outcomes(&output);
        let found = found.iter().find(|(attempt, _)| attempt == "overwrite=2");
        let (_, outcome) = found.unwrap_or_else(|| panic!("{output:?}"));
        assert_ne!(outcome, "done");
        assert!(
            fs::read(&program).unwrap() == before,
            "the program has changed"
        );
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
        let bundle = make(&["descriptors"]);
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
        let words: Vec<&str> = found[0].1.split(' ').collect();
        assert_eq!(words.len(), 3, "{found:?}");
        assert!(
            ["0=", "1=", "2="]
                .iter()
                .zip(&words)
                .all(|(number, word)| word.starts_with(number))
        );
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
        let mut bundle = Bundle::new(&["cwd", "read=../../../etc/shadow"]);
        bundle.spec["process"]["cwd"] = directory.clone().into();
        let output = bundle.run();
        // It is refused, or it is a directory of the container.
        if output.status.success() {
            let found = outcomes(&output);
            assert!(
                !found[0].1.contains("unreachable"),
                "{directory}: {found:?}"
            );
            assert!(
                found[1].1.contains("No such file"),
                "{directory}: {found:?}"
            );
        }
        // The same by a link of the image.
        let mut bundle = Bundle::new(&["cwd", "read=../../../etc/shadow"]);
        std::os::unix::fs::symlink(&directory, bundle.root().join("work")).unwrap();
        bundle.spec["process"]["cwd"] = "/work".into();
        let output = bundle.run();
        if output.status.success() {
            let found = outcomes(&output);
            assert!(
                found[1].1.contains("No such file"),
                "{directory}: {found:?}"
            );
        }
    }
}
