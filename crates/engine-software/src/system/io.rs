//! Port I/O.

use iced_x86::{Code, Instruction, OpKind};

use crate::cpu::{Cpu, attr, cr4, flag, gpr, seg};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op, op_flag};
use crate::segment::{BUSY, system_type};

/// Iterations of REP INS/OUTS between two looks for events.
const BATCH: u32 = 64;
/// Offset of the I/O map base in a 32- or 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Code::*;
    Some(match insn.code() {
        In_AL_imm8 | In_AL_DX => input::<1>,
        In_AX_imm8 | In_AX_DX => input::<2>,
        In_EAX_imm8 | In_EAX_DX => input::<4>,
        Out_imm8_AL | Out_DX_AL => output::<1>,
        Out_imm8_AX | Out_DX_AX => output::<2>,
        Out_imm8_EAX | Out_DX_EAX => output::<4>,
        Insb_m8_DX => ins::<1>,
        Insw_m16_DX => ins::<2>,
        Insd_m32_DX => ins::<4>,
        Outsb_DX_m8 => outs::<1>,
        Outsw_DX_m16 => outs::<2>,
        Outsd_DX_m32 => outs::<4>,
        _ => return None,
    })
}

/// #GP(0) unless IOPL or the TSS allows `size` ports from `port` on.
fn check(cpu: &mut Cpu, port: u16, size: u16) -> Exec {
    if !cpu.protected() || !cpu.vm86() && cpu.cpl <= cpu.iopl() {
        return Ok(());
    }
    let limit = u64::from(cpu.tr.limit);
    let wide = cpu.tr.attr & attr::TYPE & !BUSY == system_type::TSS32;
    let usable = cpu.tr.attr & (attr::UNUSABLE | attr::P) == attr::P;
    if !wide || !usable || limit < IO_MAP_BASE + 1 {
        return Err(cpu.gp(0));
    }
    let base = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(IO_MAP_BASE))?;
    let at = u64::from(base) + u64::from(port / 8);
    // Two bytes are always read, so the second must lie in the TSS too.
    if at + 1 > limit {
        return Err(cpu.gp(0));
    }
    let map = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(at))?;
    if map >> (port % 8) & ((1 << size) - 1) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// Records I/O breakpoints (SDM vol. 3, 18.2.5) that an access touches; they
/// are reported as traps after the instruction.
fn watch(cpu: &mut Cpu, port: u16, size: u64) {
    if cpu.dr7 & 0xFF == 0 || cpu.cr4 & cr4::DE == 0 {
        return;
    }
    let port = u64::from(port);
    for n in 0..4 {
        let enabled = cpu.dr7 >> (2 * n) & 3 != 0;
        let ports = cpu.dr7 >> (16 + 4 * n) & 3 == 2;
        let len = [1, 2, 8, 4][(cpu.dr7 >> (18 + 4 * n) & 3) as usize];
        let first = cpu.dr[n as usize] & !(len - 1);
        if enabled && ports && port < first.saturating_add(len) && first < port + size {
            cpu.debug_hits |= 1 << n;
            cpu.recheck = true;
        }
    }
}

/// The port that operand `n` names: an immediate, or DX.
fn port(cpu: &Cpu, op: &Op, n: u32) -> u16 {
    match op.insn().op_kind(n) {
        OpKind::Immediate8 => u16::from(op.insn().immediate8()),
        _ => cpu.regs[gpr::RDX] as u16,
    }
}

fn input<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let port = port(cpu, op, 1);
    check(cpu, port, SIZE as u16)?;
    let mut bytes = [0; 4];
    cpu.io_read(port, &mut bytes[..SIZE]);
    watch(cpu, port, SIZE as u64);
    let value = u64::from(u32::from_le_bytes(bytes));
    cpu.set_register(op.insn().op0_register(), value);
    // The device may have raised an interrupt.
    Ok(Flow::End)
}

fn output<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let port = port(cpu, op, 0);
    check(cpu, port, SIZE as u16)?;
    let bytes = (cpu.regs[gpr::RAX] as u32).to_le_bytes();
    cpu.io_write(port, &bytes[..SIZE]);
    watch(cpu, port, SIZE as u64);
    Ok(Flow::End)
}

/// Mask of the address registers, by the string operand's kind.
fn string_mask(kind: OpKind) -> u64 {
    match kind {
        OpKind::MemoryESDI | OpKind::MemorySegSI => 0xFFFF,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// Writes the part of a register that an address size covers.
fn set_masked(cpu: &mut Cpu, register: usize, mask: u64, value: u64) {
    cpu.regs[register] = match mask {
        0xFFFF => cpu.regs[register] & !0xFFFF | value & 0xFFFF,
        mask => value & mask,
    };
}

/// Runs iterations of a string instruction, each committed by itself.
fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    mask: u64,
    pointer: usize,
    size: u64,
    mut once: impl FnMut(&mut Cpu, u64) -> Exec,
) -> Exec<Flow> {
    let repeated = op.has(op_flag::REP) || op.has(op_flag::REPNE);
    let limit = match (repeated, cpu.rflags & flag::TF != 0) {
        (true, false) => BATCH,
        _ => 1,
    };
    for _ in 0..limit {
        if repeated && cpu.regs[gpr::RCX] & mask == 0 {
            return Ok(Flow::End);
        }
        let offset = cpu.regs[pointer] & mask;
        once(cpu, offset)?;
        let moved = if cpu.rflags & flag::DF != 0 {
            offset.wrapping_sub(size)
        } else {
            offset.wrapping_add(size)
        };
        set_masked(cpu, pointer, mask, moved);
        if repeated {
            let left = (cpu.regs[gpr::RCX] & mask).wrapping_sub(1);
            set_masked(cpu, gpr::RCX, mask, left);
        }
        if cpu.debug_hits != 0 {
            break;
        }
    }
    if repeated && cpu.regs[gpr::RCX] & mask != 0 {
        return Ok(Flow::Again);
    }
    Ok(Flow::End)
}

fn ins<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let mask = string_mask(op.insn().op0_kind());
    let port = cpu.regs[gpr::RDX] as u16;
    check(cpu, port, SIZE as u16)?;
    repeat(cpu, op, mask, gpr::RDI, SIZE as u64, |cpu, offset| {
        let at = cpu.linear_at(seg::ES, offset, SIZE as u64, true)?;
        // Faults come before the device is read.
        cpu.probe(at, SIZE as u64, true)?;
        let mut bytes = [0; SIZE];
        cpu.io_read(port, &mut bytes);
        watch(cpu, port, SIZE as u64);
        cpu.write_bytes(at, &bytes)
    })
}

fn outs<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let mask = string_mask(op.insn().op1_kind());
    let port = cpu.regs[gpr::RDX] as u16;
    check(cpu, port, SIZE as u16)?;
    let segment = op.insn().memory_segment().number() as u8;
    repeat(cpu, op, mask, gpr::RSI, SIZE as u64, |cpu, offset| {
        let at = cpu.linear_at(segment, offset, SIZE as u64, false)?;
        let mut bytes = [0; SIZE];
        cpu.read_bytes(at, &mut bytes)?;
        cpu.io_write(port, &bytes);
        watch(cpu, port, SIZE as u64);
        Ok(())
    })
}
