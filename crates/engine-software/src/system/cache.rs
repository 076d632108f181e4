//! Caches, TLB, ordering. Data caches are the host's and always coherent, so
//! the cache instructions only check what they would access.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, cr4};
use crate::cpuid::is_spare_nop;
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};

pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    if is_spare_nop(insn.code()) {
        return Some(nop);
    }
    Some(match insn.mnemonic() {
        Mnemonic::Invlpg => invlpg,
        Mnemonic::Invpcid => invpcid,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => privileged_nop,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => clflush,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => fence_all,
        Mnemonic::Serialize => serialize,
        Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Reservednop
        | Mnemonic::Nop => nop,
        _ => return None,
    })
}

fn nop(_: &mut Cpu, _: &Op) -> Exec<Flow> {
    Ok(Flow::Next)
}

fn fence_all(_: &mut Cpu, _: &Op) -> Exec<Flow> {
    fence(Ordering::SeqCst);
    Ok(Flow::Next)
}

fn serialize(_: &mut Cpu, _: &Op) -> Exec<Flow> {
    fence(Ordering::SeqCst);
    Ok(Flow::End)
}

fn privileged_nop(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    Ok(Flow::Next)
}

/// A read as far as faults go.
fn clflush(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let at = cpu.linear(op, 1, false)?;
    cpu.probe(at, 1, false)?;
    Ok(Flow::Next)
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    let linear = cpu.unchecked_linear(op);
    cpu.flush_tlb_page(linear);
    Ok(Flow::End)
}

/// SDM vol. 2, INVPCID. Types that name one address space may only name 0
/// while CR4.PCIDE is clear.
fn invpcid(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_cpl0()?;
    let kind = cpu.register(op.insn().op0_register());
    let at = cpu.linear(op, 16, false)?;
    let mut bytes = [0; 16];
    cpu.read_bytes(at, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let one_space = kind <= 1;
    let bad = kind > 3
        || one_space && (pcid >> 12 != 0 || cpu.cr4 & cr4::PCIDE == 0 && pcid != 0)
        || kind == 0 && !cpu.canonical(address);
    if bad {
        return Err(cpu.gp(0));
    }
    match kind {
        0 if pcid as u16 == cpu.pcid() => cpu.flush_tlb_page(address),
        0 | 1 => cpu.flush_tlb_pcid(pcid as u16),
        _ => cpu.flush_tlb(),
    }
    Ok(Flow::End)
}
