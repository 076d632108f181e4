//! Code that changes while it runs.

use std::time::Duration;

use croft_engine::{Engine, Stop};
use iced_x86::code_asm::*;

use crate::layout::page::{P, W};
use crate::layout::*;
use crate::machine::Machine;
use crate::program::Program;
use crate::{Outcome, check, check_eq};

guests! { "code":
    next_instruction [],
    through_an_alias [],
    on_another_page [],
    across_pages [],
    across_pages_that_change_places [],
    across_pages_of_two_mappings [],
    by_string_store [],
    by_remapping [],
    by_a_device_while_it_runs [],
    by_a_device_between_runs [],
    data_beside_code [],
}

/// Emits `MOV EAX, 9` whose immediate a store replaces before it executes;
/// `far` is added to the address of the store. Through another address only
/// a serialising instruction makes a processor see it (SDM vol. 3, 8.1.3);
/// writing CR3 is one.
fn patch_ahead(m: &mut Machine, far: u64) -> Outcome {
    m.program(|p| {
        let mut target = p.create_label();
        p.lea(rbx, ptr(target))?;
        p.add(rbx, far as i32)?;
        p.xor(edx, edx)?;
        p.mov(ecx, 3)?;
        let mut again = p.create_label();
        p.set_label(&mut again)?;
        p.mov(dword_ptr(rbx + 1), ecx)?;
        if far != 0 {
            p.mov(rax, cr3)?;
            p.mov(cr3, rax)?;
        }
        p.set_label(&mut target)?;
        p.mov(eax, 9)?;
        p.add(rdx, rax)?;
        p.dec(ecx)?;
        p.jne(again)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 3 + 2 + 1, "sum of the patched immediates");
    Ok(())
}

fn next_instruction(engine: &dyn Engine) -> Outcome {
    patch_ahead(&mut Machine::long(engine)?, 0)
}

fn through_an_alias(engine: &dyn Engine) -> Outcome {
    patch_ahead(&mut Machine::long(engine)?, ALIAS)
}

/// A function that returns its immediate.
fn function(value: u32) -> [u8; 6] {
    let v = value.to_le_bytes();
    [0xB8, v[0], v[1], v[2], v[3], 0xC3]
}

fn on_another_page(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.ram.write(CODE2, &function(1))?;
    m.program(|p| {
        p.mov(ebx, CODE2 as i32)?;
        p.call(rbx)?;
        p.mov(edx, eax)?;
        p.mov(byte_ptr(CODE2 + 1), 5)?;
        p.call(rbx)?;
        p.add(rdx, rax)?;
        p.add(byte_ptr(ALIAS + CODE2 + 1), 2)?;
        p.call(rbx)?;
        p.add(rdx, rax)?;
        p.mov(eax, 9)?;
        p.xchg(byte_ptr(CODE2 + 1), al)?;
        p.call(rbx)?;
        p.add(rdx, rax)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1 + 5 + 7 + 9, "sum of what the function said");
    Ok(())
}

fn across_pages(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    // The immediate lies on the second page.
    let start = CODE2 + 0xFFF;
    m.ram.write(start, &function(1))?;
    m.program(|p| {
        p.mov(ebx, start as i32)?;
        p.call(rbx)?;
        p.mov(edx, eax)?;
        p.mov(byte_ptr(start + 1), 5)?;
        p.call(rbx)?;
        p.add(rdx, rax)?;
        // The opcode: MOV ECX.
        p.xor(ecx, ecx)?;
        p.mov(byte_ptr(start), 0xB9)?;
        p.call(rbx)?;
        p.add(rdx, rcx)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1 + 5 + 5, "sum of what the function said");
    Ok(())
}

/// Page `n` of those whose addresses the next two use.
fn nth(n: u64) -> u64 {
    0x10_0000 + n * 0x1000
}

/// Puts the opcode of [`function`] at the end of page 0, and the rest with
/// another immediate on each page behind it.
fn tails(m: &Machine) -> Outcome {
    m.ram.write(nth(1) - 1, &function(0)[..1])?;
    for n in 1..4 {
        m.ram.write(nth(n.into()), &function(n)[1..])?;
    }
    Ok(())
}

fn across_pages_that_change_places(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    tails(&m)?;
    m.program(|p| {
        p.mov(ebx, (nth(1) - 1) as i32)?;
        p.xor(edx, edx)?;
        let call = |p: &mut Program| {
            p.call(rbx)?;
            p.shl(rdx, 4)?;
            p.or(rdx, rax)
        };
        call(p)?;
        call(p)?;
        p.mov(qword_ptr(Machine::pte(nth(1))), (nth(2) | P | W) as i32)?;
        p.invlpg(byte_ptr(nth(1)))?;
        call(p)?;
        call(p)?;
        p.mov(qword_ptr(Machine::pte(nth(1))), (nth(3) | P | W) as i32)?;
        p.mov(rax, cr3)?;
        p.mov(cr3, rax)?;
        call(p)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x11223, "what the functions said");
    Ok(())
}

fn across_pages_of_two_mappings(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    tails(&m)?;
    // The first page once more, with another one behind it.
    m.map(nth(8), nth(0) | P | W)?;
    m.map(nth(9), nth(2) | P | W)?;
    // A jump to the instruction that goes over to the second page.
    m.ram.write(nth(1) - 16, &[0xEB, 13])?;
    m.program(|p| {
        let mut again = p.create_label();
        p.xor(edx, edx)?;
        p.mov(ecx, 3)?;
        p.set_label(&mut again)?;
        for start in [nth(1) - 16, nth(9) - 16] {
            p.mov(ebx, start as i32)?;
            p.call(rbx)?;
            p.shl(rdx, 4)?;
            p.or(rdx, rax)?;
        }
        p.dec(ecx)?;
        p.jne(again)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x12_1212, "what the functions said");
    Ok(())
}

fn by_string_store(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.ram.write(CODE2, &function(1))?;
    m.ram.write(DATA, &function(0x4321))?;
    m.program(|p| {
        p.mov(ebx, CODE2 as i32)?;
        p.call(rbx)?;
        p.mov(esi, DATA as i32)?;
        p.mov(edi, CODE2 as i32)?;
        p.mov(ecx, 6)?;
        p.rep().movsb()?;
        p.call(rbx)?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x4321, "what the function said");
    Ok(())
}

fn by_remapping(engine: &dyn Engine) -> Outcome {
    const PAGE: u64 = 0x10_0000;
    let mut m = Machine::long(engine)?;
    m.ram.write(PAGE, &function(1))?;
    m.ram.write(PAGE + 0x1000, &function(2))?;
    m.program(|p| {
        p.mov(ebx, PAGE as i32)?;
        p.call(rbx)?;
        p.mov(edx, eax)?;
        let other = PAGE + 0x1000;
        p.mov(qword_ptr(Machine::pte(PAGE)), (other | P | W) as i32)?;
        p.invlpg(byte_ptr(PAGE))?;
        p.call(rbx)?;
        p.shl(rdx, 4)?;
        p.or(rdx, rax)?;
        p.put(0, rdx)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x12, "what the functions said");
    Ok(())
}

fn by_a_device_while_it_runs(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.ram.write(CODE2, &function(0))?;
    m.program(|p| {
        let mut again = p.create_label();
        p.mov(ebx, CODE2 as i32)?;
        p.set_label(&mut again)?;
        p.inc(qword_ptr(SLOTS + 8))?;
        p.call(rbx)?;
        p.test(eax, eax)?;
        p.je(again)?;
        p.put(0, rax)?;
        p.done()
    })?;
    let stop = m.run_while(|m| {
        while m.slot(1)? < 1000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        m.ram.write(CODE2 + 1, &[42])?;
        Ok(())
    })?;
    check_eq!(stop, Stop::Kicked, "reason to stop");
    check!(m.io.is_done(), "the guest did not see the new code");
    check_eq!(m.slot(0)?, 42, "what the function said");
    Ok(())
}

fn by_a_device_between_runs(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.ram.write(CODE2, &function(1))?;
    m.program(|p| {
        p.mov(ebx, CODE2 as i32)?;
        p.call(rbx)?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "what the function said first");
    m.ram.write(CODE2 + 1, &[2])?;
    m.rewind()?;
    m.run()?;
    check_eq!(m.slot(0)?, 2, "what the function said then");
    Ok(())
}

fn data_beside_code(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let (mut again, mut data, mut start) =
            (p.create_label(), p.create_label(), p.create_label());
        p.jmp(start)?;
        p.set_label(&mut data)?;
        p.dq(&[0])?;
        p.set_label(&mut start)?;
        p.mov(ecx, 5000)?;
        p.set_label(&mut again)?;
        p.inc(qword_ptr(data))?;
        p.dec(ecx)?;
        p.jne(again)?;
        p.mov(rax, qword_ptr(data))?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 5000, "counter beside the code");
    Ok(())
}
