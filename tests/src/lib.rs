//! What the end-to-end tests, and the benchmarks, are made from.
//!
//! The tests themselves are in `tests/`, a file for each subject. They start
//! the real programs on stock Debian kernels, so they want both to be there:
//! `make test` builds and fetches. Whatever a test starts is ended, by its
//! process id, when the test ends in any way, and nothing is waited for
//! longer than [`PATIENCE`].

mod cpio;
pub mod disk;
pub mod files;
pub mod guest;
mod instance;
pub mod linux;
pub mod modules;
pub mod namespace;
mod output;
pub mod ports;
pub mod processes;
pub mod pty;
pub mod sockets;
mod stage;
pub mod tiny;

use std::thread;
use std::time::{Duration, Instant};

pub use cpio::Archive;
pub use instance::{Instance, succeed};
pub use output::Output;
pub use stage::{Ended, Machine, Saved, Stage};

/// Nothing takes longer, on a slow and busy machine either. It only ends what
/// hangs: no test is about time.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The same for what no guest has to work for, such as the end of a machine
/// with all its traces.
pub const END: Duration = Duration::from_secs(120);

/// Waits for something to become true.
///
/// # Panics
/// When it does not within `patience`.
pub fn eventually(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
