//! What the TLB may keep and what must drop it (SDM vol. 3, 5.10).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::page::{G, P, W};
use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, check_eq};

guests! { "translations":
    invlpg_and_cr3 [],
    global_pages [],
    process_context_identifiers [Iret],
    invpcid [Iret],
    faults_need_no_invalidation [Iret],
    users_jumps_to_nowhere [Iret],
    translate_for_the_debugger [],
}

const PAGE: u64 = 0x10_0000;
const FIRST: u64 = 0x10_1000;
const SECOND: u64 = 0x10_2000;

fn two_pages(engine: &dyn Engine) -> Result<Machine, crate::Failure> {
    let m = Machine::long(engine)?;
    m.put(FIRST, 1)?;
    m.put(SECOND, 2)?;
    m.map(PAGE, FIRST | P | W)?;
    Ok(m)
}

fn invlpg_and_cr3(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    m.program(|p| {
        p.mov(rbx, qword_ptr(PAGE))?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (SECOND | P | W) as i32)?;
        p.invlpg(byte_ptr(PAGE + 0x123))?;
        p.mov(rax, qword_ptr(PAGE))?;
        p.put(0, rax)?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (FIRST | P | W) as i32)?;
        p.mov(rax, cr3)?;
        p.mov(cr3, rax)?;
        p.mov(rax, qword_ptr(PAGE))?;
        p.put(1, rax)?;
        // INVLPG of an address that cannot be is a NOP.
        p.mov(rax, 0x8000_0000_0000u64)?;
        p.invlpg(byte_ptr(rax))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 2, "after INVLPG");
    check_eq!(m.slot(1)?, 1, "after MOV to CR3");
    Ok(())
}

fn global_pages(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    m.map(PAGE, FIRST | P | W | G)?;
    m.program(|p| {
        p.mov(rax, qword_ptr(PAGE))?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (SECOND | P | W | G) as i32)?;
        // INVLPG drops global translations too.
        p.invlpg(byte_ptr(PAGE))?;
        p.mov(rax, qword_ptr(PAGE))?;
        p.put(0, rax)?;
        // So does a change of CR4.PGE.
        p.mov(qword_ptr(Machine::pte(PAGE)), (FIRST | P | W | G) as i32)?;
        p.mov(rax, cr4)?;
        p.btc(rax, 7)?;
        p.mov(cr4, rax)?;
        p.mov(rbx, qword_ptr(PAGE))?;
        p.put(1, rbx)?;
        // Without PGE the bit means nothing.
        p.mov(qword_ptr(Machine::pte(PAGE)), (SECOND | P | W | G) as i32)?;
        p.mov(rbx, cr3)?;
        p.mov(cr3, rbx)?;
        p.mov(rbx, qword_ptr(PAGE))?;
        p.put(2, rbx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 2, "after INVLPG");
    check_eq!(m.slot(1)?, 1, "after CR4.PGE changed");
    check_eq!(m.slot(2)?, 2, "after MOV to CR3 without PGE");
    Ok(())
}

fn has_pcid(m: &Machine) -> bool {
    m.profile
        .leaf(1, 0)
        .is_some_and(|leaf| leaf.ecx & 1 << 17 != 0)
}

fn process_context_identifiers(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    if !has_pcid(&m) {
        return Ok(());
    }
    m.program(|p| {
        // PCIDE needs CR3[11:0] = 0.
        p.mov(rax, cr3)?;
        p.or(rax, 5)?;
        p.mov(cr3, rax)?;
        p.mov(rbx, cr4)?;
        p.bts(rbx, 17)?;
        p.gp(0, |a| a.mov(cr4, rbx))?;
        p.and(rax, -0x1000)?;
        p.mov(cr3, rax)?;
        p.mov(cr4, rbx)?;
        // The first use of PCID 5.
        p.mov(rax, PML4 | 5)?;
        p.mov(cr3, rax)?;
        p.mov(rcx, cr3)?;
        p.put(0, rcx)?;
        p.mov(rcx, qword_ptr(PAGE))?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (SECOND | P | W) as i32)?;
        // Without bit 63 a switch drops what the new PCID had.
        p.mov(cr3, rax)?;
        p.mov(rcx, qword_ptr(PAGE))?;
        p.put(1, rcx)?;
        // Bit 63 is not kept, and other PCIDs see the tables as they are.
        p.mov(rax, 1u64 << 63 | PML4 | 6)?;
        p.mov(cr3, rax)?;
        p.mov(rcx, cr3)?;
        p.put(2, rcx)?;
        p.mov(rcx, qword_ptr(PAGE))?;
        p.put(3, rcx)?;
        // Paging cannot go while PCIDs are in use.
        p.mov(rax, cr0)?;
        p.btr(rax, 31)?;
        p.gp(0, |a| a.mov(cr0, rax))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, PML4 | 5, "CR3 with a PCID");
    check_eq!(m.slot(1)?, 2, "after a flushing MOV to CR3");
    check_eq!(m.slot(2)?, PML4 | 6, "CR3 without bit 63");
    check_eq!(m.slot(3)?, 2, "another PCID");
    Ok(())
}

fn invpcid(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    let announced = |leaf: &croft_engine::CpuidLeaf| leaf.ebx & 1 << 10 != 0;
    if !has_pcid(&m) || !m.profile.leaf(7, 0).is_some_and(announced) {
        return Ok(());
    }
    m.state(|state| state.cr4 |= creg::PCIDE)?;
    // Descriptors: PCID 5 with PAGE, PCID 0 alone, one with a reserved bit.
    for (n, pcid, address) in [(0, 5, PAGE), (1, 0, 0), (2, 1 << 12, 0)] {
        m.put(DATA + 16 * n, pcid)?;
        m.put(DATA + 16 * n + 8, address)?;
    }
    m.program(|p| {
        p.mov(rax, PML4 | 5)?;
        p.mov(cr3, rax)?;
        for (n, (kind, target)) in [(0, SECOND), (1, FIRST), (2, SECOND), (3, FIRST)]
            .into_iter()
            .enumerate()
        {
            p.mov(rcx, qword_ptr(PAGE))?;
            p.mov(qword_ptr(Machine::pte(PAGE)), (target | P | W) as i32)?;
            p.mov(eax, kind)?;
            p.invpcid(rax, xmmword_ptr(DATA))?;
            p.mov(rcx, qword_ptr(PAGE))?;
            p.put(n as u64, rcx)?;
        }
        p.mov(eax, 4)?;
        p.gp(0, |a| a.invpcid(rax, xmmword_ptr(DATA)))?;
        p.mov(eax, 1)?;
        p.gp(0, |a| a.invpcid(rax, xmmword_ptr(DATA + 32)))?;
        p.user(|p| p.gp(0, |a| a.invpcid(rax, xmmword_ptr(ALIAS + DATA))))?;
        p.done()
    })?;
    m.run()?;
    for (n, wanted) in [2, 1, 2, 1].into_iter().enumerate() {
        check_eq!(m.slot(n as u64)?, wanted, "after INVPCID type {n}");
    }
    Ok(())
}

fn faults_need_no_invalidation(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    m.map(PAGE, 0)?;
    m.program(|p| {
        // Absent is never cached, and more rights take effect after the
        // fault that lacked them.
        p.pf(0, PAGE, |a| a.mov(rax, qword_ptr(PAGE)))?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (FIRST | P) as i32)?;
        p.mov(rax, qword_ptr(PAGE))?;
        p.pf(3, PAGE, |a| a.mov(qword_ptr(PAGE), rax))?;
        p.mov(qword_ptr(Machine::pte(PAGE)), (FIRST | P | W) as i32)?;
        p.mov(qword_ptr(PAGE), 9)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(FIRST)?, 9, "store after the page became writable");
    Ok(())
}

/// A jump whose target is not canonical faults, whatever an engine remembers of
/// jumps to the target's low bits and of the address spaces they were made in.
fn users_jumps_to_nowhere(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let (mut target, mut again) = (p.create_label(), p.create_label());
        let mut behind = p.create_label();
        p.xor(r13d, r13d)?;
        p.user(|p| {
            p.lea(rax, ptr(target))?;
            p.lea(r14, ptr(behind))?;
            p.mov(ecx, 4)?;
            p.set_label(&mut again)?;
            p.jmp(rax)?;
            p.set_label(&mut target)?;
            p.inc(r13)?;
            p.jmp(r14)?;
            p.set_label(&mut behind)?;
            p.dec(ecx)?;
            p.jne(again)
        })?;
        p.put(0, r13)?;
        p.mov(rbx, cr3)?;
        p.mov(cr3, rbx)?;
        p.user(|p| {
            for bits in (1..32u64).chain((5..16).map(|n| 1 << n)) {
                p.mov(rbx, bits << 48)?;
                p.xor(rbx, rax)?;
                p.gp(0, |a| a.jmp(rbx))?;
            }
            Ok(())
        })?;
        p.put(1, r13)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 4, "jumps that lead somewhere");
    check_eq!(m.slot(1)?, 4, "jumps after the change of address space");
    Ok(())
}

fn translate_for_the_debugger(engine: &dyn Engine) -> Outcome {
    let mut m = two_pages(engine)?;
    m.map(FIRST, FIRST | P | page::NX)?;
    m.map(SECOND, 0)?;
    m.program(|p| p.done())?;
    m.run()?;
    let before = m.get(Machine::pte(FIRST))?;
    let vcpu = m.vcpu(0)?;
    let page = vcpu.translate(PAGE + 5);
    let Some(page) = page else {
        return Err(crate::Failure::Differs("PAGE does not translate".into()));
    };
    check_eq!(page.physical, FIRST + 5, "physical address");
    check_eq!(
        (page.writable, page.executable, page.user),
        (true, true, false),
        "rights"
    );
    let Some(page) = vcpu.translate(FIRST) else {
        return Err(crate::Failure::Differs("FIRST does not translate".into()));
    };
    check_eq!((page.writable, page.executable), (false, false), "rights");
    check_eq!(vcpu.translate(SECOND), None, "an absent page");
    check_eq!(vcpu.translate(1 << 60), None, "a non-canonical address");
    let Some(page) = vcpu.translate(ALIAS + DATA) else {
        return Err(crate::Failure::Differs(
            "the alias does not translate".into(),
        ));
    };
    check_eq!((page.physical, page.user), (DATA, true), "the alias");
    check_eq!(m.get(Machine::pte(FIRST))?, before, "the entry");
    Ok(())
}
