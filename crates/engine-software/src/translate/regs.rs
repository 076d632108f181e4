//! Where the guest's registers are while translated code runs.
//!
//! | host | holds |
//! |---|---|
//! | RCX RDX RBX RBP RSI RDI R8 R12 R13 R14 | the guest's register of that name |
//! | R9 | the guest's RAX |
//! | R15 | the guest's RSP |
//! | RAX | the guest's arithmetic flags, or nothing ([`super::emit`]) |
//! | R10, R11 | nothing for longer than an instruction |
//! | RSP | the vCPU ([`super::region`]) |
//!
//! The guest's R9, R10, R11 and R15, which compilers use least, stay in
//! memory. RCX and RDX, whose numbers are fixed in shifts, multiplications
//! and divisions, keep them; so do the registers with a high byte, but RAX:
//! LAHF needs it, and flags must be put away at most memory accesses.

use iced_x86::Register;

use super::asm::reg;

/// Holds flags.
pub const FLAGS: u8 = reg::RAX;
/// Holds the guest's RAX.
pub const GUEST_RAX: u8 = reg::R9;
/// Holds the guest's RSP.
pub const GUEST_RSP: u8 = reg::R15;

/// Where one guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a host register.
    Host(u8),
    /// In `Cpu::regs`.
    Memory,
}

/// Where guest register `n` is.
pub const fn place(n: u8) -> Place {
    match n {
        0 => Place::Host(GUEST_RAX),
        4 => Place::Host(GUEST_RSP),
        9 | 10 | 11 | 15 => Place::Memory,
        n => Place::Host(n),
    }
}

/// Host register `n` in the size of `like`; high bytes become low ones.
pub fn sized(n: u8, like: Register) -> Register {
    let n = u32::from(n);
    match like.size() {
        // SPL–DIL follow BH in iced's order, R8L–R15L follow them.
        1 if n >= 4 => Register::SPL + (n - 4),
        1 => Register::AL + n,
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}
