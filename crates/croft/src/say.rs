//! Words for the operator, on standard error.

use std::io::{self, Write};

/// Writes a line. A standard error that takes none (a terminal that is gone,
/// a full disk) is no reason to fail: there is nobody to tell.
pub fn line(text: &str) {
    ended(text, "\n");
}

/// Writes a line with an end of its own.
pub fn ended(text: &str, end: &str) {
    let _ = io::stderr().write_all(format!("{text}{end}").as_bytes());
}
