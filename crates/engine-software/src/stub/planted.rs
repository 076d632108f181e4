//! Errors that a test plants into stubs to prove that it would notice them.
//!
//! Stubs built while an error is planted have it; blocks decoded before keep
//! their sound stubs. Without the `planted` feature (or unit tests) nothing
//! can be planted and the queries below are constants.

/// Where the error sits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Planted {
    /// Nowhere.
    #[default]
    None,
    /// Registers are loaded from their neighbours, and memory operands from
    /// a zeroed buffer.
    OperandFetch,
    /// Written registers are not stored.
    WriteBack,
    /// The carry and zero flags are not merged.
    FlagsMerge,
    /// A trap inside a stub is delivered as #UD, without the MXCSR flags.
    FaultPath,
}

#[cfg(any(test, feature = "planted"))]
mod switch {
    use std::cell::Cell;

    use super::Planted;

    thread_local! {
        static NOW: Cell<Planted> = const { Cell::new(Planted::None) };
    }

    /// Plants an error into the stubs this thread builds from now on.
    pub fn plant(error: Planted) {
        NOW.set(error);
    }

    pub(in crate::stub) fn planted() -> Planted {
        NOW.get()
    }
}

#[cfg(not(any(test, feature = "planted")))]
mod switch {
    pub(in crate::stub) const fn planted() -> super::Planted {
        super::Planted::None
    }
}

#[cfg(any(test, feature = "planted"))]
pub use switch::plant;
pub(in crate::stub) use switch::planted;
