//! Host code for one block.
//!
//! # Memory
//!
//! Every access is checked. The address is computed into R10; R11 finds the
//! entry; one comparison says that the entry is for this page, that the
//! access is allowed, and that it ends in the page:
//!
//! ```text
//!   lea  r10, [address]
//!   rorx r11, r10, 8              page number, times the entry's size
//!   and  r11d, 0x3FF0
//!   sub  r10, [rsp + r11 + tag]   offset in the page, if it is this page
//!   cmp  r10, 4096 − size
//!   ja   miss
//!   add  r10, [rsp + r11 + host]
//! ```
//!
//! `miss` lies apart from the block. It tries to refill the entry and comes back
//! to `rorx`; else the interpreter does the whole instruction, and the block
//! goes on behind it. An instruction changes nothing before its last check.
//!
//! # Flags
//!
//! ```text
//!            change flags            LAHF, SETO
//!   Saved ───────────────► Host ───────────────► Both
//!     ▲  ◄──────────────────────────────────────  │
//!     │         ADD AL, 127; SAHF (to Host)       │
//!     └───────────── a check clobbers ────────────┘
//! ```
//!
//! `Saved`: in RAX. Between blocks they always are. They are put away before
//! each check, because whoever handles an exception may look at them.

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Register};

use super::Exit;
use super::asm::reg::*;
use super::asm::{Asm, Fixup, cc};
use super::classify::{Access, Class};
use super::cold::{Cold, NOWHERE};
use super::group::Group;
use super::hot;
use super::liveness::Flags;
use super::planted::{PlantedCode, planted_code};
use super::region::TABLES;
use super::regs::{GUEST_RSP, Place, place};
use super::tables::{Mode, PAGE_SHIFT, PAGES, Tables};
use super::thunks::Thunks;
use super::wrong::{PlantedInCode, is_planted};
use crate::cpu::{Cpu, Segment, seg};
use crate::op::Op;
use crate::tlb::AccessMode;

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagState {
    Saved,
    Host,
    Both,
}

/// What a translation depends on.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The rules for data accesses, part of the block's key.
    pub mode: AccessMode,
    /// Count retired instructions.
    pub count: bool,
    /// CR4.SMAP is set.
    pub smap: bool,
    /// The guest has one vCPU.
    pub alone: bool,
    /// The host has BMI2.
    pub bmi2: bool,
}

/// A finished block.
pub struct Emitted {
    /// The code.
    pub bytes: Vec<u8>,
    /// How much of it stands where the block begins; the rest is apart.
    pub hot: usize,
    /// Its exits. The code refers to them: they must stay where they are.
    pub exits: Box<[Exit]>,
}

/// A block being translated.
pub struct Emit<'a> {
    pub(super) asm: Asm,
    pub(super) thunks: &'a Thunks,
    pub(super) options: Options,
    pub(super) encoder: &'a mut Encoder,
    pub(super) info: &'a mut InstructionInfoFactory,
    pub(super) flags: FlagState,
    /// Vector registers known to be loaded.
    pub(super) vector: u8,
    pub(super) cold: Vec<Cold>,
    /// Accesses that share a check.
    pub(super) groups: Vec<Group<'a>>,
    pub(super) exits: Vec<Exit>,
    /// Guest-physical address of the page.
    pub(super) page: u64,
    /// Offset in the page of the block's start.
    pub(super) start: u64,
    /// Instructions before the one being translated, and in all.
    pub(super) done: u32,
    pub(super) count: u32,
}

/// A check that was emitted.
pub struct Check {
    /// Where it fails.
    pub jumps: Vec<Fixup>,
    /// Where it begins, with the linear address in R10.
    pub retry: usize,
    /// Offset in the vCPU of its table's tags.
    pub tag: i32,
    /// The routine that refills that table.
    pub refill: usize,
}

/// One guest instruction.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// As decoded.
    pub insn: &'a Instruction,
    /// How to translate it.
    pub class: Class,
    /// What it does to flags.
    pub flags: Flags,
    /// For the interpreter.
    pub op: &'a Op,
    /// Offset in the page of its first byte.
    pub at: u64,
}

impl Guest<'_> {
    /// Offset in the page of the next instruction.
    pub fn next(&self) -> u64 {
        self.at + u64::from(self.op.len)
    }

    /// What the code keeps for the interpreter.
    pub(super) fn op_pointer(&self) -> *const Op {
        self.op
    }
}

pub(super) const MOV_LOAD: &[u8] = &[0x8B];
pub(super) const MOV_STORE: &[u8] = &[0x89];
pub(super) const LEA: &[u8] = &[0x8D];

impl<'a> Emit<'a> {
    /// Starts a block at offset `start` of the page at `page`; its code will
    /// be at `base`.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        base: usize,
        thunks: &'a Thunks,
        options: Options,
        encoder: &'a mut Encoder,
        info: &'a mut InstructionInfoFactory,
        page: u64,
        start: u64,
        count: usize,
    ) -> Self {
        let mut emit = Emit {
            asm: Asm::new(base),
            thunks,
            options,
            encoder,
            info,
            flags: FlagState::Saved,
            vector: 0,
            cold: Vec::new(),
            groups: Vec::new(),
            exits: Vec::new(),
            page,
            start,
            done: 0,
            count: count as u32,
        };
        emit.add_retired(i64::from(emit.count));
        emit
    }

    /// An instruction of which the interpreter does what cannot be done here.
    pub(super) fn later(&mut self, guest: &Guest<'_>, jump: Fixup) {
        self.cold.push(Cold::Interpret {
            jump,
            op: guest.op_pointer(),
            resume: 0,
        });
    }

    /// Flags are in RAX here.
    pub(super) fn add_retired(&mut self, count: i64) {
        if self.options.count && count != 0 {
            self.asm
                .state_imm32(true, 0x81, 0, hot::RETIRED, count as i32);
        }
    }

    // ---- flags ----

    /// Puts the flags away, so that the host's may be clobbered.
    pub(super) fn save_flags(&mut self) {
        if self.flags == FlagState::Host {
            // lahf; seto al
            self.asm.raw(&[0x9F]);
            if !is_planted(PlantedInCode::WrongFlag) {
                self.asm.raw(&[0x0F, 0x90, 0xC0]);
            }
            self.flags = FlagState::Both;
        }
    }

    /// As [`Emit::save_flags`], and the host's are about to be clobbered.
    pub(super) fn free_flags(&mut self) {
        self.save_flags();
        self.flags = FlagState::Saved;
    }

    /// Makes the host's flags the guest's.
    pub(super) fn host_flags(&mut self) {
        if self.flags == FlagState::Saved {
            self.restore();
            self.flags = FlagState::Host;
        }
    }

    /// add al, 127; sahf
    pub(super) fn restore(&mut self) {
        self.asm.raw(&[0x04, 0x7F, 0x9E]);
    }

    // ---- registers ----

    /// The host register of guest register `n`, which is loaded into
    /// `scratch` if it has none.
    pub(super) fn get(&mut self, n: u8, scratch: u8) -> u8 {
        match place(n) {
            Place::Host(host) => host,
            Place::Memory => {
                self.asm.state(true, MOV_LOAD, scratch, slot(n));
                scratch
            }
        }
    }

    /// Copies guest register `n` to `to`.
    pub(super) fn copy(&mut self, to: u8, n: u8) {
        let from = self.get(n, to);
        self.asm.mov(to, from);
    }

    /// Stores `from` to guest register `n`.
    pub(super) fn put(&mut self, n: u8, from: u8) {
        match place(n) {
            Place::Host(host) => self.asm.mov(host, from),
            Place::Memory => self.asm.state(true, MOV_STORE, from, slot(n)),
        }
    }

    // ---- memory ----

    /// The memory operand's linear address into R10. May clobber flags.
    pub(super) fn address(&mut self, guest: &Guest<'_>) -> bool {
        let insn = guest.insn;
        let narrow = insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32();
        let segment = match insn.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        if insn.is_ip_rel_memory_operand() {
            if insn.memory_base() == Register::EIP {
                return false;
            }
            let target = insn.ip_rel_memory_address() as i64;
            let Ok(disp) = i32::try_from(target) else {
                return false;
            };
            self.asm.state(true, MOV_LOAD, R10, hot::PAGE);
            self.asm.rm(true, LEA, R10, R10, disp);
        } else {
            let disp = insn.memory_displacement64();
            let disp = if narrow {
                disp as i32
            } else {
                let Ok(disp) = i32::try_from(disp as i64) else {
                    return false;
                };
                disp
            };
            let base = gpr_number(insn.memory_base());
            let index = gpr_number(insn.memory_index());
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            let base = base.map(|n| self.get(n, R10));
            let index = index.map(|n| self.get(n, R11));
            match (base, index) {
                (Some(base), None) if disp == 0 && !narrow => self.asm.mov(R10, base),
                (Some(base), None) => self.asm.rm(!narrow, LEA, R10, base, disp),
                (Some(base), Some(index)) => {
                    self.asm.rx(!narrow, LEA, R10, (base, index, scale), disp);
                }
                (None, Some(index)) => self.asm.ri(!narrow, LEA, R10, index, scale, disp),
                (None, None) => self.asm.rr_imm32(true, 0xC7, 0, R10, disp),
            }
        }
        if let Some(segment) = segment {
            // add r10, base
            self.asm.state(true, &[0x03], R10, segment_base(segment));
        }
        true
    }

    /// Turns the linear address in R10 into a host address, behind a check.
    /// Flags must be free.
    pub(super) fn check(&mut self, op: *const Op, access: Access) {
        let size = u16::from(access.size);
        let check = self.checked(size, access.write, access.align, 1);
        self.cold.push(Cold::Miss {
            check,
            op,
            resume: 0,
        });
    }

    /// The same for `size` bytes, which so many `accesses` are to. Who fails
    /// has to be dealt with.
    pub(super) fn checked(&mut self, size: u16, write: bool, align: u8, accesses: i8) -> Check {
        debug_assert!(self.flags == FlagState::Saved);
        let planted = planted_code();
        let entries = if write && planted != PlantedCode::Table {
            offset_of!(Mode, write)
        } else {
            offset_of!(Mode, read)
        };
        let tag = mode_table(self.options.mode) + entries as i32;
        self.add_checks(accesses);
        let retry = self.asm.here();
        if self.options.bmi2 {
            // rorx r11, r10, 12 - shift
            self.asm
                .raw(&[0xC4, 0x43, 0xFB, 0xF0, 0xDA, 12 - PAGE_SHIFT as u8]);
        } else {
            self.asm.mov(R11, R10);
            self.asm.raw(&[0x49, 0xC1, 0xEB, 12 - PAGE_SHIFT as u8]);
        }
        if planted != PlantedCode::Mask {
            self.asm
                .rr_imm32(false, 0x81, 4, R11, ((PAGES - 1) << PAGE_SHIFT) as i32);
        }
        self.asm.entry(true, &[0x2B], R10, tag);
        let size = match planted {
            PlantedCode::Size => 1,
            _ => size,
        };
        let last = 4096 - i32::from(size);
        self.asm.rr_imm32(true, 0x81, 7, R10, last);
        let mut jumps = Vec::new();
        if planted != PlantedCode::NoJump {
            jumps.push(self.asm.jcc(cc::A));
        }
        if align != 0 {
            // test r10b, align
            self.asm.raw(&[0x41, 0xF6, 0xC2, align]);
            jumps.push(self.asm.jcc(cc::NE));
        }
        self.asm.entry(true, &[0x03], R10, tag + 8);
        if planted == PlantedCode::Pointer {
            self.asm.rx(true, LEA, R10, (R10, RCX, 0), 0);
        }
        Check {
            jumps,
            retry,
            tag,
            refill: self.thunks.refill[self.options.mode as usize][usize::from(write)],
        }
    }

    /// Counts checked accesses. Flags must be free.
    pub(super) fn add_checks(&mut self, count: i8) {
        if self.options.count {
            self.asm.state_imm8(true, 0x83, 0, hot::CHECKS, count);
        }
    }

    /// Calls the interpreter for one op. Flags are saved and in RAX after.
    pub(super) fn interpret(&mut self, op: *const Op) {
        self.free_flags();
        self.asm.mov_imm64(R11, op as u64);
        self.asm.call_abs(self.thunks.interpret);
    }

    /// Makes sure that vector registers are loaded. Flags must be free.
    pub(super) fn need_vectors(&mut self, op: *const Op, vector: u8) {
        if self.vector >= vector {
            return;
        }
        // cmp byte [vector], needed; jae over
        self.asm
            .state_imm8(false, 0x80, 7, hot::VECTOR, vector as i8);
        let loaded = self.asm.jcc(cc::AE);
        self.asm.mov_imm64(R11, op as u64);
        let load = if vector == 1 {
            self.thunks.load_xmm
        } else {
            self.thunks.load_ymm
        };
        self.asm.call_abs(load);
        self.asm.fix_here(loaded);
        self.vector = vector;
    }

    // ---- instructions ----

    /// One instruction. False: the block is over, nothing follows.
    pub fn guest(&mut self, guest: &Guest<'_>) -> bool {
        let first_cold = self.cold.len();
        let goes_on = match guest.class {
            Class::Nothing => true,
            Class::Plain {
                memory,
                vector,
                accumulator,
            } => {
                if !self.plain(guest, memory, vector, accumulator, None) {
                    self.interpret(guest.op_pointer());
                }
                true
            }
            Class::Lea => {
                if !self.lea(guest) {
                    self.interpret(guest.op_pointer());
                }
                true
            }
            Class::Jump
            | Class::JumpIndirect
            | Class::JumpIf
            | Class::Call
            | Class::CallIndirect
            | Class::Return => self.control(guest),
            _ => self.special(guest),
        };
        self.done += 1;
        let here = if goes_on { self.asm.here() } else { NOWHERE };
        for cold in &mut self.cold[first_cold..] {
            if let Cold::Miss { resume, .. } | Cold::Interpret { resume, .. } = cold {
                *resume = here;
            }
        }
        goes_on
    }

    /// The address of the memory operand, checked, in R10. False when it
    /// cannot be computed here; nothing was emitted that matters then.
    pub(super) fn operand(&mut self, guest: &Guest<'_>, access: Access) -> bool {
        self.free_flags();
        if !self.address(guest) {
            return false;
        }
        self.check(guest.op_pointer(), access);
        true
    }

    /// The guest's RSP plus `by`, without touching flags.
    pub(super) fn add_rsp(&mut self, by: i32) {
        self.asm.rm(true, LEA, GUEST_RSP, GUEST_RSP, by);
    }
}

/// Offset in the vCPU of the tables of `mode`.
pub(super) fn mode_table(mode: AccessMode) -> i32 {
    (TABLES + offset_of!(Tables, modes) + mode as usize * size_of::<Mode>()) as i32
}

/// Offset in the vCPU of guest register `n`.
pub(super) fn slot(n: u8) -> i32 {
    offset_of!(Cpu, regs) as i32 + i32::from(n) * 8
}

fn segment_base(segment: u8) -> i32 {
    (offset_of!(Cpu, segs)
        + usize::from(segment) * size_of::<Segment>()
        + offset_of!(Segment, base)) as i32
}

/// Number of a 64- or 32-bit general register.
pub(super) fn gpr_number(register: Register) -> Option<u8> {
    (register.is_gpr32() || register.is_gpr64()).then(|| register.full_register().number() as u8)
}
