//! Fixed routines that translated code shares.
//!
//! | routine | does |
//! |---|---|
//! | enter | from Rust into translated code |
//! | leave | back, with a [`Reason`] |
//! | exits | keep what Rust must know, then leave |
//! | interpret | lets the interpreter run one op, then goes on |
//! | refills | move a translation from the [`Tlb`] into the [`Tables`] |
//! | repetitions | run a `rep` inside a page ([`strings`]) |
//! | vector loads | bring the guest's vector registers in |
//!
//! All of them run on general registers only, except the last. Registers are
//! as [`super::regs`] has them; RAX holds the guest's flags as LAHF and SETO
//! leave them.

use std::mem::offset_of;

use super::asm::reg::*;
use super::asm::{Asm, cc};
use super::emit::mode_table;
use super::region::{ATTENTION, TABLES};
use super::regs::{FLAGS, Place, place};
use super::tables::{JOURNAL, JUMP_HASH, JUMP_SHIFT, JUMPS, Jump, Mode, Tables};
use super::{hot, strings};
use crate::cpu::Cpu;
use crate::tlb::{AccessMode, DATA_ENTRIES, Entry, Tlb};
use crate::vector::VectorState;

/// Why translated code came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// An exit of a block that leads to no code yet; `hot.exit` is the
    /// [`super::Exit`].
    Link = 1,
    /// A jump to `hot.target`, of which nothing is known; `hot.exit` is the
    /// [`super::Exit`].
    Jump = 2,
    /// Before the instruction at offset `hot.exit` of the page, to look for
    /// events.
    At = 3,
    /// The op `hot.exit` must be interpreted.
    Interpret = 4,
    /// The interpreter ran an op; RIP is set.
    Done = 5,
    /// The interpreter ran an op that raised an exception; RIP is set.
    Fault = 6,
}

/// What the reasons are for people, by number.
pub const REASONS: [&str; 7] = [
    "",
    "to a block that is not linked yet",
    "to a target not in the table, or with an event waiting",
    "before a jump back, with an event waiting",
    "vector registers that may not be used now",
    "after the interpreter's help",
    "by an exception",
];

impl Reason {
    /// What `leave` returned.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Reason::Link,
            2 => Reason::Jump,
            3 => Reason::At,
            4 => Reason::Interpret,
            6 => Reason::Fault,
            _ => Reason::Done,
        }
    }
}

/// Addresses of the routines.
#[derive(Clone, Debug, Default)]
pub struct Thunks {
    /// `extern "sysv64" fn(cpu, code) -> reason`.
    pub enter: usize,
    /// To Rust; R11 is the [`super::Exit`].
    pub exit_link: usize,
    /// To the target in R10, if the other entry of its set knows it, else to
    /// Rust; R11 is the [`super::Exit`]. By the target's mode.
    pub exit_jump: [usize; 3],
    /// To Rust; R11 is the offset in the page.
    pub exit_at: usize,
    /// Called; R11 is the op.
    pub interpret: usize,
    /// Called; R10 is the linear address, R11 the entry's offset. Carry set:
    /// nothing was done. By mode, for reads and for writes.
    pub refill: [[usize; 2]; 3],
    /// Called for an op of [`super::Class::Repeated`]; R11 is the op. By mode,
    /// for fills and for copies, by log2 of the element's bytes.
    pub repeated: [[[usize; 4]; 2]; 3],
    /// Called where no vector registers are loaded, to load XMM0–15; R11 is
    /// the op.
    pub load_xmm: usize,
    /// Called where not all vector registers are loaded, to load YMM0–15;
    /// R11 is the op.
    pub load_ymm: usize,
}

const XMM: i32 = offset_of!(VectorState, ymm) as i32;
const VECTOR: i32 = offset_of!(Cpu, vector) as i32;
const TLB: i32 = offset_of!(Cpu, tlb) as i32;
const MXCSR: i32 = offset_of!(VectorState, mxcsr) as i32;
const HOST_MXCSR: i32 = offset_of!(VectorState, host_mxcsr) as i32;

/// Offset in `Cpu::regs` of guest register `n`.
fn slot(n: u8) -> i32 {
    offset_of!(Cpu, regs) as i32 + i32::from(n) * 8
}

/// Guest registers that have a host register, with it.
fn mapped() -> impl Iterator<Item = (u8, u8)> {
    (0..16).filter_map(|n| match place(n) {
        Place::Host(host) => Some((n, host)),
        Place::Memory => None,
    })
}

impl Asm {
    /// Stores the guest's registers; `pushed` bytes lie on the stack.
    fn spill(&mut self, pushed: i32) {
        for (guest, host) in mapped() {
            self.state(true, &[0x89], host, pushed + slot(guest));
        }
        self.state(true, &[0x89], FLAGS, pushed + hot::FLAGS);
    }

    fn unspill(&mut self) {
        for (guest, host) in mapped() {
            self.state(true, &[0x8B], host, slot(guest));
        }
        self.state(true, &[0x8B], FLAGS, hot::FLAGS);
    }

    /// `movups`, plain or with a VEX prefix of 256 bits.
    fn vector_move(&mut self, wide: bool, store: bool, n: u8) {
        let disp = XMM + 32 * i32::from(n);
        let opcode = if store { 0x11 } else { 0x10 };
        if wide {
            // VEX.256.0F.WIG, base R10.
            let r = if n < 8 { 0x80 } else { 0 };
            self.raw(&[0xC4, r | 0x40 | 1, 0x7C, opcode]);
            self.raw(&[0x80 | (n & 7) << 3 | 2]);
            self.raw(&disp.to_le_bytes());
        } else {
            self.rm(false, &[0x0F, opcode], n, R10, disp);
            // `rm` puts REX before the escape byte, where it belongs.
        }
    }

    /// Stores the vector registers that are loaded and makes the host's
    /// MXCSR current. Clobbers R10 and the flags.
    fn save_vectors(&mut self, pushed: i32) {
        self.state_imm8(false, 0x80, 7, pushed + hot::VECTOR, 0);
        let none = self.jcc(cc::E);
        self.state(true, &[0x8B], R10, pushed + VECTOR);
        self.state_imm8(false, 0x80, 7, pushed + hot::VECTOR, 2);
        let wide = self.jcc(cc::E);
        for n in 0..16 {
            self.vector_move(false, true, n);
        }
        let narrow_done = self.jmp();
        self.fix_here(wide);
        for n in 0..16 {
            self.vector_move(true, true, n);
        }
        self.raw(&[0xC5, 0xF8, 0x77]); // vzeroupper
        self.fix_here(narrow_done);
        self.rm(false, &[0x0F, 0xAE], 3, R10, MXCSR); // stmxcsr
        self.rm(false, &[0x0F, 0xAE], 2, R10, HOST_MXCSR); // ldmxcsr
        self.state(false, &[0xC6], 0, pushed + hot::VECTOR);
        self.raw(&[0]);
        self.fix_here(none);
    }

    /// Loads XMM0–15 or, `wide`, YMM0–15, and MXCSR. Clobbers R10.
    fn load_vectors(&mut self, pushed: i32, wide: bool) {
        self.state(true, &[0x8B], R10, pushed + VECTOR);
        for n in 0..16 {
            self.vector_move(wide, false, n);
        }
        self.rm(false, &[0x0F, 0xAE], 2, R10, MXCSR); // ldmxcsr
        self.state(false, &[0xC6], 0, pushed + hot::VECTOR);
        self.raw(&[if wide { 2 } else { 1 }]);
    }

    /// Back to Rust; R11 is the reason.
    fn leave(&mut self) {
        self.spill(0);
        self.save_vectors(0);
        self.rr(false, &[0x8B], RAX, R11);
        self.state(true, &[0x8B], RSP, hot::HOST_STACK);
        self.restore_host();
    }

    fn restore_host(&mut self) {
        self.raw(&[0x5F]); // pop rdi
        for n in [R15, R14, R13, R12] {
            self.raw(&[0x41, 0x58 | n & 7]);
        }
        self.raw(&[0x5B, 0x5D, 0xC3]); // pop rbx, pop rbp, ret
    }

    fn exit(&mut self, reason: Reason, leave: usize) -> usize {
        let at = self.base + self.here();
        self.state(true, &[0x89], R11, hot::EXIT);
        self.mov_imm32(R11, reason as u32);
        self.jmp_abs(leave);
        at
    }

    /// From the target in R10 to the offset of its entry in a table of jumps,
    /// in R11.
    pub(super) fn jump_entry(&mut self) {
        // imul r11d, r10d, hash
        self.rr(false, &[0x69], R11, R10);
        self.raw(&JUMP_HASH.to_le_bytes());
        self.raw(&[0x41, 0xC1, 0xEB, JUMP_SHIFT as u8]); // shr r11d
        let mask = (JUMPS - 1) * size_of::<Jump>();
        self.rr_imm32(false, 0x81, 4, R11, mask as i32);
    }

    fn align(&mut self) {
        while !self.here().is_multiple_of(16) {
            self.raw(&[0xCC]);
        }
    }

    fn at(&mut self) -> usize {
        self.align();
        self.base + self.here()
    }
}

/// Generates the routines for code memory that starts at `base`. `helper` is
/// the address of [`super::interpret`]; `count`: refills are counted.
pub fn generate(base: usize, helper: usize, count: bool) -> (Vec<u8>, Thunks) {
    let mut a = Asm::new(base);
    let mut t = Thunks {
        enter: a.at(),
        ..Thunks::default()
    };
    a.raw(&[0x55, 0x53]); // push rbp, push rbx
    for n in [R12, R13, R14, R15] {
        a.raw(&[0x41, 0x50 | n & 7]);
    }
    a.raw(&[0x57]); // push rdi
    a.rm(true, &[0x89], RSP, RDI, hot::HOST_STACK);
    a.mov(R10, RSI);
    a.mov(RSP, RDI);
    a.unspill();
    a.raw(&[0x41, 0xFF, 0xE2]); // jmp r10

    let leave = a.at();
    a.leave();

    t.exit_link = a.exit(Reason::Link, leave);
    t.exit_at = a.exit(Reason::At, leave);
    let exit_interpret = a.exit(Reason::Interpret, leave);
    for mode in [
        AccessMode::Supervisor,
        AccessMode::User,
        AccessMode::SupervisorSmap,
    ] {
        t.exit_jump[mode as usize] = a.at();
        second_jump(&mut a, mode, leave);
    }

    t.interpret = a.at();
    interpret(&mut a, helper);

    for mode in 0..3 {
        for write in [false, true] {
            t.refill[mode][usize::from(write)] = a.at();
            refill(&mut a, mode, write, count);
        }
    }

    for (mode, of_mode) in t.repeated.iter_mut().enumerate() {
        for (copies, of_kind) in [false, true].into_iter().zip(of_mode) {
            for (shift, routine) in (0..).zip(of_kind) {
                *routine = a.at();
                strings::routine(&mut a, mode, copies, shift, t.interpret);
            }
        }
    }

    for wide in [false, true] {
        let at = a.at();
        if wide {
            t.load_ymm = at;
        } else {
            t.load_xmm = at;
        }
        // What may be loaded now; else the op is for the interpreter.
        let bit = if wide { 2 } else { 1 };
        a.state(false, &[0xF6], 0, 8 + hot::VECTOR_OK);
        a.raw(&[bit]);
        let refused = a.jcc(cc::E);
        if wide {
            // XMM registers that are loaded already are newer than memory.
            a.save_vectors(8);
        }
        a.load_vectors(8, wide);
        a.raw(&[0xC3]);
        a.fix_here(refused);
        a.rm(true, &[0x8D], RSP, RSP, 8);
        a.jmp_abs(exit_interpret);
    }
    (a.bytes, t)
}

/// Looks in the second place for a jump's target, as code does in the first
/// (`Emit::leave_to_r10`).
fn second_jump(a: &mut Asm, mode: AccessMode, leave: usize) {
    a.state(true, &[0x89], R11, hot::EXIT);
    a.jump_entry();
    a.rr_imm32(false, 0x81, 6, R11, size_of::<Jump>() as i32); // xor
    let entry = mode_table(mode) + offset_of!(Mode, jumps) as i32;
    a.entry(true, &[0x3B], R10, entry);
    let missing = a.jcc(cc::NE);
    let mut found = Vec::new();
    if mode == AccessMode::User {
        let space = TABLES + offset_of!(Tables, space);
        a.state(true, &[0x8B], R10, space as i32);
        a.entry(true, &[0x3B], R10, entry + offset_of!(Jump, space) as i32);
        found.push(a.jcc(cc::NE));
    }
    a.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
    found.push(a.jcc(cc::NE));
    a.entry(true, &[0x8B], R10, entry + offset_of!(Jump, page) as i32);
    a.state(true, &[0x89], R10, hot::PAGE);
    a.entry(false, &[0xFF], 4, entry + offset_of!(Jump, code) as i32);
    for jump in found {
        a.fix_here(jump);
    }
    a.entry(true, &[0x8B], R10, entry);
    a.fix_here(missing);
    a.state(true, &[0x89], R10, hot::TARGET);
    a.mov_imm32(R11, Reason::Jump as u32);
    a.jmp_abs(leave);
}

/// Calls the helper on the host's stack, with vectors saved, and reloads what
/// was loaded.
fn interpret(a: &mut Asm, helper: usize) {
    // Ops lie where nobody has been for long.
    a.raw(&[0x41, 0x0F, 0x18, 0x0B]); // prefetcht0 [r11]
    a.spill(8);
    a.raw(&[0x8F]); // pop [vCPU + resume]: RSP is counted after the pop
    a.modrm_state(0, hot::RESUME);
    a.state(false, &[0x0F, 0xB6], RCX, hot::VECTOR);
    a.state(true, &[0x89], RCX, hot::TEMP);
    a.save_vectors(0);
    a.mov(RDI, RSP);
    a.mov(RSI, R11);
    a.state(true, &[0x8B], RSP, hot::HOST_STACK);
    a.mov_imm64(RAX, helper as u64);
    a.raw(&[0xFF, 0xD0]); // call rax
    a.raw(&[0x85, 0xC0]); // test eax, eax
    let over = a.jcc(cc::NE);
    a.rm(true, &[0x8B], RSP, RSP, 0); // what `enter` pushed last
    a.state_imm8(false, 0x80, 7, hot::TEMP, 0);
    let no_vectors = a.jcc(cc::E);
    a.state_imm8(false, 0x80, 7, hot::TEMP, 2);
    let wide = a.jcc(cc::E);
    a.load_vectors(0, false);
    let loaded = a.jmp();
    a.fix_here(wide);
    a.load_vectors(0, true);
    a.fix_here(loaded);
    a.fix_here(no_vectors);
    a.unspill();
    a.state(false, &[0xFF], 6, hot::RESUME); // push
    a.raw(&[0xC3]);
    a.fix_here(over);
    a.restore_host();
}

impl Asm {
    fn modrm_state(&mut self, digit: u8, disp: i32) {
        // As `state`, without a prefix or an opcode.
        self.rm(false, &[], digit, RSP, disp);
    }
}

/// Fills the entry for the page of R10 from the TLB, if that has it and the
/// page needs no looking at.
fn refill(a: &mut Asm, mode: usize, write: bool, count: bool) {
    let (entries, tlb_entries) = if write {
        (offset_of!(Mode, write), offset_of!(Tlb, write))
    } else {
        (offset_of!(Mode, read), offset_of!(Tlb, read))
    };
    let within = mode * size_of::<Mode>() + entries;
    let table = 8 + (TABLES + offset_of!(Tables, modes) + within) as i32;
    let (t0, t1) = (8 + hot::TEMP, 8 + hot::TEMP + 8);
    a.state(true, &[0x89], RCX, t0);
    a.mov(RCX, R10);
    a.rr_imm32(true, 0x81, 4, RCX, -4096); // and: the page
    a.entry(true, &[0x3B], RCX, table);
    // The page is there already: the access leaves it.
    let crossing = a.jcc(cc::E);
    a.state(true, &[0x89], RDX, t1);
    a.mov(RDX, R10);
    a.raw(&[0x48, 0xC1, 0xEA, 12]); // shr rdx, 12
    a.rr_imm32(false, 0x81, 4, RDX, (DATA_ENTRIES - 1) as i32);
    a.raw(&[0xC1, 0xE2, size_of::<Entry>().trailing_zeros() as u8]); // shl edx
    a.state(true, &[0x03], RDX, 8 + TLB);
    a.rm(true, &[0x8D], RDX, RDX, tlb_entries as i32);
    // First as a page of this address space, then as a global one.
    a.state(true, &[0x0B], RCX, 8 + hot::tlb_key());
    a.rm(true, &[0x3B], RCX, RDX, offset_of!(Entry, tag) as i32);
    let local = a.jcc(cc::E);
    a.rr_imm32(true, 0x81, 4, RCX, -4096);
    if mode != 0 {
        a.rm(true, &[0x8D], RCX, RCX, mode as i32);
    }
    a.rm(true, &[0x3B], RCX, RDX, offset_of!(Entry, tag) as i32);
    let global = a.jcc(cc::E);
    let missing = a.here();
    a.state(true, &[0x8B], RDX, t1);
    a.fix_here(crossing);
    a.state(true, &[0x8B], RCX, t0);
    if count {
        a.state(true, &[0xFF], 0, 8 + hot::MISSED); // inc
    }
    a.raw(&[0xF9, 0xC3]); // stc, ret

    let mut ends = Vec::new();
    for is_global in [false, true] {
        a.fix_here(if is_global { global } else { local });
        if !is_global {
            // A journal entry must be free, or what is filled here could
            // outlive its address space.
            a.state(
                true,
                &[0x81],
                7,
                8 + (TABLES + offset_of!(Tables, journal_len)) as i32,
            );
            a.raw(&(JOURNAL as i32).to_le_bytes());
            ends.push(a.jcc(cc::AE));
        }
        if write {
            a.rm(true, &[0x8B], RCX, RDX, offset_of!(Entry, watch) as i32);
            a.raw(&[0x80, 0x39, 0]); // cmp byte [rcx], 0
            ends.push(a.jcc(cc::NE));
        }
        a.mov(RCX, R10);
        a.rr_imm32(true, 0x81, 4, RCX, -4096);
        a.entry(true, &[0x89], RCX, table);
        a.rm(true, &[0x03], RCX, RDX, offset_of!(Entry, addend) as i32);
        a.entry(true, &[0x89], RCX, table + 8);
        if !is_global {
            let journal = 8 + (TABLES + offset_of!(Tables, journal)) as i32;
            let len = 8 + (TABLES + offset_of!(Tables, journal_len)) as i32;
            a.rm(true, &[0x8D], RDX, R11, within as i32);
            a.state(true, &[0x8B], RCX, len);
            a.rx(false, &[0x89], RDX, (RSP, RCX, 2), journal);
            a.rm(true, &[0x8D], RCX, RCX, 1);
            a.state(true, &[0x89], RCX, len);
        }
        a.state(true, &[0x8B], RDX, t1);
        a.state(true, &[0x8B], RCX, t0);
        if count {
            a.state(true, &[0xFF], 0, 8 + hot::REFILLED); // inc
        }
        a.raw(&[0xF8, 0xC3]); // clc, ret
    }
    for end in ends {
        a.fix(end, missing);
    }
}
