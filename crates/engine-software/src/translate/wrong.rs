//! Errors that a test plants into translated code to prove that it would
//! notice them. They leave code isolated; [`super::planted`] has those that
//! do not.
//!
//! Code translated while an error is planted has it. Without the `planted`
//! feature nothing can be planted and the query is a constant.

/// Where the error sits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum PlantedInCode {
    /// Nowhere.
    #[default]
    None,
    /// The overflow flag is not put away.
    WrongFlag,
    /// Guest registers that live in memory are not stored.
    WriteBack,
    /// What is forgotten of a page stays in the tables.
    StaleTranslation,
    /// Jumps back do not look for events.
    MissedInterrupt,
    /// Pages whose code was translated may still be stored to unseen.
    MissedInvalidation,
}

#[cfg(feature = "planted")]
mod switch {
    use std::cell::Cell;

    use super::PlantedInCode;

    thread_local! {
        static NOW: Cell<PlantedInCode> = const { Cell::new(PlantedInCode::None) };
    }

    /// Plants an error into what this thread's vCPUs do from now on.
    pub fn plant_in_code(error: PlantedInCode) {
        NOW.set(error);
    }

    pub(crate) fn is_planted(error: PlantedInCode) -> bool {
        NOW.get() == error
    }
}

#[cfg(not(feature = "planted"))]
mod switch {
    pub(crate) const fn is_planted(_: super::PlantedInCode) -> bool {
        false
    }
}

pub(crate) use switch::is_planted;
#[cfg(feature = "planted")]
pub use switch::plant_in_code;
