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
//! `miss` lies behind the block. It tries to refill the entry and comes back
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

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::Exit;
use super::asm::reg::*;
use super::asm::{Asm, Fixup, cc};
use super::classify::{Access, Class, renamable};
use super::hot;
use super::liveness::Flags;
use super::planted::{PlantedCode, planted_code};
use super::region::{ATTENTION, TABLES};
use super::regs::{GUEST_RAX, GUEST_RSP, Place, place, sized};
use super::tables::{JUMP_HASH, JUMP_SHIFT, JUMPS, Jump, Mode, PAGE_SHIFT, PAGES, Tables};
use super::thunks::Thunks;
use super::wrong::{PlantedInCode, is_planted};
use crate::cpu::{Cpu, Segment, seg};
use crate::op::Op;
use crate::tlb::AccessMode;
use std::mem::offset_of;

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlagState {
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

/// Code behind the block, for what seldom happens.
enum Cold {
    /// A check failed.
    Miss {
        jumps: Vec<Fixup>,
        retry: usize,
        tag: i32,
        refill: usize,
        op: *const Op,
        resume: usize,
    },
    /// The interpreter must do the instruction.
    Interpret {
        jump: Fixup,
        op: *const Op,
        resume: usize,
    },
    /// A branch is taken.
    Taken {
        jump: Fixup,
        op: *const Op,
        save: bool,
        index: usize,
        target: i64,
        from: u64,
    },
    /// An event waits before a jump within the page.
    Event { jump: Fixup, target: u64 },
    /// A jump out of the page found nothing.
    Lost {
        jumps: [Fixup; 2],
        exit: usize,
        mode: AccessMode,
    },
    /// A jump within the page that leads nowhere yet.
    Unlinked { jump: Fixup, exit: usize },
}

/// No place to go on at: behind an instruction that ends its block.
const NOWHERE: usize = usize::MAX;

/// A finished block.
pub struct Emitted {
    /// The code.
    pub bytes: Vec<u8>,
    /// Its exits. The code refers to them: they must stay where they are.
    pub exits: Box<[Exit]>,
}

/// A block being translated.
pub struct Emit<'a> {
    pub(super) asm: Asm,
    thunks: &'a Thunks,
    options: Options,
    encoder: &'a mut Encoder,
    info: &'a mut InstructionInfoFactory,
    flags: FlagState,
    /// Vector registers known to be loaded.
    vector: u8,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    /// Guest-physical address of the page.
    page: u64,
    /// Offset in the page of the block's start.
    start: u64,
    /// Instructions before the one being translated, and in all.
    done: u32,
    count: u32,
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

const MOV_LOAD: &[u8] = &[0x8B];
const MOV_STORE: &[u8] = &[0x89];
const LEA: &[u8] = &[0x8D];

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
            exits: Vec::new(),
            page,
            start,
            done: 0,
            count: count as u32,
        };
        emit.add_retired(i64::from(emit.count));
        emit
    }

    pub(super) fn options(&self) -> Options {
        self.options
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
    fn add_retired(&mut self, count: i64) {
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
    fn restore(&mut self) {
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
    fn address(&mut self, guest: &Guest<'_>) -> bool {
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
        debug_assert!(self.flags == FlagState::Saved);
        let planted = planted_code();
        let entries = if access.write && planted != PlantedCode::Table {
            offset_of!(Mode, write)
        } else {
            offset_of!(Mode, read)
        };
        let tag = mode_table(self.options.mode) + entries as i32;
        if self.options.count {
            self.asm.state(true, &[0xFF], 0, hot::CHECKS); // inc
        }
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
            _ => access.size,
        };
        let last = 4096 - i32::from(size);
        self.asm.rr_imm32(true, 0x81, 7, R10, last);
        let mut jumps = Vec::new();
        if planted != PlantedCode::NoJump {
            jumps.push(self.asm.jcc(cc::A));
        }
        if access.align != 0 {
            // test r10b, align
            self.asm.raw(&[0x41, 0xF6, 0xC2, access.align]);
            jumps.push(self.asm.jcc(cc::NE));
        }
        self.asm.entry(true, &[0x03], R10, tag + 8);
        if planted == PlantedCode::Pointer {
            self.asm.rx(true, LEA, R10, (R10, RCX, 0), 0);
        }
        let refill = self.thunks.refill[self.options.mode as usize][usize::from(access.write)];
        self.cold.push(Cold::Miss {
            jumps,
            retry,
            tag,
            refill,
            op,
            resume: 0,
        });
    }

    /// Calls the interpreter for one op. Flags are saved and in RAX after.
    pub(super) fn interpret(&mut self, op: *const Op) {
        self.free_flags();
        self.asm.mov_imm64(R11, op as u64);
        self.asm.call_abs(self.thunks.interpret);
    }

    /// Makes sure that vector registers are loaded. Flags must be free.
    fn need_vectors(&mut self, op: *const Op, vector: u8) {
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
                if !self.plain(guest, memory, vector, accumulator) {
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

    fn lea(&mut self, guest: &Guest<'_>) -> bool {
        let insn = guest.insn;
        let Some(to) = gpr_number(insn.op0_register()) else {
            return false;
        };
        // No segment base, and no flag is touched.
        let mut plain = *insn;
        plain.set_segment_prefix(Register::None);
        let stripped = Guest {
            insn: &plain,
            ..*guest
        };
        if insn.memory_segment() == Register::FS || insn.memory_segment() == Register::GS {
            return false;
        }
        if !self.address(&stripped) {
            return false;
        }
        if insn.op0_register().size() == 4 {
            self.asm.rr(false, MOV_LOAD, R10, R10);
        }
        self.put(to, R10);
        true
    }

    /// An instruction that the host runs, with other registers.
    fn plain(
        &mut self,
        guest: &Guest<'_>,
        memory: Option<Access>,
        vector: u8,
        accumulator: bool,
    ) -> bool {
        let insn = guest.insn;
        let mut host = *insn;
        host.set_code(renamable(insn.code()));
        host.set_segment_prefix(Register::None);
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);
        // Operands in memory of the vCPU go through scratch registers: which.
        let mut scratch: [Option<(u8, u8, bool)>; 2] = [None, None];
        let first = usize::from(memory.is_some());
        for n in 0..insn.op_count() {
            if insn.op_kind(n) != OpKind::Register || !insn.op_register(n).is_gpr() {
                continue;
            }
            let register = insn.op_register(n);
            let number = register.full_register().number() as u8;
            let to = match place(number) {
                _ if is_high(register) => continue,
                Place::Host(GUEST_RAX) if accumulator => RAX,
                Place::Host(to) => to,
                Place::Memory => {
                    let place = (first..2).find(|&s| scratch[s].is_none_or(|(g, ..)| g == number));
                    let Some(s) = place else {
                        return false;
                    };
                    scratch[s].get_or_insert((number, [R10, R11][s], false)).1
                }
            };
            host.set_op_register(n, sized(to, register));
        }
        if scratch.iter().any(Option::is_some) {
            let info = self.info.info(insn);
            for n in 0..insn.op_count() {
                let written = matches!(
                    info.op_access(n),
                    OpAccess::Write
                        | OpAccess::ReadWrite
                        | OpAccess::CondWrite
                        | OpAccess::ReadCondWrite
                );
                let number = insn.op_register(n).full_register().number() as u8;
                for entry in scratch.iter_mut().flatten() {
                    if insn.op_kind(n) == OpKind::Register
                        && insn.op_register(n).is_gpr()
                        && entry.0 == number
                    {
                        entry.2 |= written;
                    }
                }
            }
        }
        if memory.is_some() {
            host.set_memory_base(Register::R10);
            host.set_memory_index(Register::None);
            host.set_memory_index_scale(1);
            host.set_memory_displacement64(0);
            host.set_memory_displ_size(0);
        }

        if vector != 0 {
            self.free_flags();
            self.need_vectors(guest.op_pointer(), vector);
        }
        if let Some(access) = memory
            && !self.operand(guest, access)
        {
            return false;
        }
        for (number, register, _) in scratch.into_iter().flatten() {
            self.asm.state(true, MOV_LOAD, register, slot(number));
        }
        if guest.flags.wants_host() {
            self.host_flags();
        }
        if accumulator {
            self.asm.raw(&[0x49, 0x91]); // xchg rax, r9
        }
        let done = memory.is_some() && self.unlock(&mut host);
        if !done && self.encode(&host).is_err() {
            return false;
        }
        if accumulator {
            self.asm.raw(&[0x49, 0x91]);
        }
        for (number, register, written) in scratch.into_iter().flatten() {
            if written && !is_planted(PlantedInCode::WriteBack) {
                self.asm.state(true, MOV_STORE, register, slot(number));
            }
        }
        if guest.flags.changes != 0 {
            self.flags = FlagState::Host;
        }
        true
    }

    /// Takes the lock from an instruction that needs none: in user mode, with
    /// one vCPU. Devices run beside the vCPU, but user code shares nothing
    /// with them that it counts in; what it uses for a barrier, an operation
    /// with zero, keeps its lock. True: the instruction, an exchange, was
    /// emitted, as loads and stores.
    fn unlock(&mut self, host: &mut Instruction) -> bool {
        if !self.options.alone || self.options.mode != AccessMode::User {
            return false;
        }
        if host.mnemonic() == Mnemonic::Xchg && host.op1_kind() == OpKind::Register {
            let register = host.op1_register();
            let number = register.full_register().number() as u8;
            if number == R11 || is_high(register) || register.size() < 4 {
                return false;
            }
            let wide = register.size() == 8;
            self.asm.rm(wide, MOV_LOAD, R11, R10, 0);
            self.asm.rm(wide, MOV_STORE, number, R10, 0);
            self.asm.rr(wide, MOV_LOAD, number, R11);
            return true;
        }
        let barrier = host.op_count() == 2
            && !matches!(host.op1_kind(), OpKind::Register | OpKind::Memory)
            && host.immediate(1) == 0;
        if !barrier {
            host.set_has_lock_prefix(false);
        }
        false
    }

    /// Encodes an instruction of the host.
    pub(super) fn encode(&mut self, host: &Instruction) -> Result<(), iced_x86::IcedError> {
        let at = (self.asm.base + self.asm.here()) as u64;
        let result = self.encoder.encode(host, at);
        let mut bytes = self.encoder.take_buffer();
        if result.is_ok() {
            self.asm.raw(&bytes);
        }
        bytes.clear();
        self.encoder.set_buffer(bytes);
        result.map(|_| ())
    }

    /// DIV and IDIV that cannot fault; others are the interpreter's.
    pub(super) fn divide(&mut self, guest: &Guest<'_>) -> bool {
        let insn = guest.insn;
        self.free_flags();
        let wide = match insn.op0_kind() {
            OpKind::Memory => {
                let size = insn.memory_size().size() as u8;
                let access = Access {
                    size,
                    write: false,
                    align: 0,
                };
                if !self.operand(guest, access) {
                    return false;
                }
                self.asm.rm(size == 8, MOV_LOAD, R11, R10, 0);
                size == 8
            }
            _ => {
                let Some(n) = gpr_number(insn.op0_register()) else {
                    return false;
                };
                self.copy(R11, n);
                insn.op0_register().size() == 8
            }
        };
        let signed = insn.mnemonic() == Mnemonic::Idiv;
        let mut jumps = Vec::new();
        if signed {
            // The divisor is neither 0 nor -1, and RDX is RAX's sign.
            self.asm.rm(wide, LEA, R10, R11, 1);
            self.asm.rr(wide, &[0x83], 7, R10);
            self.asm.raw(&[1]);
            jumps.push(self.asm.jcc(cc::BE));
            self.asm.rr(wide, MOV_LOAD, R10, GUEST_RAX);
            self.asm.rr(wide, &[0xC1], 7, R10);
            self.asm.raw(&[if wide { 63 } else { 31 }]);
            self.asm.rr(wide, &[0x3B], R10, RDX);
            jumps.push(self.asm.jcc(cc::NE));
        } else {
            self.asm.rr(wide, &[0x3B], RDX, R11);
            jumps.push(self.asm.jcc(cc::AE));
        }
        self.asm.raw(&[0x49, 0x91]); // xchg rax, r9
        self.asm.rr(wide, &[0xF7], if signed { 7 } else { 6 }, R11);
        self.asm.raw(&[0x49, 0x91]);
        for jump in jumps {
            self.later(guest, jump);
        }
        true
    }

    // ---- leaving ----

    fn exit(&mut self, exit: Exit) -> usize {
        self.exits.push(exit);
        self.exits.len() - 1
    }

    /// Before a jump that may close a cycle: looks for events. `target` is
    /// in the page.
    fn poll(&mut self, target: u64) {
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        let jump = self.asm.jcc(cc::NE);
        self.cold.push(Cold::Event { jump, target });
    }

    /// Leaves for offset `target` of the page, or of another. Flags are
    /// saved.
    pub(super) fn leave_to(
        &mut self,
        op: *const Op,
        rsp_delta: i64,
        target: i64,
        from: u64,
    ) -> bool {
        self.save_flags();
        self.flags = FlagState::Saved;
        let Ok(near) = u64::try_from(target) else {
            return self.leave_page(op, rsp_delta, target);
        };
        if near >= 0x1000 {
            return self.leave_page(op, rsp_delta, target);
        }
        if near <= from && !is_planted(PlantedInCode::MissedInterrupt) {
            self.poll(near);
        }
        let jump = self.asm.jmp();
        let exit = self.exit(Exit {
            op,
            rsp_delta,
            site: 0,
            target: near,
            page: self.page,
        });
        self.cold.push(Cold::Unlinked { jump, exit });
        true
    }

    fn leave_page(&mut self, op: *const Op, rsp_delta: i64, target: i64) -> bool {
        self.asm.state(true, MOV_LOAD, R10, hot::PAGE);
        match i32::try_from(target) {
            Ok(disp) => self.asm.rm(true, LEA, R10, R10, disp),
            Err(_) => {
                self.asm.mov_imm64(R11, target as u64);
                self.asm.rr(true, &[0x03], R10, R11);
            }
        }
        self.leave_to_r10(op, rsp_delta, self.options.mode);
        true
    }

    /// Leaves for the linear address in R10, whose code runs in `mode`. Flags
    /// are saved.
    pub(super) fn leave_to_r10(&mut self, op: *const Op, rsp_delta: i64, mode: AccessMode) {
        if mode == AccessMode::User {
            let space = TABLES + offset_of!(Tables, space);
            self.asm.state(true, &[0x33], R10, space as i32);
        }
        // imul r11d, r10d, hash
        self.asm.rr(false, &[0x69], R11, R10);
        self.asm.raw(&JUMP_HASH.to_le_bytes());
        self.asm.raw(&[0x41, 0xC1, 0xEB, JUMP_SHIFT as u8]); // shr r11d
        let mask = (JUMPS - 1) * size_of::<Jump>();
        self.asm.rr_imm32(false, 0x81, 4, R11, mask as i32);
        let entry = mode_table(mode) + offset_of!(Mode, jumps) as i32;
        self.asm.entry(true, &[0x3B], R10, entry);
        let tag = match planted_code() {
            PlantedCode::Tag => cc::BE,
            _ => cc::NE,
        };
        let missing = self.asm.jcc(tag);
        self.asm.state_imm8(false, 0x83, 7, ATTENTION as i32, 0);
        let event = self.asm.jcc(cc::NE);
        self.asm
            .entry(true, MOV_LOAD, R10, entry + offset_of!(Jump, page) as i32);
        self.asm.state(true, MOV_STORE, R10, hot::PAGE);
        self.asm
            .entry(false, &[0xFF], 4, entry + offset_of!(Jump, code) as i32);
        let exit = self.exit(Exit {
            op,
            rsp_delta,
            site: 0,
            target: 0,
            page: self.page,
        });
        self.cold.push(Cold::Lost {
            jumps: [missing, event],
            exit,
            mode,
        });
    }

    /// Jcc: the taken side goes behind the block.
    pub(super) fn branch(&mut self, guest: &Guest<'_>, condition: u8, target: i64) {
        self.host_flags();
        let jump = self.asm.jcc(condition);
        self.cold.push(Cold::Taken {
            jump,
            op: guest.op_pointer(),
            save: self.flags == FlagState::Host,
            index: self.done as usize + 1,
            target,
            from: guest.at,
        });
    }

    /// Ends the block where its last instruction goes on to the next.
    pub fn fall_through(&mut self, next: u64) {
        self.leave_to(std::ptr::null(), 0, next as i64, self.start);
    }

    /// Appends what seldom happens.
    pub fn finish(mut self) -> Emitted {
        let mut next = 0;
        // Taken branches add exits, and those more cold code.
        while next < self.cold.len() {
            if let Cold::Taken {
                jump,
                op,
                save,
                index,
                target,
                from,
            } = self.cold[next]
            {
                self.asm.fix_here(jump);
                self.flags = if save {
                    FlagState::Host
                } else {
                    FlagState::Saved
                };
                self.save_flags();
                self.add_retired(index as i64 - i64::from(self.count));
                self.leave_to(op, 0, target, from);
            }
            next += 1;
        }
        let mut exits = std::mem::take(&mut self.exits).into_boxed_slice();
        let cold = std::mem::take(&mut self.cold);
        for cold in cold {
            self.emit_cold(cold, &mut exits);
        }
        Emitted {
            bytes: self.asm.bytes,
            exits,
        }
    }

    fn emit_cold(&mut self, cold: Cold, exits: &mut [Exit]) {
        match cold {
            Cold::Miss {
                jumps,
                retry,
                tag,
                refill,
                op,
                resume,
            } => {
                for jump in jumps {
                    self.asm.fix_here(jump);
                }
                self.asm.entry(true, &[0x03], R10, tag);
                self.asm.call_abs(refill);
                let again = self.asm.jcc(cc::AE);
                self.asm.fix(again, retry);
                self.interpreted(op, resume);
            }
            Cold::Interpret { jump, op, resume } => {
                self.asm.fix_here(jump);
                self.interpreted(op, resume);
            }
            Cold::Taken { .. } => {}
            Cold::Event { jump, target } => {
                self.asm.fix_here(jump);
                self.asm.mov_imm32(R11, target as u32);
                self.asm.jmp_abs(self.thunks.exit_at);
            }
            Cold::Lost { jumps, exit, mode } => {
                for jump in jumps {
                    self.asm.fix_here(jump);
                }
                if mode == AccessMode::User {
                    let space = TABLES + offset_of!(Tables, space);
                    self.asm.state(true, &[0x33], R10, space as i32);
                }
                self.asm.mov_imm64(R11, &raw const exits[exit] as u64);
                self.asm.jmp_abs(self.thunks.exit_jump);
            }
            Cold::Unlinked { jump, exit } => {
                self.asm.fix_here(jump);
                exits[exit].site = self.asm.base + jump.0;
                self.asm.mov_imm64(R11, &raw const exits[exit] as u64);
                self.asm.jmp_abs(self.thunks.exit_link);
            }
        }
    }

    /// Lets the interpreter do an instruction, and goes on behind it with
    /// the flags both in RAX and in the host's.
    fn interpreted(&mut self, op: *const Op, resume: usize) {
        self.asm.mov_imm64(R11, op as u64);
        self.asm.call_abs(self.thunks.interpret);
        if resume == NOWHERE {
            // The interpreter has gone elsewhere.
            self.asm.raw(&[0x0F, 0x0B]); // ud2
            return;
        }
        self.asm.mov(R10, RAX);
        self.restore();
        self.asm.mov(RAX, R10);
        self.asm.jmp_to(resume);
    }

    /// The guest's RSP plus `by`, without touching flags.
    pub(super) fn add_rsp(&mut self, by: i32) {
        self.asm.rm(true, LEA, GUEST_RSP, GUEST_RSP, by);
    }
}

/// Offset in the vCPU of the tables of `mode`.
fn mode_table(mode: AccessMode) -> i32 {
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

fn is_high(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}
