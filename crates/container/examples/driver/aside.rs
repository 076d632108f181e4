//! Work done aside, in a process with one thread.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use croft_container::aside;

/// More than a pipe holds at once.
const LENGTH: usize = 300_000;

/// An answer comes, and what is no answer is an error.
pub fn check() {
    let long = Duration::from_secs(60);
    let all = aside(long, LENGTH, || vec![7; LENGTH]).expect("an answer");
    assert_eq!(all, vec![7; LENGTH]);
    let many = aside(long, 10, || vec![7; 11]).expect_err("too many bytes");
    assert_eq!(many.kind(), ErrorKind::InvalidData);
    let never = || loop {
        thread::park();
    };
    let silent = aside(Duration::from_millis(50), 10, never).expect_err("no answer");
    assert_eq!(silent.kind(), ErrorKind::TimedOut);
    aside(long, 10, || panic!("on purpose")).expect_err("a panic");
}
