//! MOVS STOS LODS CMPS SCAS, with and without repetition.
//!
//! Every iteration commits its registers before the next one starts, so that
//! a fault or an interrupt between two leaves a state to continue from. Long
//! repetitions yield now and then ([`Flow::Again`]) so that interrupts wait
//! for microseconds, not for megabytes. MOVS and STOS going up run a page's
//! worth at a time on host memory, by the host's own `rep`.

use iced_x86::{Instruction, Mnemonic, Register};

use super::host::Int;
use super::operand::{NEXT, sized};
use crate::cpu::flag::{AC, DF, ZF};
use crate::cpu::{Cpu, gpr, seg};
use crate::fault::Exec;
use crate::op::{Flow, Op, op_flag};

/// Bytes or elements after which a repetition looks for events.
const YIELD_AFTER: u64 = 64 * 1024;

/// How much of RSI, RDI and RCX counts: the address size.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    if op.has(op_flag::ADDR32) {
        0xFFFF_FFFF
    } else if op.has(op_flag::ADDR16) {
        0xFFFF
    } else {
        u64::MAX
    }
}

/// Adds to a register what the address size covers of it.
#[inline(always)]
fn advance(cpu: &mut Cpu, mask: u64, register: usize, by: u64) {
    let value = cpu.r64(register).wrapping_add(by);
    let value = match mask {
        0xFFFF => cpu.r64(register) & !0xFFFF | value & 0xFFFF,
        mask => value & mask,
    };
    cpu.set_r64(register, value);
}

#[inline(always)]
fn step<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.rflags & DF != 0 {
        T::SIZE.wrapping_neg()
    } else {
        T::SIZE
    }
}

/// Runs `once` as often as the prefix and RCX say. `once` returns how many
/// elements it did and whether a conditional repetition goes on.
#[inline(always)]
fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    mut once: impl FnMut(&mut Cpu, u64, u64) -> Exec<(u64, bool)>,
) -> Exec<Flow> {
    let mask = mask(op);
    if !op.has(op_flag::REP | op_flag::REPNE) {
        once(cpu, mask, 1)?;
        return NEXT;
    }
    let mut budget = YIELD_AFTER;
    loop {
        let left = cpu.r64(gpr::RCX) & mask;
        if left == 0 {
            if mask == 0xFFFF_FFFF {
                // The 32-bit count register is written back even if zero.
                let count = cpu.r64(gpr::RCX);
                cpu.set_r64(gpr::RCX, count & mask);
            }
            return NEXT;
        }
        let (done, go_on) = once(cpu, mask, left)?;
        advance(cpu, mask, gpr::RCX, done.wrapping_neg());
        if !go_on {
            return NEXT;
        }
        budget = budget.saturating_sub(done.max(1));
        if budget == 0 || cpu.single || cpu.recheck {
            return Ok(if cpu.r64(gpr::RCX) & mask == 0 {
                Flow::Next
            } else {
                Flow::Again
            });
        }
    }
}

/// Elements of `T` from `linear` to the end of its page.
#[inline(always)]
fn room<T: Int>(linear: u64) -> u64 {
    (0x1000 - (linear & 0xFFF)) / T::SIZE
}

/// Elements that a bulk step may do at `offset` without leaving the address
/// size or the segment's limit unchecked: all of them in 64-bit addressing.
#[inline(always)]
fn bulk_allowed<T: Int>(cpu: &Cpu, op: &Op) -> bool {
    // In user code AC may ask for aligned elements.
    let any_place = T::SIZE == 1 || cpu.cpl != 3 || cpu.rflags & AC == 0;
    any_place && cpu.rflags & DF == 0 && cpu.code64() && !op.has(op_flag::ADDR32) && !cpu.single
}

fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    repeat(cpu, op, |cpu, mask, left| {
        let (rsi, rdi) = (cpu.r64(gpr::RSI) & mask, cpu.r64(gpr::RDI) & mask);
        let from = cpu.linear_at(op.seg, rsi, T::SIZE, false)?;
        if left > 1 && bulk_allowed::<T>(cpu, op) {
            let count = left.min(room::<T>(from)).min(room::<T>(rdi));
            if count > 1
                && let Some(source) = cpu.direct(from, count * T::SIZE, false)?
                && let Some(target) = cpu.direct(rdi, count * T::SIZE, true)?
            {
                // SAFETY: both ranges lie in one page of guest RAM each; they
                // may overlap, and the host's `rep movs` copies in the same
                // order as the guest's.
                unsafe { host_movs::<T>(source.host, target.host, count) };
                cpu.stored(&target, count * T::SIZE);
                advance(cpu, mask, gpr::RSI, count * T::SIZE);
                advance(cpu, mask, gpr::RDI, count * T::SIZE);
                return Ok((count, true));
            }
        }
        let value = cpu.read::<T>(from)?;
        let to = cpu.linear_at(seg::ES, rdi, T::SIZE, true)?;
        cpu.write(to, value)?;
        let step = step::<T>(cpu);
        advance(cpu, mask, gpr::RSI, step);
        advance(cpu, mask, gpr::RDI, step);
        Ok((1, true))
    })
}

fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    repeat(cpu, op, |cpu, mask, left| {
        let rdi = cpu.r64(gpr::RDI) & mask;
        let value = cpu.get::<T>(gpr::RAX as u8 * 8);
        if left > 1 && bulk_allowed::<T>(cpu, op) {
            let count = left.min(room::<T>(rdi));
            if count > 1
                && let Some(target) = cpu.direct(rdi, count * T::SIZE, true)?
            {
                // SAFETY: the range lies in one page of guest RAM.
                unsafe { host_stos::<T>(target.host, value.to_u64(), count) };
                cpu.stored(&target, count * T::SIZE);
                advance(cpu, mask, gpr::RDI, count * T::SIZE);
                return Ok((count, true));
            }
        }
        let to = cpu.linear_at(seg::ES, rdi, T::SIZE, true)?;
        cpu.write(to, value)?;
        let step = step::<T>(cpu);
        advance(cpu, mask, gpr::RDI, step);
        Ok((1, true))
    })
}

fn lods<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    repeat(cpu, op, |cpu, mask, _| {
        let rsi = cpu.r64(gpr::RSI) & mask;
        let from = cpu.linear_at(op.seg, rsi, T::SIZE, false)?;
        let value = cpu.read::<T>(from)?;
        cpu.put(gpr::RAX as u8 * 8, value);
        let step = step::<T>(cpu);
        advance(cpu, mask, gpr::RSI, step);
        Ok((1, true))
    })
}

/// [`repeat`] for comparisons: a fault leaves the flags of before (SDM vol. 2,
/// REP), and so does what comes between two iterations.
#[inline(always)]
fn compare(
    cpu: &mut Cpu,
    op: &Op,
    once: impl FnMut(&mut Cpu, u64, u64) -> Exec<(u64, bool)>,
) -> Exec<Flow> {
    let before = cpu.rflags;
    let done = repeat(cpu, op, once);
    if matches!(done, Err(_) | Ok(Flow::Again)) {
        cpu.rflags = before;
    }
    done
}

/// Whether REPE or REPNE goes on after a comparison.
#[inline(always)]
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    (cpu.rflags & ZF != 0) == op.has(op_flag::REP)
}

fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    compare(cpu, op, |cpu, mask, _| {
        let (rsi, rdi) = (cpu.r64(gpr::RSI) & mask, cpu.r64(gpr::RDI) & mask);
        let from = cpu.linear_at(op.seg, rsi, T::SIZE, false)?;
        let a = cpu.read::<T>(from)?;
        let other = cpu.linear_at(seg::ES, rdi, T::SIZE, false)?;
        let b = cpu.read::<T>(other)?;
        T::sub(a, b, &mut cpu.rflags);
        let step = step::<T>(cpu);
        advance(cpu, mask, gpr::RSI, step);
        advance(cpu, mask, gpr::RDI, step);
        Ok((1, goes_on(cpu, op)))
    })
}

fn scas<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    compare(cpu, op, |cpu, mask, _| {
        let rdi = cpu.r64(gpr::RDI) & mask;
        let at = cpu.linear_at(seg::ES, rdi, T::SIZE, false)?;
        let b = cpu.read::<T>(at)?;
        let a = cpu.get::<T>(gpr::RAX as u8 * 8);
        T::sub(a, b, &mut cpu.rflags);
        let step = step::<T>(cpu);
        advance(cpu, mask, gpr::RDI, step);
        Ok((1, goes_on(cpu, op)))
    })
}

/// # Safety
/// `count` elements of `T` must be mapped at both addresses.
#[inline(always)]
unsafe fn host_movs<T: Int>(from: *const u8, to: *mut u8, count: u64) {
    macro_rules! rep {
        ($insn:literal) => {
            std::arch::asm!(
                $insn,
                inout("rsi") from => _,
                inout("rdi") to => _,
                inout("rcx") count => _,
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: the caller's; Rust keeps DF clear.
    unsafe {
        match T::SIZE {
            1 => rep!("rep movsb"),
            2 => rep!("rep movsw"),
            4 => rep!("rep movsd"),
            _ => rep!("rep movsq"),
        }
    }
}

/// # Safety
/// `count` elements of `T` must be mapped and writable at `to`.
#[inline(always)]
unsafe fn host_stos<T: Int>(to: *mut u8, value: u64, count: u64) {
    macro_rules! rep {
        ($insn:literal) => {
            std::arch::asm!(
                $insn,
                in("rax") value,
                inout("rdi") to => _,
                inout("rcx") count => _,
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: the caller's; Rust keeps DF clear.
    unsafe {
        match T::SIZE {
            1 => rep!("rep stosb"),
            2 => rep!("rep stosw"),
            4 => rep!("rep stosd"),
            _ => rep!("rep stosq"),
        }
    }
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    if !insn.is_string_instruction() {
        return false;
    }
    let size = match insn.mnemonic() {
        Movsb | Stosb | Lodsb | Cmpsb | Scasb => 1,
        Movsw | Stosw | Lodsw | Cmpsw | Scasw => 2,
        Movsd | Stosd | Lodsd | Cmpsd | Scasd => 4,
        Movsq | Stosq | Lodsq | Cmpsq | Scasq => 8,
        _ => return false,
    };
    op.run = match insn.mnemonic() {
        Movsb | Movsw | Movsd | Movsq => sized!(size, T => movs::<T>),
        Stosb | Stosw | Stosd | Stosq => sized!(size, T => stos::<T>),
        Lodsb | Lodsw | Lodsd | Lodsq => sized!(size, T => lods::<T>),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => sized!(size, T => cmps::<T>),
        _ => sized!(size, T => scas::<T>),
    };
    // Only the source's segment can be overridden.
    op.seg = match insn.memory_segment() {
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ if op.has(op_flag::CODE64) => seg::DS,
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        _ => seg::DS,
    };
    true
}
