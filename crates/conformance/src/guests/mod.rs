//! The guests, by subject.

/// The list of a file's guests: functions and what each needs.
macro_rules! guests {
    ($subject:literal: $($name:ident [$($need:ident),*]),+ $(,)?) => {
        /// The guests of this file.
        pub const GUESTS: &[crate::Guest] = &[$(crate::Guest {
            name: concat!($subject, "::", stringify!($name)),
            needs: &[$(crate::Need::$need),*],
            run: $name,
        }),+];
    };
}

mod accesses;
mod apic;
mod chips;
mod code;
mod debug_registers;
mod double;
mod exceptions;
mod features;
mod input_output;
mod interrupts;
mod modes;
mod paging;
mod privilege;
mod seam;
mod segments;
mod strings;
mod system_calls;
mod translations;

use crate::Guest;

/// All guests.
pub fn all() -> impl Iterator<Item = &'static Guest> {
    [
        exceptions::GUESTS,
        privilege::GUESTS,
        system_calls::GUESTS,
        debug_registers::GUESTS,
        double::GUESTS,
        paging::GUESTS,
        translations::GUESTS,
        code::GUESTS,
        interrupts::GUESTS,
        chips::GUESTS,
        input_output::GUESTS,
        seam::GUESTS,
        modes::GUESTS,
        segments::GUESTS,
        accesses::GUESTS,
        strings::GUESTS,
        features::GUESTS,
    ]
    .into_iter()
    .flatten()
}
