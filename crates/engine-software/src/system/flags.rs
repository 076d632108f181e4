//! Instructions on the flags register that are not arithmetic.

use iced_x86::{Code, Instruction};

use crate::cpu::{Cpu, flag, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};
use crate::word::Word;

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Cli => cli,
        Code::Sti => sti,
        Code::Clc => clc,
        Code::Stc => stc,
        Code::Cmc => cmc,
        Code::Cld => cld,
        Code::Std => std_,
        Code::Lahf => lahf,
        Code::Sahf => sahf,
        Code::Clac => clac,
        Code::Stac => stac,
        Code::Pushfw => pushf::<u16>,
        Code::Pushfd => pushf::<u32>,
        Code::Pushfq => pushf::<u64>,
        Code::Popfw => popf::<u16>,
        Code::Popfd => popf::<u32>,
        Code::Popfq => popf::<u64>,
        _ => return None,
    })
}

fn clc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags &= !flag::CF;
    Ok(Flow::Next)
}

fn stc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags |= flag::CF;
    Ok(Flow::Next)
}

fn cmc(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags ^= flag::CF;
    Ok(Flow::Next)
}

/// #GP(0) unless IF may be changed: CPL (3 in virtual-8086 mode) ≤ IOPL.
fn check_if(cpu: &mut Cpu) -> Exec {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn cli(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_if(cpu)?;
    cpu.rflags &= !flag::IF;
    Ok(Flow::Next)
}

fn sti(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_if(cpu)?;
    if cpu.rflags & flag::IF != 0 {
        return Ok(Flow::Next);
    }
    cpu.rflags |= flag::IF;
    cpu.shadow = true;
    cpu.recheck = true;
    Ok(Flow::End)
}

fn cld(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags &= !flag::DF;
    Ok(Flow::Next)
}

fn std_(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags |= flag::DF;
    Ok(Flow::Next)
}

/// The flags that LAHF and SAHF move.
const LOW: u64 = flag::SF | flag::ZF | flag::AF | flag::PF | flag::CF;

fn lahf(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let ah = cpu.rflags & LOW | flag::FIXED;
    cpu.regs[gpr::RAX] = cpu.regs[gpr::RAX] & !0xFF00 | ah << 8;
    Ok(Flow::Next)
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.rflags = cpu.rflags & !LOW | cpu.regs[gpr::RAX] >> 8 & LOW;
    Ok(Flow::Next)
}

fn clac(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    set_ac(cpu, 0)
}

fn stac(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    set_ac(cpu, flag::AC)
}

/// #UD outside CPL 0 (virtual-8086 mode included).
fn set_ac(cpu: &mut Cpu, ac: u64) -> Exec<Flow> {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.rflags = cpu.rflags & !flag::AC | ac;
    cpu.update_mode();
    Ok(Flow::Next)
}

/// #GP(0) in virtual-8086 mode with IOPL below 3.
fn check_vm86(cpu: &mut Cpu) -> Exec {
    if cpu.vm86() && cpu.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn pushf<T: Word>(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_vm86(cpu)?;
    let image = cpu.rflags & !(flag::VM | flag::RF);
    cpu.push(T::from_u64(image))?;
    Ok(Flow::Next)
}

fn popf<T: Word>(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    check_vm86(cpu)?;
    let popped = cpu.pop::<T>()?.to_u64();
    let mut mask = flag::ARITH | flag::TF | flag::DF | flag::NT;
    if T::SIZE > 2 {
        mask |= flag::AC | flag::ID;
    }
    if !cpu.protected() || cpu.cpl <= cpu.iopl() {
        mask |= flag::IF;
    }
    if cpu.cpl == 0 {
        mask |= flag::IOPL;
    }
    let old = cpu.rflags;
    let mut new = old & !mask | popped & mask | flag::FIXED;
    if T::SIZE > 2 {
        new &= !(flag::RF | flag::VIF | flag::VIP);
    }
    cpu.rflags = new;
    let changed = old ^ new;
    if changed & (flag::IF | flag::TF | flag::AC) == 0 {
        return Ok(Flow::Next);
    }
    cpu.update_mode();
    Ok(Flow::End)
}
