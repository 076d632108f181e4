//! What can go wrong with a group, and what it goes without.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Controllers;

/// A failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of a group could not be written.
    #[error("cannot write {value:?} to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of a group has text that was not understood.
    #[error("{} is not understood: {text:?}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What it has.
        text: String,
    },
    /// A group could not be made.
    #[error("cannot make the control group {}: {source}", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A group could not be removed.
    #[error("cannot remove the control group {}: {source}", path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A group that was to be made is in use.
    #[error("the control group {} has processes of something else", .0.display())]
    InUse(PathBuf),
    /// The path of a group is not one.
    #[error("{path:?} is no path of a control group: {why}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// A limit that cannot be.
    #[error("{what} cannot be {value}: {why}")]
    Value {
        /// The limit's name in the OCI runtime specification.
        what: &'static str,
        /// The value.
        value: String,
        /// Why not.
        why: String,
    },
    /// A limit below what is used already.
    #[error(
        "cannot set a memory limit of {limit} bytes: {used} are in use and could not be given back"
    )]
    BelowUse {
        /// The limit in bytes.
        limit: u64,
        /// What is used, in bytes.
        used: u64,
    },
    /// The device program of version 2.
    #[error("cannot {action} the device program of {}: {source}", path.display())]
    Devices {
        /// `load` or `attach`.
        action: &'static str,
        /// The group's directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Processes outlived every attempt to end them.
    #[error("processes of the control group {} do not end", .0.display())]
    Undead(PathBuf),
    /// Nothing could be stopped: the host has neither version 2 nor a freezer.
    #[error(
        "this host cannot freeze a control group: it has neither version 2 nor the freezer of version 1"
    )]
    NoFreezer,
}

/// What a group does without, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// What was not set.
    pub what: String,
    /// Why not.
    pub why: String,
}

impl LeftOut {
    /// Controllers that cannot be had.
    pub(super) fn controllers(controllers: Controllers, why: impl fmt::Display) -> Self {
        LeftOut {
            what: controllers.to_string(),
            why: why.to_string(),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.why)
    }
}
