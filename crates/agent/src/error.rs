//! What can go wrong between host and agent.

use std::io;

use croft_api::WireError;
use croft_api::agent::Failure;
use thiserror::Error;

/// Why a task failed.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The connection failed.
    #[error("connection to {peer}: {source}")]
    Io {
        /// Whom we talk to.
        peer: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The other end went away.
    #[error("{0} ended the connection")]
    Closed(&'static str),
    /// The other end does not keep to the protocol.
    #[error("{peer} sent {what}; install the same version of Croft on both sides")]
    Damaged {
        /// Whom we talk to.
        peer: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// It is none of ours, or too old.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other end could not do it.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: Failure,
        /// What it said, without what could upset a terminal.
        message: String,
    },
    /// A file of ours.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// What the host answered.
        source: io::Error,
    },
    /// A file that cannot be copied as it should be.
    #[error("{path}: {problem}")]
    Refused {
        /// Its path.
        path: String,
        /// Why not.
        problem: &'static str,
    },
}

impl AgentError {
    /// What the other end said, made harmless and short.
    pub(crate) fn failed(kind: Failure, message: &str) -> Self {
        const LONGEST: usize = 1000;
        let plain: String = message
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .take(LONGEST)
            .collect();
        AgentError::Failed {
            kind,
            message: plain,
        }
    }
}
