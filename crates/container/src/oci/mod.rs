//! The OCI runtime's command line.

use std::process::ExitCode;

/// What the program does.
pub fn main() -> ExitCode {
    println!("croft-oci {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}
