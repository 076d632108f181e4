//! What can be wrong with a profile.

/// A failure. The words are those of `linux.seccomp` in the OCI runtime
/// specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An action that takes no error number has one.
    #[error("seccomp: {action} takes no errnoRet; leave it out, or use SCMP_ACT_ERRNO")]
    NoErrno {
        /// The action.
        action: String,
    },
    /// A rule for nothing.
    #[error("seccomp: a rule has no names")]
    NoNames,
    /// System calls have six arguments.
    #[error("seccomp: {call} has no argument {index}: they are counted from 0 to 5")]
    Index {
        /// The first name of the rule.
        call: String,
        /// The argument.
        index: usize,
    },
    /// The filter itself would ask.
    #[error("seccomp: SCMP_ACT_NOTIFY cannot be the default action: nobody could answer yet")]
    NotifyDefault,
    /// Who passes the listener on writes.
    #[error(
        "seccomp: SCMP_ACT_NOTIFY cannot be the action of {call}: whoever hands the listener over needs it"
    )]
    NotifyWrite {
        /// The system call.
        call: String,
    },
    /// Nobody would be asked.
    #[error("seccomp: SCMP_ACT_NOTIFY wants a listenerPath")]
    NoListener,
    /// Metadata for nobody.
    #[error("seccomp: listenerMetadata wants a listenerPath")]
    NoListenerForMetadata,
    /// More than the kernel takes.
    #[error(
        "seccomp: the filter has {0} instructions, and the kernel takes 4096: fewer conditions on arguments make it shorter"
    )]
    TooLong(usize),
}
