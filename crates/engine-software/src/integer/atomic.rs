//! XADD CMPXCHG CMPXCHG8B CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::host::{self, Int};
use super::operand::{NEXT, modify, offset, sized};
use crate::cpu::flag::ZF;
use crate::cpu::{Cpu, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Op};

const RAX: u8 = gpr::RAX as u8 * 8;

fn xadd_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    let sum = T::add(a, b, &mut cpu.rflags);
    cpu.put(op.src, a);
    cpu.put(op.dst, sum);
    NEXT
}

fn xadd_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let b = cpu.get::<T>(op.src);
    let old = modify::<T>(cpu, op, |a, flags| T::add(a, b, flags))?;
    cpu.put(op.src, old);
    NEXT
}

fn cmpxchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (expected, found) = (cpu.get::<T>(RAX), cpu.get::<T>(op.dst));
    T::sub(expected, found, &mut cpu.rflags);
    if expected == found {
        let new = cpu.get::<T>(op.src);
        cpu.put(op.dst, new);
    } else {
        cpu.put(RAX, found);
    }
    NEXT
}

/// The destination is written in any case (SDM vol. 2, CMPXCHG), so it must
/// be writable.
fn cmpxchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let expected = cpu.get::<T>(RAX);
    let new = cpu.get::<T>(op.src);
    let found = modify::<T>(cpu, op, |found, flags| {
        T::sub(expected, found, flags);
        if found == expected { new } else { found }
    })?;
    if found != expected {
        cpu.put(RAX, found);
    }
    NEXT
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let pair =
        |high: usize, low: usize, cpu: &Cpu| cpu.r64(high) << 32 | cpu.r64(low) & 0xFFFF_FFFF;
    let expected = pair(gpr::RDX, gpr::RAX, cpu);
    let new = pair(gpr::RCX, gpr::RBX, cpu);
    let found = modify::<u64>(cpu, op, |found, flags| {
        if found == expected {
            *flags |= ZF;
            new
        } else {
            *flags &= !ZF;
            found
        }
    })?;
    if found != expected {
        cpu.set_r32(gpr::RAX, found as u32);
        cpu.set_r32(gpr::RDX, (found >> 32) as u32);
    }
    NEXT
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let linear = cpu.linear(op, 16, true)?;
    // Misaligned is #GP(0), before any page fault (SDM vol. 2, CMPXCHG16B).
    if linear & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let mut old = (cpu.r64(gpr::RAX), cpu.r64(gpr::RDX));
    let new = (cpu.r64(gpr::RBX), cpu.r64(gpr::RCX));
    let equal = match cpu.direct(linear, 16, true)? {
        Some(direct) => {
            // SAFETY: `direct` covers 16 bytes of guest RAM; guest pages are
            // host-aligned, so the alignment checked above is the host's.
            let equal = unsafe { host::cmpxchg16b(direct.host, &mut old, new) };
            cpu.stored(&direct, 16);
            equal
        }
        None => {
            let shared = cpu.shared.clone();
            let _bus = crate::shared::lock(&shared.bus_lock);
            cpu.probe(linear, 16, true)?;
            let found = (cpu.read::<u64>(linear)?, cpu.read::<u64>(linear + 8)?);
            let equal = found == old;
            let value = if equal { new } else { found };
            cpu.write(linear, value.0)?;
            cpu.write(linear + 8, value.1)?;
            old = found;
            equal
        }
    };
    if equal {
        cpu.rflags |= ZF;
    } else {
        cpu.rflags &= !ZF;
        cpu.set_r64(gpr::RAX, old.0);
        cpu.set_r64(gpr::RDX, old.1);
    }
    NEXT
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let memory = insn.op0_kind() == OpKind::Memory;
    match insn.mnemonic() {
        Mnemonic::Cmpxchg8b => {
            op.run = cmpxchg8b;
            return true;
        }
        Mnemonic::Cmpxchg16b => {
            op.run = cmpxchg16b;
            return true;
        }
        Mnemonic::Xadd | Mnemonic::Cmpxchg => {}
        _ => return false,
    }
    if !memory {
        op.dst = offset(insn.op0_register());
    }
    op.src = offset(insn.op1_register());
    let add = insn.mnemonic() == Mnemonic::Xadd;
    op.run = sized!(insn.op1_register().size(), T => match (add, memory) {
        (true, false) => xadd_reg::<T>,
        (true, true) => xadd_mem::<T>,
        (false, false) => cmpxchg_reg::<T>,
        (false, true) => cmpxchg_mem::<T>,
    });
    true
}
