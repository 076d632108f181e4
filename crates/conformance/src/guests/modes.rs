//! Processor modes and the ways between them (SDM vol. 3, chapter 10).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::{EFER, Machine, Mode};
use crate::{Outcome, check, check_eq};

guests! { "modes":
    real_mode [],
    real_mode_interrupts [Iret],
    big_real_mode [],
    every_mode_and_back [],
    compatibility_mode [Iret],
    compatibility_user_mode [Iret],
    paging_32_bit [Iret],
    paging_pae [Iret],
    paging_pae_pointers [Iret, PaePointers],
    second_processor_starts [Smp],
}

fn real_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Real, 1)?;
    m.program(|p| {
        // DS base 0x50000; the slots by a segment of their own.
        p.mov(ax, 0x5000)?;
        p.mov(ds, eax)?;
        p.mov(word_ptr(0x10), 0x1234)?;
        p.mov(ax, (SLOTS >> 4) as u32)?;
        p.mov(es, eax)?;
        p.mov(eax, dword_ptr(0x10))?;
        p.mov(dword_ptr(0).es(), eax)?;
        p.push(ax)?;
        p.mov(word_ptr(8).es(), sp)?;
        // 16-bit addresses wrap.
        p.mov(bx, 0xFFFF)?;
        p.mov(al, byte_ptr(bx + 0x11))?;
        p.mov(byte_ptr(16).es(), al)?;
        p.smsw(ax)?;
        p.mov(word_ptr(24).es(), ax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(0x50010)? & 0xFFFF, 0x1234, "store through DS");
    check_eq!(m.slot(0)? & 0xFFFF, 0x1234, "load through DS");
    check_eq!(m.slot(1)? & 0xFFFF, 0x7FFE, "SP after a push");
    check_eq!(m.slot(2)? & 0xFF, 0x34, "wrapped load");
    check_eq!(m.slot(3)? & 1, 0, "CR0.PE");
    Ok(())
}

fn real_mode_interrupts(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Real, 1)?;
    // Vectors 0x30, 13 and 6: handlers at 0x3000:0 and :0x100.
    m.put(4 * 0x30, 0x3000_0000)?;
    m.ram.write(4 * 13, &0x3000_0100u32.to_le_bytes())?;
    m.ram.write(4 * 6, &0x3000_0200u32.to_le_bytes())?;
    m.state(|state| {
        state.idtr = croft_engine::state::TableState {
            base: 0,
            limit: 0x3FF,
        }
    })?;
    m.code(16, CODE2, 0, |p| {
        p.inc(cx)?;
        p.iret()
    })?;
    m.code(16, CODE2 + 0x100, 0x100, |p| {
        // No error code: IP is on top. Skip the instruction, 3 bytes.
        p.mov(bp, sp)?;
        p.add(word_ptr(bp), 3)?;
        p.inc(dx)?;
        p.iret()
    })?;
    m.code(16, CODE2 + 0x200, 0x200, |p| {
        p.mov(bp, sp)?;
        p.add(word_ptr(bp), 2)?;
        p.inc(di)?;
        p.iret()
    })?;
    m.program(|p| {
        p.xor(cx, cx)?;
        p.xor(dx, dx)?;
        p.xor(di, di)?;
        p.int(0x30)?;
        p.mov(bx, 0xFFFF)?;
        // A word at offset 0xFFFF crosses the segment's limit: #GP.
        p.db(&[0x8B, 0x47, 0x00])?;
        // LTR does not exist in real mode: #UD, 3 bytes, one is left: NOP.
        p.db(&[0x0F, 0x0B])?;
        p.mov(ax, (SLOTS >> 4) as u32)?;
        p.mov(ds, eax)?;
        p.mov(word_ptr(0), cx)?;
        p.mov(word_ptr(8), dx)?;
        p.mov(word_ptr(16), di)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "software interrupts");
    check_eq!(m.slot(1)?, 1, "#GP at the limit");
    check_eq!(m.slot(2)?, 1, "#UD");
    Ok(())
}

fn big_real_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Real, 1)?;
    m.put(0x10_0000, 0x5566_7788)?;
    m.state(|state| {
        state.gdtr.base = GDT;
        state.gdtr.limit = GDT_LIMIT;
    })?;
    m.program(|p| {
        let mut flush = p.create_label();
        p.mov(eax, cr0)?;
        p.or(al, 1)?;
        p.mov(cr0, eax)?;
        p.jmp(flush)?;
        p.set_label(&mut flush)?;
        p.mov(bx, u32::from(KERNEL_DS))?;
        p.mov(ds, ebx)?;
        p.and(al, 0xFEu32 as i32)?;
        p.mov(cr0, eax)?;
        // The limit of 4 GiB stays, also when the base is loaded anew.
        p.xor(ax, ax)?;
        p.mov(ds, eax)?;
        p.mov(ebx, 0x10_0000)?;
        p.mov(eax, dword_ptr(ebx))?;
        p.mov(ebx, SLOTS as i32)?;
        p.mov(dword_ptr(ebx), eax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x5566_7788, "load above 1 MiB");
    Ok(())
}

/// Where each leg of the journey begins.
const PROTECTED: u64 = CODE + 0x1000;
const LONG: u64 = CODE + 0x2000;
const COMPATIBLE: u64 = CODE + 0x3000;
const BACK16: u64 = CODE + 0x4000;
const REAL: u64 = CODE + 0x5000;

fn every_mode_and_back(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Real, 1)?;
    m.state(|state| {
        state.gdtr.base = GDT;
        state.gdtr.limit = GDT_LIMIT;
    })?;
    m.program(|p| {
        p.mov(eax, cr0)?;
        p.or(al, 1)?;
        p.mov(cr0, eax)?;
        p.far_jump32(KERNEL_CS32, PROTECTED as u32)
    })?;
    m.code(32, PROTECTED, PROTECTED, |p| {
        p.mov(eax, i32::from(KERNEL_DS))?;
        p.mov(ds, eax)?;
        p.mov(es, eax)?;
        p.mov(ss, eax)?;
        p.mov(dword_ptr(SLOTS), 1)?;
        p.mov(eax, (creg::PAE) as i32)?;
        p.mov(cr4, eax)?;
        // PAE first, then long mode.
        p.mov(eax, PAE_PDPT as i32)?;
        p.mov(cr3, eax)?;
        p.mov(eax, cr0)?;
        p.bts(eax, 31)?;
        p.mov(cr0, eax)?;
        p.mov(dword_ptr(SLOTS + 8), 2)?;
        p.btr(eax, 31)?;
        p.mov(cr0, eax)?;
        p.mov(eax, PML4 as i32)?;
        p.mov(cr3, eax)?;
        p.mov(ecx, EFER as i32)?;
        p.rdmsr()?;
        p.bts(eax, 8)?;
        p.wrmsr()?;
        p.mov(eax, cr0)?;
        p.bts(eax, 31)?;
        p.mov(cr0, eax)?;
        p.rdmsr()?;
        p.mov(dword_ptr(SLOTS + 16), eax)?;
        p.far_jump(KERNEL_CS, LONG as u32)
    })?;
    m.code(64, LONG, LONG, |p| {
        let mut pointer = p.create_label();
        p.mov(rax, 0x1122_3344_5566u64)?;
        p.put(3, rax)?;
        p.mov(esp, STACK as i32)?;
        p.jmp(fword_ptr(pointer))?;
        p.set_label(&mut pointer)?;
        p.dd(&[COMPATIBLE as u32])?;
        p.dw(&[KERNEL_CS32])
    })?;
    m.code(32, COMPATIBLE, COMPATIBLE, |p| {
        // INC EAX here, a REX prefix in 64-bit code.
        p.mov(eax, 7)?;
        p.db(&[0x40])?;
        p.mov(dword_ptr(SLOTS + 32), eax)?;
        p.mov(eax, cr0)?;
        p.btr(eax, 31)?;
        p.mov(cr0, eax)?;
        p.mov(ecx, EFER as i32)?;
        p.rdmsr()?;
        p.mov(dword_ptr(SLOTS + 40), eax)?;
        p.btr(eax, 8)?;
        p.wrmsr()?;
        p.far_jump(CODE16, (BACK16 & 0xFFFF) as u32)
    })?;
    // The code of 16-bit protected mode must lie below 64 KiB: its segment
    // gets the program's base.
    m.descriptor(
        CODE16,
        crate::tables::descriptor(CODE as u32, 0xFFFF, 0x9B, 0),
    )?;
    m.code(16, BACK16, BACK16 & 0xFFFF, |p| {
        p.mov(ax, u32::from(DATA16))?;
        p.mov(ds, eax)?;
        p.mov(ss, eax)?;
        p.mov(eax, cr0)?;
        p.and(al, 0xFEu32 as i32)?;
        p.mov(cr0, eax)?;
        p.far_jump((CODE >> 4) as u16, (REAL & 0xFFFF) as u32)
    })?;
    m.code(16, REAL, REAL & 0xFFFF, |p| {
        p.mov(ax, (SLOTS >> 4) as u32)?;
        p.mov(ds, eax)?;
        p.mov(word_ptr(48), cs)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "protected mode");
    check_eq!(m.slot(1)?, 2, "PAE paging");
    check_eq!(m.slot(2)? & 0x500, 0x500, "EFER.LME and LMA");
    check_eq!(m.slot(3)?, 0x1122_3344_5566, "64-bit mode");
    check_eq!(m.slot(4)?, 8, "compatibility mode");
    check_eq!(m.slot(5)? & 0x500, 0x100, "EFER without paging");
    check_eq!(m.slot(6)?, CODE >> 4, "CS in real mode");
    let state = m.saved()?;
    check_eq!(state.cr0 & 0x8000_0001, 0, "CR0");
    Ok(())
}

fn compatibility_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.code(32, CODE2, CODE2, |p| {
        // Addresses wrap at 4 GiB; stack operations are 32 bits wide.
        p.mov(ebx, -4)?;
        p.mov(eax, dword_ptr(ebx + (DATA as i32 + 4)))?;
        p.mov(dword_ptr(SLOTS), eax)?;
        p.push(eax)?;
        p.mov(dword_ptr(SLOTS + 8), esp)?;
        p.pop(eax)?;
        // Exceptions are delivered in 64-bit mode.
        p.ud2()?;
        p.done()
    })?;
    m.ram.write(DATA, &0x77u32.to_le_bytes())?;
    m.program(|p| {
        let mut pointer = p.create_label();
        p.jmp(fword_ptr(pointer))?;
        p.set_label(&mut pointer)?;
        p.dd(&[CODE2 as u32])?;
        p.dw(&[KERNEL_CS32])
    })?;
    // UD2 has no fix-up: its handler returns to it until the log is full.
    let end = m.run_to_end();
    check!(end.is_err(), "UD2 did not fault");
    check_eq!(m.slot(0)?, 0x77, "wrapped load");
    check_eq!(m.slot(1)?, STACK - 4, "ESP after a push");
    let record = m.log()?[0];
    check_eq!(record.vector, u64::from(vector::UD), "vector");
    check_eq!(record.cs, u64::from(KERNEL_CS32), "CS in the frame");
    check_eq!(record.rsp, STACK, "RSP in the frame");
    Ok(())
}

fn compatibility_user_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let target = ALIAS + CODE2;
    // MOV EAX, 6; INC EAX; MOV EBX, ESP; INT 0x80.
    let code = [0xB8, 6, 0, 0, 0, 0x40, 0x89, 0xE3, 0xCD, 0x30];
    m.ram.write(CODE2, &code)?;
    let gate = crate::tables::gate64(KERNEL_CS, crate::handlers::entry(0x30), 0xEE, 0);
    m.put(IDT + 16 * 0x30, gate)?;
    m.program(|p| {
        let mut back = p.create_label();
        p.lea(rax, ptr(back))?;
        p.mov(word_ptr(IDT + 16 * 0x30), ax)?;
        p.shr(rax, 16)?;
        p.mov(word_ptr(IDT + 16 * 0x30 + 6), ax)?;
        p.push(i32::from(USER_DS))?;
        p.push(USER_STACK as i32)?;
        p.push(2)?;
        p.push(i32::from(USER_CS32))?;
        p.push(target as i32)?;
        p.iretq()?;
        p.set_label(&mut back)?;
        p.put(0, rax)?;
        p.put(1, rbx)?;
        p.mov(rax, qword_ptr(rsp + 8))?;
        p.put(2, rax)?;
        p.mov(rax, qword_ptr(rsp))?;
        p.put(3, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 7, "EAX");
    check_eq!(m.slot(1)?, USER_STACK, "ESP");
    check_eq!(m.slot(2)?, u64::from(USER_CS32), "CS in the frame");
    check_eq!(m.slot(3)?, target + 10, "RIP in the frame");
    Ok(())
}

fn paging_32_bit(engine: &dyn Engine) -> Outcome {
    const PAGE: u64 = 0x10_0000;
    const PTE: u64 = PT32 + 4 * (PAGE >> 12);
    let mut m = Machine::new(engine, Mode::Paged32, 1)?;
    // A 4 MiB page at 8 MiB that shows the first 4 MiB.
    m.ram.write(PD32 + 8, &0x83u32.to_le_bytes())?;
    m.put(DATA, 0x99)?;
    m.program(|p| {
        p.load_task()?;
        p.mov(eax, dword_ptr(0x80_0000 + DATA))?;
        p.put32(0, eax)?;
        p.mov(dword_ptr(0x80_0000 + DATA), eax)?;
        p.mov(eax, dword_ptr(PD32 + 8))?;
        p.put32(1, eax)?;
        p.mov(dword_ptr(PTE), 0)?;
        p.invlpg(byte_ptr(PAGE))?;
        p.pf(0, PAGE, |a| a.mov(eax, dword_ptr(PAGE)))?;
        p.mov(dword_ptr(PTE), (PAGE | 1) as i32)?;
        p.pf(3, PAGE, |a| a.mov(dword_ptr(PAGE), eax))?;
        p.mov(eax, dword_ptr(PTE))?;
        p.put32(2, eax)?;
        p.user(|p| {
            p.pf(5, PAGE, |a| a.mov(eax, dword_ptr(PAGE)))?;
            p.mov(eax, dword_ptr(ALIAS + DATA))
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x99, "load through a 4 MiB page");
    check_eq!(m.slot(1)?, 0xE3, "entry of a 4 MiB page");
    check_eq!(m.slot(2)? & 0x60, 0, "A and D after refused accesses");
    Ok(())
}

fn paging_pae(engine: &dyn Engine) -> Outcome {
    const PAGE: u64 = 0x10_0000;
    let mut m = Machine::new(engine, Mode::Pae, 1)?;
    m.put(DATA, 0x99)?;
    m.map(PAGE, DATA | 3 | page::NX)?;
    m.program(|p| {
        p.mov(eax, dword_ptr(PAGE))?;
        p.put32(0, eax)?;
        p.mov(ebx, PAGE as i32)?;
        p.fault_at((vector::PF, 0x11), Some(PAGE), PAGE, |a| a.call(ebx))?;
        p.mov(eax, MMIO as u32 as i32)?;
        p.mov(ecx, dword_ptr(eax))?;
        p.mov(dword_ptr(PAE_PDPT + 24), 0)?;
        p.mov(ebx, cr3)?;
        p.mov(cr3, ebx)?;
        p.pf(0, MMIO, |a| a.mov(ecx, dword_ptr(eax)))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x99, "load");
    Ok(())
}

fn paging_pae_pointers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Pae, 1)?;
    m.program(|p| {
        // They are read when CR3 is loaded, not later.
        p.mov(dword_ptr(PAE_PDPT + 24), 0)?;
        p.invlpg(byte_ptr(MMIO))?;
        p.mov(eax, MMIO as u32 as i32)?;
        p.mov(ecx, dword_ptr(eax))?;
        // Reserved bits there are #GP.
        p.mov(dword_ptr(PAE_PDPT + 24), (PD_MORE | 0x1000 | 3) as i32)?;
        p.mov(ebx, cr3)?;
        p.gp(0, |a| a.mov(cr3, ebx))?;
        p.done()
    })?;
    m.run()
}

fn second_processor_starts(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Long, 2)?;
    // A pseudo-descriptor behind the trampoline.
    m.ram.write(STARTUP + 0x800, &GDT_LIMIT.to_le_bytes())?;
    m.ram.write(STARTUP + 0x802, &(GDT as u32).to_le_bytes())?;
    m.code(16, STARTUP, 0, |p| {
        p.cli()?;
        p.mov(ax, cs)?;
        p.mov(ds, eax)?;
        p.lgdt(fword_ptr(0x800))?;
        p.mov(eax, creg::PAE as i32)?;
        p.mov(cr4, eax)?;
        p.mov(eax, PML4 as i32)?;
        p.mov(cr3, eax)?;
        p.mov(ecx, EFER as i32)?;
        p.rdmsr()?;
        p.bts(eax, 8)?;
        p.wrmsr()?;
        p.mov(eax, cr0)?;
        p.or(eax, 0x8000_0001u32 as i32)?;
        p.mov(cr0, eax)?;
        p.far_jump32(KERNEL_CS, CODE2 as u32)
    })?;
    m.code(64, CODE2, CODE2, |p| {
        let mut again = p.create_label();
        p.mov(eax, 1)?;
        p.cpuid()?;
        p.shr(ebx, 24)?;
        p.put(1, rbx)?;
        p.mov(esp, IST2 as i32)?;
        p.mov(ecx, 100_000)?;
        p.set_label(&mut again)?;
        p.lock().inc(qword_ptr(DATA))?;
        p.dec(ecx)?;
        p.jne(again)?;
        p.mov(qword_ptr(SLOTS), 1)?;
        p.cli()?;
        p.hlt()
    })?;
    m.program(|p| {
        p.wrmsr_value(0x1B, 0xFEE0_0D00)?;
        p.wrmsr_value(0x80F, 0x1FF)?;
        p.wrmsr_value(0x830, 1 << 32 | 0x4500)?;
        p.wrmsr_value(0x830, 1 << 32 | 0x4600 | STARTUP >> 12)?;
        p.wrmsr_value(0x830, 1 << 32 | 0x4600 | STARTUP >> 12)?;
        let (mut again, mut wait) = (p.create_label(), p.create_label());
        p.mov(ecx, 100_000)?;
        p.set_label(&mut again)?;
        p.lock().inc(qword_ptr(DATA))?;
        p.dec(ecx)?;
        p.jne(again)?;
        p.set_label(&mut wait)?;
        p.pause()?;
        p.cmp(qword_ptr(SLOTS), 0)?;
        p.je(wait)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(DATA)?, 200_000, "locked increments of both");
    check_eq!(m.slot(1)?, 1, "APIC id of the second");
    Ok(())
}
