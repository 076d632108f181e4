//! Started by hand, the program says who starts it.

use std::process::{Command, Stdio};

#[test]
fn says_who_starts_it() {
    // scripts/build-static puts it beside the directory of the tests.
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(|deps| deps.parent()).unwrap();
    let monitor = built.join("croft-monitor");
    assert!(
        monitor.is_file(),
        "{} is missing: run scripts/build-static first",
        monitor.display()
    );
    let output = Command::new(monitor).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by croft"));
}
