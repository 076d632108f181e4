//! Moves whose memory accesses depend on a mask: MASKMOVQ, MASKMOVDQU,
//! VMASKMOV, VPMASKMOV and the gathers.
//!
//! An element that its mask leaves out is not accessed and cannot fault.
//! Masked stores check all elements before the first is stored; a gather that
//! faults keeps the elements before, with their mask bits cleared (SDM
//! vol. 2, VGATHERDPD).

use iced_x86::{EncodingKind, Instruction, MemorySize, Mnemonic, OpCodeOperandKind, OpKind};

use super::Unit;
use crate::cpu::{Cpu, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op, op_flag};

/// Lowers them.
pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let (run, element): (Handler, u8) = match insn.mnemonic() {
        Mnemonic::Maskmovq => (maskmovq, 1),
        Mnemonic::Maskmovdqu => (maskmovdqu, 1),
        Mnemonic::Vmaskmovdqu => (vmaskmovdqu, 1),
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => (masked(insn), 4),
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => (masked(insn), 8),
        Mnemonic::Vgatherdps
        | Mnemonic::Vgatherdpd
        | Mnemonic::Vgatherqps
        | Mnemonic::Vgatherqpd
        | Mnemonic::Vpgatherdd
        | Mnemonic::Vpgatherdq
        | Mnemonic::Vpgatherqd
        | Mnemonic::Vpgatherqq
            if insn.encoding() == EncodingKind::VEX =>
        {
            let wide = matches!(
                insn.memory_size(),
                MemorySize::Float64 | MemorySize::Int64 | MemorySize::UInt64
            );
            (gather, if wide { 8 } else { 4 })
        }
        _ => return false,
    };
    op.run = run;
    op.aux = element;
    true
}

fn masked(insn: &Instruction) -> Handler {
    if insn.op0_kind() == OpKind::Memory {
        masked_store
    } else {
        masked_load
    }
}

/// Truncates an offset to the address size of `op`.
fn wrap(op: &Op, offset: u64) -> u64 {
    if op.has(op_flag::ADDR32) {
        offset & 0xFFFF_FFFF
    } else if op.has(op_flag::ADDR16) {
        offset & 0xFFFF
    } else {
        offset
    }
}

/// Linear address of the `size` bytes `distance` after the start of the
/// memory operand.
fn element_at(cpu: &mut Cpu, op: &Op, distance: u64, size: u64, write: bool) -> Exec<u64> {
    let offset = wrap(op, cpu.ea(op).wrapping_add(distance));
    cpu.linear_at(op.seg, offset, size, write)
}

fn number(insn: &Instruction, operand: u32) -> usize {
    insn.op_register(operand).number() & 15
}

fn sign(bytes: &[u8]) -> bool {
    bytes.last().is_some_and(|last| last & 0x80 != 0)
}

/// VMASKMOV, VPMASKMOV from memory: register, mask, memory.
fn masked_load(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let insn = op.insn();
    let element = usize::from(op.aux);
    let len = insn.op0_register().size().min(32);
    let mask = cpu.vector.ymm[number(insn, 1)];
    let mut result = [0; 32];
    for at in (0..len).step_by(element) {
        if sign(&mask[at..at + element]) {
            let linear = element_at(cpu, op, at as u64, element as u64, false)?;
            cpu.read_bytes(linear, &mut result[at..at + element])?;
        }
    }
    cpu.vector.ymm[number(insn, 0)] = result;
    Ok(Flow::Next)
}

/// VMASKMOV, VPMASKMOV to memory: memory, mask, register.
fn masked_store(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let insn = op.insn();
    let element = usize::from(op.aux);
    let len = insn.op2_register().size().min(32);
    let mask = cpu.vector.ymm[number(insn, 1)];
    let value = cpu.vector.ymm[number(insn, 2)];
    for store in [false, true] {
        for at in (0..len).step_by(element) {
            if !sign(&mask[at..at + element]) {
                continue;
            }
            let linear = element_at(cpu, op, at as u64, element as u64, true)?;
            if store {
                cpu.write_bytes(linear, &value[at..at + element])?;
            } else {
                cpu.probe_misaligned(linear, element as u64, true)?;
            }
        }
    }
    Ok(Flow::Next)
}

/// Stores the bytes of `value` whose bytes of `mask` are negative at DS:rDI.
fn store_bytes(cpu: &mut Cpu, op: &Op, value: &[u8], mask: &[u8]) -> Exec<Flow> {
    let insn = op.insn();
    let width = match insn.op0_kind() {
        OpKind::MemorySegDI => 0xFFFF,
        OpKind::MemorySegEDI => 0xFFFF_FFFF,
        _ => u64::MAX,
    };
    let segment = insn.memory_segment().number() as u8;
    let start = cpu.r64(gpr::RDI) & width;
    let len = value.len() as u64;
    // All of it must be there, whatever the mask (SDM vol. 2, MASKMOVDQU,
    // leaves that open).
    let linear = cpu.linear_at(segment, start, len, true)?;
    cpu.probe(linear, len, true)?;
    for (n, (byte, mask)) in value.iter().zip(mask).enumerate() {
        if mask & 0x80 != 0 {
            let offset = start.wrapping_add(n as u64) & width;
            let linear = cpu.linear_at(segment, offset, 1, true)?;
            cpu.write(linear, *byte)?;
        }
    }
    Ok(Flow::Next)
}

fn maskmovq(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Mmx)?;
    let insn = op.insn();
    cpu.vector.enter_mmx();
    let value = cpu.vector.mmx(insn.op1_register().number()).to_le_bytes();
    let mask = cpu.vector.mmx(insn.op2_register().number()).to_le_bytes();
    store_bytes(cpu, op, &value, &mask)
}

fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    store_xmm_bytes(cpu, op)
}

fn vmaskmovdqu(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    store_xmm_bytes(cpu, op)
}

fn store_xmm_bytes(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.vector.xmm(number(op.insn(), 1)).to_le_bytes();
    let mask = cpu.vector.xmm(number(op.insn(), 2)).to_le_bytes();
    store_bytes(cpu, op, &value, &mask)
}

/// Gathers: register, memory with vector index, mask register.
fn gather(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let insn = op.insn();
    if op.has(op_flag::ADDR16) {
        return Err(cpu.ud());
    }
    let element = usize::from(op.aux);
    let wide_index = matches!(
        insn.op_code().op_kind(1),
        OpCodeOperandKind::mem_vsib64x | OpCodeOperandKind::mem_vsib64y
    );
    let index_element = if wide_index { 8 } else { 4 };
    let index_register = insn.memory_index();
    let indices = cpu.vector.ymm[index_register.number() & 15];
    // As many elements as both the destination and the index register hold.
    let count = (insn.op0_register().size().min(32) / element)
        .min(index_register.size().min(32) / index_element);
    let (result, mask) = (number(insn, 0), number(insn, 2));
    let len = insn
        .op0_register()
        .size()
        .max(index_register.size())
        .min(32);
    // Every mask bit of an element becomes its sign; what lies beyond the
    // vector is cleared even if the first element faults.
    cpu.vector.ymm[mask][len..].fill(0);
    for n in 0..len / element {
        let lane = &mut cpu.vector.ymm[mask][n * element..(n + 1) * element];
        let fill = if sign(lane) { 0xFF } else { 0 };
        lane.fill(fill);
    }
    for n in 0..count {
        let lane = n * element..(n + 1) * element;
        if sign(&cpu.vector.ymm[mask][lane.clone()]) {
            let index = &indices[n * index_element..(n + 1) * index_element];
            let mut wide = [if sign(index) { 0xFF } else { 0 }; 8];
            wide[..index_element].copy_from_slice(index);
            let distance = u64::from_le_bytes(wide).wrapping_mul(insn.memory_index_scale().into());
            let linear = element_at(cpu, op, distance, element as u64, false)?;
            let mut value = [0; 8];
            let value = &mut value[..element];
            cpu.read_bytes(linear, value)?;
            cpu.vector.ymm[result][lane.clone()].copy_from_slice(value);
            cpu.vector.ymm[result][len..].fill(0);
        }
        cpu.vector.ymm[mask][lane].fill(0);
    }
    cpu.vector.ymm[mask].fill(0);
    cpu.vector.ymm[result][count * element..].fill(0);
    Ok(Flow::Next)
}
