//! The commonest vector moves and logic, in Rust: cheaper than a stub.
//!
//! `op.dst` and `op.src` are vector register numbers here (general registers
//! are byte offsets in `Cpu::regs` as everywhere), `op.aux` is the required
//! alignment less one.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_or_si128,
    _mm_storeu_si128, _mm_xor_si128,
};

use iced_x86::{Code, Instruction, OpKind, Register};

use super::Unit;
use crate::cpu::Cpu;
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op, reg_offset};

/// XMM register `n`. Vector types rather than integers: a register that was
/// stored in two halves and is loaded whole stalls the host.
#[inline(always)]
fn get(cpu: &Cpu, n: u8) -> __m128i {
    let low = cpu.vector.ymm[usize::from(n & 15)].as_ptr();
    // SAFETY: 16 of the 32 bytes there.
    unsafe { _mm_loadu_si128(low.cast()) }
}

/// Writes XMM register `n`; the upper half stays.
#[inline(always)]
fn set(cpu: &mut Cpu, n: u8, value: __m128i) {
    let low = cpu.vector.ymm[usize::from(n & 15)].as_mut_ptr();
    // SAFETY: 16 of the 32 bytes there.
    unsafe { _mm_storeu_si128(low.cast(), value) };
}

/// The low quadword.
#[inline(always)]
fn low(cpu: &Cpu, n: u8) -> u64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_cvtsi128_si64(get(cpu, n)) as u64 }
}

/// Writes the low quadword and clears the high one.
#[inline(always)]
fn set_low(cpu: &mut Cpu, n: u8, value: u64) {
    // SAFETY: SSE2 is part of x86-64.
    let value = unsafe { _mm_cvtsi64_si128(value as i64) };
    set(cpu, n, value);
}

/// Reads 16 bytes of guest memory.
#[inline(always)]
fn fetch(cpu: &mut Cpu, linear: u64) -> Exec<__m128i> {
    let value: __m128i;
    if let Some(direct) = cpu.direct(linear, 16, false)? {
        // SAFETY: `direct` says that the bytes are there. Assembly, because
        // others may change them meanwhile.
        unsafe {
            asm!("movups {value}, [{host}]", value = out(xmm_reg) value,
                host = in(reg) direct.host, options(nostack, preserves_flags, readonly));
        }
    } else {
        let mut bytes = [0u8; 16];
        cpu.read_bytes(linear, &mut bytes)?;
        // SAFETY: 16 bytes are there.
        value = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    }
    Ok(value)
}

/// Writes 16 bytes of guest memory.
#[inline(always)]
fn put(cpu: &mut Cpu, linear: u64, value: __m128i) -> Exec {
    if let Some(direct) = cpu.direct(linear, 16, true)? {
        // SAFETY: `direct` says that the bytes are there, writable.
        unsafe {
            asm!("movups [{host}], {value}", value = in(xmm_reg) value,
                host = in(reg) direct.host, options(nostack, preserves_flags));
        }
        cpu.stored(&direct, 16);
        return Ok(());
    }
    let mut bytes = [0u8; 16];
    // SAFETY: 16 bytes are there.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) };
    cpu.write_bytes(linear, &bytes)
}

#[inline(always)]
fn place(cpu: &mut Cpu, op: &Op, size: u64, write: bool) -> Exec<u64> {
    let linear = cpu.linear(op, size, write)?;
    if linear & u64::from(op.aux) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(linear)
}

fn load128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = place(cpu, op, 16, false)?;
    let value = fetch(cpu, linear)?;
    set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn store128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = place(cpu, op, 16, true)?;
    let value = get(cpu, op.src);
    put(cpu, linear, value)?;
    Ok(Flow::Next)
}

fn move128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let value = get(cpu, op.src);
    set(cpu, op.dst, value);
    Ok(Flow::Next)
}

/// MOVD, MOVQ, MOVSS, MOVSD from memory: the rest of the register is cleared.
fn load32(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = cpu.linear(op, 4, false)?;
    let value: u32 = cpu.read(linear)?;
    set_low(cpu, op.dst, value.into());
    Ok(Flow::Next)
}

fn load64(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = cpu.linear(op, 8, false)?;
    let value: u64 = cpu.read(linear)?;
    set_low(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn store32(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = cpu.linear(op, 4, true)?;
    let value = low(cpu, op.src) as u32;
    cpu.write(linear, value)?;
    Ok(Flow::Next)
}

fn store64(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let linear = cpu.linear(op, 8, true)?;
    let value = low(cpu, op.src);
    cpu.write(linear, value)?;
    Ok(Flow::Next)
}

/// General register `op.src` to XMM register.
fn from_general32(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let value = cpu.r64(usize::from(op.src / 8)) as u32;
    set_low(cpu, op.dst, value.into());
    Ok(Flow::Next)
}

fn from_general64(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let value = cpu.r64(usize::from(op.src / 8));
    set_low(cpu, op.dst, value);
    Ok(Flow::Next)
}

/// XMM register to general register `op.dst`.
fn to_general32(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let value = low(cpu, op.src) as u32;
    cpu.set_r32(usize::from(op.dst / 8), value);
    Ok(Flow::Next)
}

fn to_general64(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    let value = low(cpu, op.src);
    cpu.set_r64(usize::from(op.dst / 8), value);
    Ok(Flow::Next)
}

fn xor128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    // SAFETY: SSE2 is part of x86-64.
    let value = unsafe { _mm_xor_si128(get(cpu, op.dst), get(cpu, op.src)) };
    set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn and128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    // SAFETY: SSE2 is part of x86-64.
    let value = unsafe { _mm_and_si128(get(cpu, op.dst), get(cpu, op.src)) };
    set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn or128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Sse)?;
    // SAFETY: SSE2 is part of x86-64.
    let value = unsafe { _mm_or_si128(get(cpu, op.dst), get(cpu, op.src)) };
    set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn vex_load128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let linear = place(cpu, op, 16, false)?;
    let value = fetch(cpu, linear)?;
    set(cpu, op.dst, value);
    cpu.vector.clear_upper(op.dst.into());
    Ok(Flow::Next)
}

fn vex_store128(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let linear = place(cpu, op, 16, true)?;
    let value = get(cpu, op.src);
    put(cpu, linear, value)?;
    Ok(Flow::Next)
}

/// The handlers of an instruction by its operands (registers, load, store),
/// and the required alignment less one.
struct Forms(Option<Handler>, Option<Handler>, Option<Handler>, u8);

fn forms(code: Code) -> Forms {
    let none = Forms(None, None, None, 0);
    let moves = |registers, load: Handler, store: Handler, align| {
        Forms(registers, Some(load), Some(store), align)
    };
    let logic = |registers: Handler| Forms(Some(registers), None, None, 0);
    match code {
        Code::Movups_xmm_xmmm128
        | Code::Movups_xmmm128_xmm
        | Code::Movupd_xmm_xmmm128
        | Code::Movupd_xmmm128_xmm
        | Code::Movdqu_xmm_xmmm128
        | Code::Movdqu_xmmm128_xmm => moves(Some(move128), load128, store128, 0),
        Code::Movaps_xmm_xmmm128
        | Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmm_xmmm128
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmm_xmmm128
        | Code::Movdqa_xmmm128_xmm => moves(Some(move128), load128, store128, 15),
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => moves(None, load32, store32, 0),
        Code::Movsd_xmm_xmmm64
        | Code::Movsd_xmmm64_xmm
        | Code::Movq_xmm_xmmm64
        | Code::Movq_xmmm64_xmm => moves(None, load64, store64, 0),
        Code::Movd_xmm_rm32 => moves(Some(from_general32), load32, store32, 0),
        Code::Movq_xmm_rm64 => moves(Some(from_general64), load64, store64, 0),
        Code::Movd_rm32_xmm => moves(Some(to_general32), load32, store32, 0),
        Code::Movq_rm64_xmm => moves(Some(to_general64), load64, store64, 0),
        Code::VEX_Vmovups_xmm_xmmm128
        | Code::VEX_Vmovups_xmmm128_xmm
        | Code::VEX_Vmovdqu_xmm_xmmm128
        | Code::VEX_Vmovdqu_xmmm128_xmm => moves(None, vex_load128, vex_store128, 0),
        Code::VEX_Vmovaps_xmm_xmmm128
        | Code::VEX_Vmovaps_xmmm128_xmm
        | Code::VEX_Vmovdqa_xmm_xmmm128
        | Code::VEX_Vmovdqa_xmmm128_xmm => moves(None, vex_load128, vex_store128, 15),
        Code::Pxor_xmm_xmmm128 | Code::Xorps_xmm_xmmm128 | Code::Xorpd_xmm_xmmm128 => logic(xor128),
        Code::Pand_xmm_xmmm128 | Code::Andps_xmm_xmmm128 | Code::Andpd_xmm_xmmm128 => logic(and128),
        Code::Por_xmm_xmmm128 | Code::Orps_xmm_xmmm128 | Code::Orpd_xmm_xmmm128 => logic(or128),
        _ => none,
    }
}

/// Lowers them.
pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    let Forms(registers, load, store, align) = forms(insn.code());
    let run = match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => registers,
        (OpKind::Register, OpKind::Memory) => load,
        (OpKind::Memory, OpKind::Register) => store,
        _ => None,
    };
    let Some(run) = run else {
        return false;
    };
    let number = |register: Register| {
        if register.is_vector_register() {
            register.number() as u8
        } else {
            reg_offset(register)
        }
    };
    op.run = run;
    if insn.op0_kind() == OpKind::Register {
        op.dst = number(insn.op0_register());
    }
    if insn.op1_kind() == OpKind::Register {
        op.src = number(insn.op1_register());
    }
    op.aux = align;
    true
}
