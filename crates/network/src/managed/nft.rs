//! `nft`, which gives the kernel its rules.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::error::NetworkError;

const PROGRAM: &str = "nft";

/// Gives the kernel `rules`: all of them or, with an error, none.
pub fn apply(rules: &str) -> Result<(), NetworkError> {
    let failed = |message: String| NetworkError::Program {
        program: PROGRAM,
        message,
    };
    let mut child = Command::new(super::program::path(PROGRAM))
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetworkError::Missing {
                program: PROGRAM,
                package: "nftables",
            },
            _ => failed(error.to_string()),
        })?;
    let written = match child.stdin.take() {
        // It reads all of it before it says anything.
        Some(mut input) => input.write_all(rules.as_bytes()),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| !line.trim().is_empty());
        return Err(failed(line.unwrap_or("failed without a word").to_owned()));
    }
    written.map_err(|error| failed(error.to_string()))
}
