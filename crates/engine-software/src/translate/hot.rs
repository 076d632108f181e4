//! What translated code and its routines keep in the vCPU.

use std::mem::offset_of;

use crate::cpu::{Cpu, Segment};

/// The fields; see the constants for their offsets from the vCPU.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Hot {
    /// Linear address of the page that runs.
    pub page: u64,
    /// The guest's arithmetic flags: AH as LAHF, AL as SETO leaves it.
    pub flags: u64,
    /// Rust's stack pointer, which has the vCPU's address on top.
    pub host_stack: u64,
    /// Where translated code goes on after the interpreter's help.
    pub resume: u64,
    /// Values that have no register for a moment.
    pub temp: [u64; 4],
    /// What the [`super::thunks::Reason`] is about.
    pub exit: u64,
    /// Where a jump led that could not be followed.
    pub target: u64,
    /// Instructions retired by translated code, when they are counted.
    pub retired: u64,
    /// Checks of accesses, when they are counted.
    pub checks: u64,
    /// Checks that a refill made succeed, when they are counted.
    pub refilled: u64,
    /// Refills that found nothing, when they are counted.
    pub missed: u64,
    /// CS and SS after SYSCALL and after SYSRET.
    pub system_segments: [Segment; 2],
    #[allow(missing_docs)]
    pub user_segments: [Segment; 2],
    /// IA32_STAR from which they were made.
    pub star: u64,
    /// What translated code may do itself: bit 0 SYSCALL, bit 1 SYSRET.
    pub fast: u8,
    /// Vector registers that are loaded: 0 none, 1 XMM0–15, 2 YMM0–15.
    pub vector: u8,
    /// What may be loaded: bit 0 XMM registers, bit 1 YMM registers.
    pub vector_ok: u8,
}

const HOT: usize = offset_of!(Cpu, hot);

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident = $field:ident;)*) => {
        $($(#[$doc])* #[allow(missing_docs)]
        pub const $name: i32 = (HOT + offset_of!(Hot, $field)) as i32;)*
    };
}

offsets! {
    PAGE = page;
    FLAGS = flags;
    HOST_STACK = host_stack;
    RESUME = resume;
    TEMP = temp;
    EXIT = exit;
    TARGET = target;
    RETIRED = retired;
    CHECKS = checks;
    REFILLED = refilled;
    MISSED = missed;
    SYSTEM_SEGMENTS = system_segments;
    USER_SEGMENTS = user_segments;
    FAST = fast;
    VECTOR = vector;
    VECTOR_OK = vector_ok;
}

/// Offset of `Cpu::tlb_key`.
pub const fn tlb_key() -> i32 {
    offset_of!(Cpu, tlb_key) as i32
}
