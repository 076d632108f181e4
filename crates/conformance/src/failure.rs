//! Why a guest failed.

use croft_engine::EngineError;
use croft_memory::MemoryError;
use iced_x86::IcedError;
use thiserror::Error;

/// What a guest returns.
pub type Outcome = Result<(), Failure>;

/// Why a guest failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The engine did something else than a processor does.
    #[error("{0}")]
    Differs(String),
    /// The engine refused something.
    #[error("the engine refused: {0}")]
    Engine(#[from] EngineError),
    /// The guest program cannot be assembled.
    #[error("cannot assemble: {0}")]
    Assemble(#[from] IcedError),
    /// The guest program does not fit its memory.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// The host refused something.
    #[error("host: {0}")]
    Host(#[from] std::io::Error),
}

/// Fails with a message unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Failure::Differs(format!($($text)+)));
        }
    };
}

/// Fails unless both values are equal.
#[macro_export]
macro_rules! check_eq {
    ($found:expr, $wanted:expr, $($text:tt)+) => {
        let (found, wanted) = (&$found, &$wanted);
        if found != wanted {
            return Err($crate::Failure::Differs(format!(
                "{}: {found:#x?} instead of {wanted:#x?}", format_args!($($text)+)
            )));
        }
    };
}
