//! Errors that a test plants into translated code to prove that the proof of
//! its isolation ([`super::verify`]) would notice them.
//!
//! Without the `planted` feature nothing can be planted.

/// Where the error sits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, reason = "nothing is planted then")
)]
pub enum PlantedCode {
    /// Nowhere.
    #[default]
    None,
    /// Whether a check succeeds does not matter.
    NoJump,
    /// Stores are checked by the table for loads.
    Table,
    /// Checks are for one byte.
    Size,
    /// The pointer is changed after its check.
    Pointer,
    /// The number of the table's entry is not masked.
    Mask,
    /// The entry of a jump is taken without a look at its tag.
    Tag,
}

#[cfg(feature = "planted")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::PlantedCode;

    const ALL: [PlantedCode; 7] = [
        PlantedCode::None,
        PlantedCode::NoJump,
        PlantedCode::Table,
        PlantedCode::Size,
        PlantedCode::Pointer,
        PlantedCode::Mask,
        PlantedCode::Tag,
    ];

    static NOW: AtomicU8 = AtomicU8::new(0);

    /// Plants an error into all code translated from now on.
    pub fn plant_code(error: PlantedCode) {
        NOW.store(error as u8, Ordering::SeqCst);
    }

    pub(in crate::translate) fn planted_code() -> PlantedCode {
        let now = usize::from(NOW.load(Ordering::Relaxed));
        ALL.get(now).copied().unwrap_or_default()
    }
}

#[cfg(not(feature = "planted"))]
mod switch {
    pub(in crate::translate) const fn planted_code() -> super::PlantedCode {
        super::PlantedCode::None
    }
}

#[cfg(feature = "planted")]
pub use switch::plant_code;
pub(in crate::translate) use switch::planted_code;
