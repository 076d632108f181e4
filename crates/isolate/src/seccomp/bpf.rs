//! Instructions of classic BPF as filters of system calls have them (Linux
//! `networking/filter.rst`, `userspace-api/seccomp_filter.rst`).

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

/// The most that a filter may have (`BPF_MAXINSNS`).
pub const MOST: usize = 4096;

/// `LD | W | ABS`: a word of `struct seccomp_data`.
pub const LOAD: u16 = 0x20;
/// `ALU | AND | K`.
pub const AND: u16 = 0x54;
/// `JMP | JA`.
pub const JUMP: u16 = 0x05;
/// `JMP | JEQ | K`.
pub const EQUAL: u16 = 0x15;
/// `JMP | JGT | K`.
pub const ABOVE: u16 = 0x25;
/// `JMP | JGE | K`.
pub const AT_LEAST: u16 = 0x35;
/// `RET | K`.
pub const RETURN: u16 = 0x06;

/// Where the number of the call is in `struct seccomp_data`.
pub const NUMBER: u32 = 0;
/// Where the architecture is.
pub const ARCH: u32 = 4;

/// Where the lower half of an argument is; the upper one is next to it.
pub const fn argument(index: u8) -> u32 {
    16 + 8 * index as u32
}

/// One that does not jump.
pub const fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        yes: 0,
        no: 0,
        k,
    }
}

/// A comparison.
pub const fn compare(code: u16, k: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code, yes, no, k }
}
