//! Instructions that the host runs, with other registers.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::asm::cc;
use super::asm::reg::*;
use super::classify::{Access, renamable};
use super::emit::{Emit, FlagState, Guest, LEA, MOV_LOAD, MOV_STORE, gpr_number, slot};
use super::regs::{GUEST_RAX, Place, place, sized};
use super::wrong::{PlantedInCode, is_planted};
use crate::tlb::AccessMode;

impl Emit<'_> {
    pub(super) fn lea(&mut self, guest: &Guest<'_>) -> bool {
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
        if let Some((to, base, index, disp)) = direct_lea(insn) {
            let wide = insn.op0_register().size() == 8;
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            match index {
                None => self.asm.rm(wide, LEA, to, base, disp),
                Some(index) => self.asm.rx(wide, LEA, to, (base, index, scale), disp),
            }
            return true;
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

    /// An instruction that the host runs, with other registers. If a pointer
    /// was `checked`, it is in R10 and stays there, and the memory operand is
    /// so many bytes behind it.
    pub(super) fn plain(
        &mut self,
        guest: &Guest<'_>,
        memory: Option<Access>,
        vector: u8,
        accumulator: bool,
        checked: Option<i32>,
    ) -> bool {
        let insn = guest.insn;
        let mut host = *insn;
        host.set_code(renamable(insn.code()));
        host.set_segment_prefix(Register::None);
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);
        // Operands in memory of the vCPU go through scratch registers: which.
        let mut scratch: [Option<(u8, u8, bool)>; 2] = [None, None];
        let first = usize::from(memory.is_some() || checked.is_some());
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
            let behind = checked.unwrap_or(0);
            host.set_memory_displacement64(i64::from(behind) as u64);
            host.set_memory_displ_size(match i8::try_from(behind) {
                Ok(0) => 0,
                Ok(_) => 1,
                Err(_) => 8,
            });
        }

        if vector != 0 {
            self.free_flags();
            self.need_vectors(guest.op_pointer(), vector);
        }
        if let Some(access) = memory
            && checked.is_none()
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
            let behind = host.memory_displacement64() as i32;
            self.asm.rm(wide, MOV_LOAD, R11, R10, behind);
            self.asm.rm(wide, MOV_STORE, number, R10, behind);
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
}

/// Destination, base, index, and displacement of a LEA, if all its registers
/// are the host's too.
pub(super) fn direct_lea(insn: &Instruction) -> Option<(u8, u8, Option<u8>, i32)> {
    let host = |register| match place(gpr_number(register)?) {
        Place::Host(host) => Some(host),
        Place::Memory => None,
    };
    let whole = insn.memory_base().is_gpr64() && insn.segment_prefix() == Register::None;
    let index = match insn.memory_index() {
        Register::None => None,
        register if register.is_gpr64() => Some(host(register)?),
        _ => return None,
    };
    let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
    let (to, base) = (host(insn.op0_register())?, host(insn.memory_base())?);
    whole.then_some((to, base, index, disp))
}

fn is_high(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}
