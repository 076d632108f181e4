//! `rep stos` and `rep movs` of bytes that lie in one page.
//!
//! Kernels clear and copy small structures by them. A routine finds each page
//! in the tables as code does for one access, and lets the host repeat:
//!
//! ```text
//!                 DF clear, RCX × size ≤ 4096, pages in the tables,
//!                 RCX × size bytes from there end in them?
//!                     │ yes                       │ no
//!                     ▼                           ▼
//!   host address in RDI (RSI); host's rep   interpret the op
//! ```
//!
//! So a repetition that the routine does is over in the time of a page, and
//! has nothing to wait for or to be interrupted by between two elements.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::asm::reg::*;
use super::asm::{Asm, Fixup, cc};
use super::classify::Class;
use super::emit::{Emit, LEA, MOV_LOAD, MOV_STORE, mode_table};
use super::hot;
use super::regs::GUEST_RAX;
use super::tables::{Mode, PAGE_SHIFT, PAGES};
use crate::cpu::{Cpu, flag};
use crate::op::Op;

const PAGE: i32 = 4096;
/// Where the routine, called, keeps the op, the flags and a third value.
const OP: i32 = 8 + hot::TEMP;
const FLAGS: i32 = OP + 8;
const VALUE: i32 = OP + 16;

/// The class of a string instruction that is repeated, with 64-bit addresses.
pub fn class(insn: &Instruction) -> Option<Class> {
    use Code::*;
    let (copies, shift) = match insn.code() {
        Stosb_m8_AL => (false, 0),
        Stosw_m16_AX => (false, 1),
        Stosd_m32_EAX => (false, 2),
        Stosq_m64_RAX => (false, 3),
        Movsb_m8_m8 => (true, 0),
        Movsw_m16_m16 => (true, 1),
        Movsd_m32_m32 => (true, 2),
        Movsq_m64_m64 => (true, 3),
        _ => return None,
    };
    let based = matches!(insn.memory_segment(), Register::FS | Register::GS);
    let source = !copies || insn.op1_kind() == OpKind::MemorySegRSI && !based;
    (insn.has_rep_prefix() && insn.op0_kind() == OpKind::MemoryESRDI && source)
        .then_some(Class::Repeated { copies, shift })
}

impl Emit<'_> {
    /// Calls the routine for an op of [`Class::Repeated`].
    pub(super) fn repeated(&mut self, op: *const Op, copies: bool, shift: u8) {
        self.free_flags();
        self.asm.mov_imm64(R11, op as u64);
        let of_mode = &self.thunks.repeated[self.options.mode as usize];
        let routine = of_mode[usize::from(copies)][usize::from(shift)];
        self.asm.call_abs(routine);
    }
}

/// The routine for elements of 1 << `shift` bytes and the tables of `mode`;
/// `interpret` is the one that lets the interpreter do an op.
pub fn routine(a: &mut Asm, mode: usize, copies: bool, shift: u8, interpret: usize) {
    const MODES: usize = size_of::<Mode>();
    let table = 8 + mode_table(crate::tlb::AccessMode::Supervisor) + (mode * MODES) as i32;
    let read = table + offset_of!(Mode, read) as i32;
    let write = table + offset_of!(Mode, write) as i32;
    let rflags = 8 + offset_of!(Cpu, rflags) as i32;
    a.state_imm32(false, 0xF7, 0, rflags, flag::DF as i32); // test
    let down = a.jcc(cc::NE);
    a.rr_imm32(true, 0x81, 7, RCX, PAGE >> shift); // cmp
    let long = a.jcc(cc::A);
    a.state(true, MOV_STORE, R11, OP);
    a.state(true, MOV_STORE, RAX, FLAGS);
    let mut missing = Vec::new();
    if copies {
        a.mov(R10, RSI);
        missing.extend(find(a, read, shift));
        a.state(true, MOV_STORE, R10, VALUE);
    }
    a.mov(R10, RDI);
    missing.extend(find(a, write, shift));
    if copies {
        a.state(true, MOV_LOAD, R11, VALUE);
        exchange(a, R11, RSI);
    } else {
        a.mov(RAX, GUEST_RAX);
    }
    exchange(a, R10, RDI);
    a.state(true, MOV_STORE, RCX, VALUE);
    repeat(a, copies, shift);
    a.state(true, MOV_LOAD, RCX, VALUE);
    a.rx(true, LEA, RDI, (R10, RCX, shift), 0);
    if copies {
        a.rx(true, LEA, RSI, (R11, RCX, shift), 0);
    }
    a.raw(&[0x31, 0xC9]); // xor ecx, ecx
    a.state(true, MOV_LOAD, RAX, FLAGS);
    a.raw(&[0xC3]); // ret
    for jump in missing {
        a.fix_here(jump);
    }
    a.state(true, MOV_LOAD, RAX, FLAGS);
    a.state(true, MOV_LOAD, R11, OP);
    a.fix_here(down);
    a.fix_here(long);
    a.jmp_abs(interpret);
}

/// From the linear address in R10 to the host's, for all of RCX elements.
/// Clobbers RAX and R11. The jumps: it is not known.
fn find(a: &mut Asm, table: i32, shift: u8) -> [Fixup; 2] {
    a.mov(R11, R10);
    a.raw(&[0x49, 0xC1, 0xEB, 12 - PAGE_SHIFT as u8]); // shr r11
    let mask = ((PAGES - 1) << PAGE_SHIFT) as i32;
    a.rr_imm32(false, 0x81, 4, R11, mask); // and
    a.entry(true, &[0x2B], R10, table); // sub
    a.rr_imm32(true, 0x81, 7, R10, PAGE - 1);
    let other = a.jcc(cc::A);
    a.rx(true, LEA, RAX, (R10, RCX, shift), 0);
    a.rr_imm32(true, 0x81, 7, RAX, PAGE);
    let beyond = a.jcc(cc::A);
    a.entry(true, &[0x03], R10, table + 8); // add
    [other, beyond]
}

/// `xchg a, b`
fn exchange(asm: &mut Asm, a: u8, b: u8) {
    asm.rr(true, &[0x87], a, b);
}

/// `rep movs` or `rep stos`
fn repeat(a: &mut Asm, copies: bool, shift: u8) {
    let opcode = if copies { 0xA4 } else { 0xAA };
    match shift {
        0 => a.raw(&[0xF3, opcode]),
        1 => a.raw(&[0x66, 0xF3, opcode | 1]),
        2 => a.raw(&[0xF3, opcode | 1]),
        _ => a.raw(&[0xF3, 0x48, opcode | 1]),
    }
}
