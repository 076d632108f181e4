//! Work that may never end, done by a process of its own.

use std::process::Command;

use crate::stage::driver;

#[test]
fn an_answer_comes_and_silence_is_an_error() {
    let output = Command::new(driver()).arg("aside").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
