//! Instructions of classic BPF (Linux `networking/filter.rst`).

/// An instruction: `struct sock_filter` of `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many to skip when a comparison holds.
    pub yes: u8,
    /// How many when it does not.
    pub no: u8,
    /// Operand.
    pub k: u32,
}
