//! What can be wrong with a profile.

/// A failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compiler is not there yet.
    #[error("filters of containers cannot be made yet")]
    Unfinished,
}
