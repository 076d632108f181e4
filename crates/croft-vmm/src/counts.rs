//! The engine's counts, for people: at the end, and whenever the process gets
//! SIGUSR1.

use std::io;
use std::sync::Arc;

use croft_engine_software::Statistics;
use croft_isolate::{Role, spawn};
use nix::sys::signal::{SigSet, Signal};

use crate::report::Reporter;

/// Keeps SIGUSR1 from ending the process, in this thread and all that it
/// starts.
pub fn hold_signal() -> io::Result<()> {
    signal().thread_block().map_err(io::Error::from)
}

fn signal() -> SigSet {
    SigSet::from_iter([Signal::SIGUSR1])
}

/// Starts to report at each SIGUSR1.
pub fn report_at_signals(statistics: Arc<Statistics>, reporter: Reporter) -> io::Result<()> {
    spawn(Role::Counts, "counts", move || {
        while signal().wait().is_ok() {
            report(&statistics, &reporter);
        }
    })
    .map(drop)
}

/// Reports.
pub fn report(statistics: &Statistics, reporter: &Reporter) {
    let text = statistics.to_string();
    reporter.log(&format!(
        "the software engine's counts:\n{}",
        text.trim_end()
    ));
}
