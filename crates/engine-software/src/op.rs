//! A decoded instruction, ready to execute.

use iced_x86::{Instruction, Register};

use crate::cpu::{Cpu, RIP, ZERO};
use crate::fault::Exec;

/// What happens after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction of the block.
    Next,
    /// The handler has set RIP; the block is over.
    Jump,
    /// The block is over; RIP goes to the next instruction, and the run loop
    /// looks for events and a changed mode first.
    End,
    /// A repeated instruction is not finished: the block is over, RIP stays
    /// at the instruction, which continues after events were looked for.
    Again,
}

/// Executes one instruction.
///
/// While a block runs, `cpu.rip()` is the block's start;
/// [`Op::rip`]/[`Op::next_rip`] give the instruction's own addresses. A
/// handler that returns `Err` must have changed no architectural state that
/// a fault of that instruction must not change.
pub type Handler = fn(&mut Cpu, &Op) -> Exec<Flow>;

/// Flag bits of [`Op::flags`].
pub mod op_flag {
    /// The memory operand is 64-bit flat: linear address = base + index +
    /// displacement, no segment base, no limit.
    pub const FLAT: u8 = 1 << 0;
    /// 32-bit addressing (offset wraps at 4 GiB).
    pub const ADDR32: u8 = 1 << 1;
    /// 16-bit addressing (offset wraps at 64 KiB).
    pub const ADDR16: u8 = 1 << 2;
    /// LOCK prefix, or XCHG with memory.
    pub const LOCK: u8 = 1 << 3;
    /// REP/REPE prefix.
    pub const REP: u8 = 1 << 4;
    /// REPNE prefix.
    pub const REPNE: u8 = 1 << 5;
    /// Lockstep must not run it twice.
    pub const OUTSIDE: u8 = 1 << 6;
    /// Decoded as 64-bit code.
    pub const CODE64: u8 = 1 << 7;
}

/// A decoded instruction. 48 bytes; blocks are slices of these.
#[repr(C)]
#[derive(Clone)]
pub struct Op {
    /// What executes it.
    pub run: Handler,
    /// Immediate, branch target offset, absolute address: as `run` likes.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i64,
    /// The instruction as decoded, or what else `run` needs: an element of
    /// the block's side table. Null when not needed.
    pub side: *const Side,
    /// Index in `Cpu::regs` of the base register ([`ZERO`] without one,
    /// [`RIP`] for RIP-relative: the displacement is adjusted).
    pub base: u8,
    /// Index in `Cpu::regs` of the index register.
    pub index: u8,
    /// Shift of the index, 0–3.
    pub scale: u8,
    /// Effective segment of the memory operand.
    pub seg: u8,
    /// Byte offset in `Cpu::regs` of the destination register.
    pub dst: u8,
    /// Byte offset in `Cpu::regs` of the source register.
    pub src: u8,
    /// Third operand, condition code…: as `run` likes.
    pub aux: u8,
    /// See [`op_flag`].
    pub flags: u8,
    /// Bytes from the block's start to this instruction.
    pub off: u16,
    /// Length in bytes, 1–15.
    pub len: u8,
    /// Instructions behind this one in its block.
    pub left: u8,
    /// Offset in its page of the block's start.
    pub start: u16,
}

/// What an [`Op`] may need beyond its own fields.
pub struct Side {
    /// The instruction as iced decoded it.
    pub insn: Instruction,
    /// Its bytes, `insn.len()` of them.
    pub bytes: [u8; 15],
    /// The host stub that executes it, if one does.
    pub stub: Option<Box<crate::stub::Stub>>,
}

impl Op {
    /// The instruction's own address.
    #[inline(always)]
    pub fn rip(&self, cpu: &Cpu) -> u64 {
        cpu.rip().wrapping_add(u64::from(self.off))
    }

    /// The next instruction's address (before truncation to the code size).
    #[inline(always)]
    pub fn next_rip(&self, cpu: &Cpu) -> u64 {
        cpu.rip()
            .wrapping_add(u64::from(self.off) + u64::from(self.len))
    }

    /// The instruction's own address, where its page is mapped at `page`.
    pub fn linear(&self, page: u64) -> u64 {
        page.wrapping_add(u64::from(self.start) + u64::from(self.off))
    }

    /// Tests a bit of [`op_flag`].
    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The side entry. Only ops lowered with one may ask.
    #[inline(always)]
    pub fn side(&self) -> &Side {
        debug_assert!(!self.side.is_null());
        // SAFETY: `side` points into the boxed side table of the block that
        // owns this op (see `block.rs`), which outlives every use of the op;
        // lowering gives an entry to each op whose handler calls this.
        unsafe { &*self.side }
    }

    /// The instruction as iced decoded it; see [`Op::side`].
    #[inline(always)]
    pub fn insn(&self) -> &Instruction {
        &self.side().insn
    }
}

/// Index in `Cpu::regs` of the register that `register` is a part of.
/// `None` yields [`ZERO`]; RIP and EIP yield [`RIP`].
pub fn reg_index(register: Register) -> u8 {
    match register.full_register() {
        Register::RIP => RIP,
        full if full.is_gpr64() => full.number() as u8,
        _ => ZERO,
    }
}

/// Byte offset in `Cpu::regs` of a general register of any size, with AH, CH,
/// DH and BH one byte in.
pub fn reg_offset(register: Register) -> u8 {
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    reg_index(register) * 8 + u8::from(high)
}
