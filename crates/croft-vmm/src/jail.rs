//! When the process gives up what it could do.
//!
//! ```text
//! main ─► enter: namespaces' rest, limits, rights  (one thread, no input yet)
//!      ─► the monitor's Start, with all descriptors
//!      ─► close: landlock, filters, the thread that makes threads
//!      ─► kernel, disks, saved machines are looked at; the guest runs
//! ```

use std::env;

use croft_isolate::landlock::{self, Share};
use croft_isolate::launch::Given;
use croft_isolate::{JailError, Part, Piece, Wants, confine, report, seal};

/// The argument that leaves the process as it is, for debugging Croft.
const OFF: &str = "--no-jail";

/// A jail that is not closed yet.
#[derive(Debug)]
pub struct Jail {
    parts: Option<Vec<Part>>,
}

impl Jail {
    /// Puts on what does not depend on the machine. Called first, while there
    /// is one thread.
    pub fn enter() -> Self {
        let on = env::args_os().all(|argument| argument != OFF);
        let given = Given::parse(env::args_os().skip(1));
        Jail {
            parts: on.then(|| confine(&given)),
        }
    }

    /// Puts on the rest. Returns what to tell the operator of missing pieces.
    pub fn close(self, wants: Wants, shares: &[Share<'_>]) -> Result<Vec<String>, JailError> {
        let Some(mut parts) = self.parts else {
            return Ok(Vec::new());
        };
        parts.push(landlock::restrict(shares));
        seal(wants)?;
        Ok(report::complaints(&parts))
    }

    /// Puts on all of it and says how that went.
    pub fn report(self) -> Vec<Part> {
        let mut parts = self.parts.unwrap_or_default();
        parts.push(landlock::restrict(&[]));
        parts.push(match seal(Wants::default()) {
            Ok(()) => Part::there(Piece::Filters, "system calls by thread"),
            Err(error) => Part::missing(Piece::Filters, error),
        });
        parts
    }
}
