//! Descriptor tables, the task register, and instructions that look at
//! descriptors.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::{Cpu, Table, attr, cr4, flag};
use crate::fault::{Exec, vector};
use crate::op::{Flow, Handler, Op};
use crate::segment::{BUSY, is_null, null_segment, rpl, selector_error, system_type};

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Lgdt | Mnemonic::Lidt => load_table,
        Mnemonic::Sgdt | Mnemonic::Sidt => store_table,
        Mnemonic::Sldt | Mnemonic::Str => store_selector,
        Mnemonic::Lldt => lldt,
        Mnemonic::Ltr => ltr,
        Mnemonic::Lar => lar,
        Mnemonic::Lsl => lsl,
        Mnemonic::Verr | Mnemonic::Verw => verify,
        Mnemonic::Arpl => arpl,
        _ => return None,
    })
}

/// #GP(0) where UMIP keeps users from looking.
pub(super) fn check_umip(cpu: &mut Cpu) -> Exec {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// #UD in real and virtual-8086 mode.
fn need_protected(cpu: &mut Cpu) -> Exec {
    if cpu.real_or_vm86() {
        return Err(cpu.ud());
    }
    Ok(())
}

fn load_table(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    let code = op.insn().code();
    let mut bytes = [0; 10];
    let len = match code {
        Code::Lgdt_m1664 | Code::Lidt_m1664 => 10,
        _ => 6,
    };
    let at = cpu.linear(op, len, false)?;
    let (used, _) = bytes.split_at_mut(len as usize);
    cpu.read_bytes(at, used)?;
    let [l0, l1, rest @ ..] = bytes;
    let mut base = u64::from_le_bytes(rest);
    if matches!(code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xFF_FFFF;
    }
    if !cpu.canonical(base) {
        return Err(cpu.gp(0));
    }
    let table = Table {
        base,
        limit: u16::from_le_bytes([l0, l1]),
    };
    match op.insn().mnemonic() {
        Mnemonic::Lgdt => cpu.gdtr = table,
        _ => cpu.idtr = table,
    }
    Ok(Flow::Next)
}

fn store_table(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    check_umip(cpu)?;
    let (table, wide) = match op.insn().code() {
        Code::Sgdt_m1664 => (cpu.gdtr, true),
        Code::Sidt_m1664 => (cpu.idtr, true),
        Code::Sgdt_m1632 | Code::Sgdt_m1632_16 => (cpu.gdtr, false),
        _ => (cpu.idtr, false),
    };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if wide { 10 } else { 6 };
    let at = cpu.linear(op, len, true)?;
    cpu.write_bytes(at, &bytes[..len as usize])?;
    Ok(Flow::Next)
}

fn store_selector(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    check_umip(cpu)?;
    let selector = match op.insn().mnemonic() {
        Mnemonic::Sldt => cpu.ldtr.selector,
        _ => cpu.tr.selector,
    };
    cpu.set_operand16(op, 0, u64::from(selector))?;
    Ok(Flow::Next)
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = cpu.operand16(op, 0)?;
    if is_null(selector) {
        cpu.ldtr = null_segment(selector, 0);
        return Ok(Flow::Next);
    }
    let error = selector_error(selector);
    if selector & 4 != 0 {
        return Err(cpu.gp(error));
    }
    let (descriptor, high) = cpu.system_descriptor(selector, vector::GP)?;
    if descriptor.is_segment() || descriptor.kind() != system_type::LDT {
        return Err(cpu.gp(error));
    }
    if !descriptor.present() {
        return Err(cpu.raise_code(vector::NP, error));
    }
    let mut segment = descriptor.segment(selector);
    segment.base |= high << 32;
    if !cpu.canonical(segment.base) {
        return Err(cpu.gp(error));
    }
    cpu.ldtr = segment;
    Ok(Flow::Next)
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = cpu.operand16(op, 0)?;
    let error = selector_error(selector);
    if is_null(selector) || selector & 4 != 0 {
        return Err(cpu.gp(error));
    }
    let (mut descriptor, high) = cpu.system_descriptor(selector, vector::GP)?;
    let available = match descriptor.kind() {
        system_type::TSS32 => true,
        system_type::TSS16 => !cpu.long_mode,
        _ => false,
    };
    if descriptor.is_segment() || !available {
        return Err(cpu.gp(error));
    }
    if !descriptor.present() {
        return Err(cpu.raise_code(vector::NP, error));
    }
    let base = descriptor.base() | high << 32;
    if !cpu.canonical(base) {
        return Err(cpu.gp(error));
    }
    descriptor.raw |= u64::from(BUSY) << 40;
    let byte = (descriptor.raw >> 40) as u8;
    cpu.write_system::<u8>(descriptor.address.wrapping_add(5), byte)?;
    let mut segment = descriptor.segment(selector);
    segment.base = base;
    cpu.tr = segment;
    Ok(Flow::Next)
}

/// The descriptor of `selector` if the running code may see it and its type
/// is one that `valid` accepts among system descriptors.
fn visible(
    cpu: &mut Cpu,
    selector: u16,
    valid: fn(u32, bool) -> bool,
) -> Exec<Option<crate::segment::Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let descriptor = match cpu.descriptor(selector, vector::GP) {
        Ok(descriptor) => descriptor,
        // Beyond the table's limit. A page fault is a real one.
        Err(_) if cpu.raised.vector == vector::GP => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let long = cpu.long_mode;
    let kind = descriptor.is_segment() || valid(descriptor.kind(), long);
    let level = descriptor.is_conforming() || descriptor.dpl() >= cpu.cpl.max(rpl(selector));
    Ok((kind && level).then_some(descriptor))
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    cpu.rflags = cpu.rflags & !flag::ZF | if zf { flag::ZF } else { 0 };
}

/// System types that LAR reports (SDM vol. 2, table 3-53).
fn lar_valid(kind: u32, long: bool) -> bool {
    match kind {
        0x2 | 0x9 | 0xB | 0xC => true,
        0x1 | 0x3 | 0x4 | 0x5 => !long,
        _ => false,
    }
}

fn lar(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    let selector = cpu.operand16(op, 1)?;
    let descriptor = visible(cpu, selector, lar_valid)?;
    if let Some(descriptor) = descriptor {
        let rights = descriptor.raw >> 32 & 0x00F0_FF00;
        cpu.set_register(op.insn().op0_register(), rights);
    }
    set_zf(cpu, descriptor.is_some());
    Ok(Flow::Next)
}

/// System types that have a limit (SDM vol. 2, table 3-56).
fn lsl_valid(kind: u32, long: bool) -> bool {
    match kind {
        0x2 | 0x9 | 0xB => true,
        0x1 | 0x3 => !long,
        _ => false,
    }
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    let selector = cpu.operand16(op, 1)?;
    let descriptor = visible(cpu, selector, lsl_valid)?;
    if let Some(descriptor) = descriptor {
        let limit = u64::from(descriptor.limit());
        cpu.set_register(op.insn().op0_register(), limit);
    }
    set_zf(cpu, descriptor.is_some());
    Ok(Flow::Next)
}

fn verify(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    let selector = cpu.operand16(op, 0)?;
    let descriptor = visible(cpu, selector, |_, _| false)?;
    let usable = descriptor.is_some_and(|descriptor| match op.insn().mnemonic() {
        Mnemonic::Verr => descriptor.is_readable(),
        _ => descriptor.is_writable_data() && descriptor.attr() & attr::CODE == 0,
    });
    set_zf(cpu, usable);
    Ok(Flow::Next)
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    need_protected(cpu)?;
    let target = cpu.operand16(op, 0)?;
    let source = cpu.register(op.insn().op1_register()) as u16;
    let raise = rpl(target) < rpl(source);
    // Written back in either case, as processors do (a read-only page
    // faults).
    let value = if raise {
        target & !3 | source & 3
    } else {
        target
    };
    if op.insn().op0_register().is_gpr() {
        let index = usize::from(crate::op::reg_index(op.insn().op0_register()));
        cpu.set_r16(index, value);
    } else {
        let at = cpu.linear(op, 2, true)?;
        cpu.write::<u16>(at, value)?;
    }
    set_zf(cpu, raise);
    Ok(Flow::Next)
}
