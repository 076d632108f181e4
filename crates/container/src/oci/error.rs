//! What a command can end with.

use std::io;
use std::path::PathBuf;

use crate::Step;

/// A failure, as it is logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// A caller wants systemd to make control groups.
    #[error(
        "control groups are made directly, not by systemd; leave out --systemd-cgroup (podman: --cgroup-manager cgroupfs)"
    )]
    SystemdCgroup,
    /// A name that is none.
    #[error(
        "'{0}' cannot name a container; use letters, digits, '_', '+', '-' and '.', at most 255"
    )]
    Name(String),
    /// There is no container of the name.
    #[error("container {0} does not exist")]
    Missing(String),
    /// There is one already.
    #[error("container {0} exists already; delete it or choose another name")]
    Exists(String),
    /// A command does not fit the state.
    #[error("container {id} is {status}: {why}")]
    Status {
        /// The container.
        id: String,
        /// What it is.
        status: &'static str,
        /// What it must be, or what to do.
        why: &'static str,
    },
    /// A file of a bundle or of the caller is wrong.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A system call on a file.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another system call.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The engine's.
    #[error(transparent)]
    Engine(#[from] crate::Error),
    /// Control groups'.
    #[error(transparent)]
    Groups(#[from] croft_isolate::cgroups::Error),
    /// Limits that were asked for.
    #[error("limits cannot be set: {0}; leave them out of linux.resources")]
    Limits(String),
    /// CRIU's.
    #[error("{0}")]
    Criu(String),
}

impl Error {
    /// A system call on a file.
    pub fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Error::File {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Another system call.
    pub fn system(action: &'static str, source: impl Into<io::Error>) -> Self {
        Error::System {
            action,
            source: source.into(),
        }
    }

    /// The process's exit code: 127 and 126 as shells have them, for a program
    /// that is missing or cannot be run, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Engine(error) if matches!(error.step, Step::Missing | Step::Exec) => {
                error.exit_code()
            }
            _ => 1,
        }
    }
}
