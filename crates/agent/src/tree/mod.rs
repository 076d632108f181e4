//! Files and trees on their way from one machine to another.
//!
//! A tree is a sequence of entries, depth first, each with a name of a single
//! component; where it goes is decided by the receiver alone. Both ends walk
//! directories by descriptors and follow no link within the tree, so that
//! neither a tree that changes meanwhile nor a hostile sender leads out of it.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use receive::{Arrival, Policy, Target, receive, receive_into};
pub use send::{send, send_open};

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::AgentError;

/// A path for messages: what could upset a terminal is escaped.
pub(crate) fn quoted(path: impl AsRef<Path>) -> String {
    format!("'{}'", path.as_ref().to_string_lossy().escape_debug())
}

fn at(path: &Path) -> impl FnOnce(Errno) -> AgentError + '_ {
    move |error| AgentError::File {
        path: quoted(path),
        source: io::Error::from(error),
    }
}

/// Whether a name is one component of a path.
fn is_component(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    !matches!(bytes, b"" | b"." | b"..")
        && bytes.len() <= 255
        && !bytes.contains(&b'/')
        && !bytes.contains(&0)
}
