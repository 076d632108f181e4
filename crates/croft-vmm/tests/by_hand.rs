//! Started by hand, the program says who starts it.

use std::process::{Command, Stdio};

#[test]
fn says_who_starts_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_croft-vmm"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by croft"));
}
