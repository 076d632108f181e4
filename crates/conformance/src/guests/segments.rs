//! Segmentation, gates, privilege levels and tasks of protected mode
//! (SDM vol. 3, chapters 3, 5 and 8).

use croft_engine::Engine;
use croft_engine::state::SegmentIndex;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::{Machine, Mode};
use crate::tables::{descriptor, gate32};
use crate::{Outcome, check_eq};

guests! { "segments":
    selectors_are_stored [],
    limits [Iret],
    expand_down [Iret],
    types_and_null [Iret],
    accessed_bit [],
    call_gate_to_the_kernel [Iret],
    conforming_code [Iret],
    user_mode_entry_switches_stacks [Iret],
    task_switch [],
    task_switch_and_return [Iret],
    virtual_8086_mode [Iret],
}

const FIRST: u16 = FREE_SELECTOR;
const SECOND: u16 = FREE_SELECTOR + 8;

/// To 16 bits of a register or of memory, and to all of a wider register
/// (SDM vol. 2, MOV).
fn selectors_are_stored(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(DATA, u64::MAX)?;
    m.program(|p| {
        p.mov(eax, i32::from(USER_DS))?;
        p.mov(fs, eax)?;
        p.mov(rax, -1i64)?;
        p.mov(ax, fs)?;
        p.put(0, rax)?;
        p.mov(r10, -1i64)?;
        p.mov(r10w, fs)?;
        p.put(1, r10)?;
        p.mov(rbx, -1i64)?;
        p.mov(ebx, fs)?;
        p.put(2, rbx)?;
        p.mov(r11, -1i64)?;
        p.mov(r11, fs)?;
        p.put(3, r11)?;
        p.mov(word_ptr(DATA + 2), fs)?;
        p.xor(ecx, ecx)?;
        p.mov(cx, cs)?;
        p.put(4, rcx)?;
        p.done()
    })?;
    m.run()?;
    let selector = u64::from(USER_DS);
    let merged = !0xFFFF | selector;
    let code = u64::from(m.saved()?.segments[SegmentIndex::Cs as usize].selector);
    for (n, expected) in (0..).zip([merged, merged, selector, selector, code]) {
        check_eq!(m.slot(n)?, expected, "slot {n}");
    }
    check_eq!(m.get(DATA)?, !0xFFFF_0000 | selector << 16, "memory");
    Ok(())
}

fn limits(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    m.descriptor(FIRST, descriptor(DATA as u32, 0xF, 0x93, 4))?;
    m.descriptor(SECOND, descriptor(DATA as u32, 0, 0x91, 0xC))?;
    m.put(DATA + 0xFF8, 0x7777_7777_0000_0000)?;
    m.program(|p| {
        p.mov(eax, i32::from(FIRST))?;
        p.mov(fs, eax)?;
        p.mov(dword_ptr(0xCu32).fs(), 5)?;
        p.gp(0, |a| a.mov(dword_ptr(0xDu32).fs(), 5))?;
        p.gp(0, |a| a.mov(al, byte_ptr(0x10u32).fs()))?;
        p.mov(ebx, -1)?;
        p.gp(0, |a| a.mov(eax, dword_ptr(ebx).fs()))?;
        // Granular: 4 KiB; read-only.
        p.mov(eax, i32::from(SECOND))?;
        p.mov(fs, eax)?;
        p.mov(eax, dword_ptr(0xFFCu32).fs())?;
        p.put32(0, eax)?;
        p.gp(0, |a| a.mov(eax, dword_ptr(0xFFDu32).fs()))?;
        p.gp(0, |a| a.mov(byte_ptr(0u32).fs(), al))?;
        // Code cannot be written through CS.
        p.gp(0, |a| a.mov(byte_ptr(0u32).cs(), al))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(DATA + 0xC)? & 0xFF, 5, "store at the limit");
    check_eq!(m.slot(0)?, 0x7777_7777, "load at the limit");
    Ok(())
}

fn expand_down(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    m.descriptor(FIRST, descriptor(0, DATA as u32 - 1, 0x97, 4))?;
    m.descriptor(SECOND, descriptor(0, 0xFFF, 0x97, 0))?;
    m.program(|p| {
        p.mov(eax, i32::from(FIRST))?;
        p.mov(fs, eax)?;
        p.mov(dword_ptr(DATA as u32).fs(), 5)?;
        p.gp(0, |a| a.mov(al, byte_ptr(DATA as u32 - 1).fs()))?;
        p.gp(0, |a| a.mov(eax, dword_ptr(DATA as u32 - 3).fs()))?;
        // The upper bound is 64 KiB without the B bit.
        p.mov(eax, i32::from(SECOND))?;
        p.mov(fs, eax)?;
        p.mov(al, byte_ptr(0xFFFFu32).fs())?;
        p.gp(0, |a| a.mov(al, byte_ptr(0x1_0000u32).fs()))?;
        p.gp(0, |a| a.mov(al, byte_ptr(0xFFFu32).fs()))?;
        p.done()
    })?;
    m.run()
}

fn types_and_null(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    m.descriptor(FIRST, descriptor(0, 0xF_FFFF, 0x91, 0xC))?;
    m.descriptor(SECOND, descriptor(0, 0xF_FFFF, 0x13, 0xC))?;
    m.program(|p| {
        p.xor(eax, eax)?;
        p.mov(fs, eax)?;
        p.gp(0, |a| a.mov(al, byte_ptr(DATA as u32).fs()))?;
        p.gp(0, |a| a.mov(ss, eax))?;
        p.mov(eax, i32::from(FIRST))?;
        p.gp(u64::from(FIRST), |a| a.mov(ss, eax))?;
        p.mov(eax, i32::from(SECOND))?;
        p.fault(vector::SS, u64::from(SECOND), |a| a.mov(ss, eax))?;
        p.fault(vector::NP, u64::from(SECOND), |a| a.mov(es, eax))?;
        // LAR, LSL, VERR and VERW say it without faults.
        p.mov(ecx, i32::from(FIRST))?;
        p.lsl(eax, ecx)?;
        p.put32(0, eax)?;
        p.lar(eax, ecx)?;
        p.put32(1, eax)?;
        p.verr(cx)?;
        p.setz(byte_ptr(SLOTS as u32 + 16))?;
        p.verw(cx)?;
        p.setz(byte_ptr(SLOTS as u32 + 17))?;
        p.mov(ecx, 0x7F8)?;
        p.lar(eax, ecx)?;
        p.setz(byte_ptr(SLOTS as u32 + 18))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0xFFFF_FFFF, "LSL");
    check_eq!(m.slot(1)?, 0xC0_9100, "LAR");
    check_eq!(m.slot(2)?, 1, "VERR, VERW, LAR of nothing");
    Ok(())
}

fn accessed_bit(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    m.descriptor(FIRST, descriptor(0, 0xF_FFFF, 0x92, 0xC))?;
    m.descriptor(SECOND, descriptor(0, 0xF_FFFF, 0x92, 0xC))?;
    m.program(|p| {
        p.mov(eax, i32::from(FIRST))?;
        p.mov(fs, eax)?;
        p.mov(ecx, i32::from(SECOND))?;
        p.lsl(eax, ecx)?;
        p.done()
    })?;
    m.run()?;
    let access = |selector: u16| m.get(GDT + u64::from(selector)).map(|d| d >> 40 & 0xFF);
    check_eq!(access(FIRST)?, 0x93, "a loaded descriptor");
    check_eq!(access(SECOND)?, 0x92, "one only looked at");
    Ok(())
}

/// A far call through gate `selector`.
fn far_call(p: &mut crate::Program, selector: u16) -> Result<(), iced_x86::IcedError> {
    let mut bytes = vec![0x9A, 0, 0, 0, 0];
    bytes.extend_from_slice(&selector.to_le_bytes());
    p.db(&bytes)
}

fn call_gate_to_the_kernel(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Paged32, 1)?;
    // Two parameters are copied; DPL 3 for the first, 0 for the second.
    m.descriptor(FIRST, gate32(KERNEL_CS32, CODE2 as u32, 0xEC, 2))?;
    m.descriptor(SECOND, gate32(KERNEL_CS32, CODE2 as u32, 0x8C, 0))?;
    m.code(32, CODE2, CODE2, |p| {
        p.mov(ebx, esp)?;
        p.mov(ecx, dword_ptr(esp + 8))?;
        p.mov(edx, dword_ptr(esp + 12))?;
        p.mov(esi, cs)?;
        p.mov(edi, ss)?;
        p.db(&[0xCA, 8, 0])
    })?;
    m.program(|p| {
        p.load_task()?;
        p.user(|p| {
            p.push(0x22)?;
            p.push(0x11)?;
            far_call(p, FIRST | 3)?;
            let at = (ALIAS + SLOTS) as u32;
            p.mov(dword_ptr(at), ebx)?;
            p.mov(dword_ptr(at + 8), ecx)?;
            p.mov(dword_ptr(at + 16), edx)?;
            p.mov(dword_ptr(at + 24), esi)?;
            p.mov(dword_ptr(at + 32), edi)?;
            p.mov(dword_ptr(at + 40), esp)?;
            p.gp(u64::from(SECOND), |a| {
                a.db(&[0x9A, 0, 0, 0, 0, SECOND as u8 | 3, 0])
            })
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, RSP0 - 24, "ESP in the kernel");
    check_eq!(m.slot(1)?, 0x11, "first parameter");
    check_eq!(m.slot(2)?, 0x22, "second parameter");
    check_eq!(m.slot(3)?, u64::from(KERNEL_CS32), "CS in the kernel");
    check_eq!(m.slot(4)?, u64::from(KERNEL_DS), "SS in the kernel");
    check_eq!(m.slot(5)?, USER_STACK, "ESP after RET 8");
    Ok(())
}

fn conforming_code(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Paged32, 1)?;
    m.descriptor(FIRST, descriptor(0, 0xF_FFFF, 0x9F, 0xC))?;
    m.code(32, CODE2, CODE2, |p| {
        p.mov(ebx, cs)?;
        p.retf()
    })?;
    let target = (ALIAS + CODE2) as u32;
    m.program(|p| {
        p.load_task()?;
        p.user(|p| {
            // Conforming code runs at the caller's level.
            let mut bytes = vec![0x9A];
            bytes.extend_from_slice(&target.to_le_bytes());
            bytes.extend_from_slice(&FIRST.to_le_bytes());
            p.db(&bytes)?;
            p.mov(dword_ptr((ALIAS + SLOTS) as u32), ebx)?;
            // Other kernel code cannot be called directly.
            bytes[5] = KERNEL_CS32 as u8;
            p.gp(u64::from(KERNEL_CS32), |a| a.db(&bytes))
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, u64::from(FIRST) | 3, "CS in conforming code");
    Ok(())
}

fn user_mode_entry_switches_stacks(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Paged32, 1)?;
    m.program(|p| {
        p.load_task()?;
        p.user(|p| p.ud(|a| a.ud2()))?;
        p.ud(|a| a.ud2())?;
        p.done()
    })?;
    m.run()?;
    let log = m.log()?;
    check_eq!(log[0].cs, u64::from(USER_CS32), "CS");
    check_eq!(log[0].ss, u64::from(USER_DS), "SS");
    check_eq!(log[0].rsp, USER_STACK, "ESP");
    check_eq!(
        m.get(RSP0 - 4)? as u32,
        u32::from(USER_DS),
        "SS on the stack"
    );
    check_eq!(log[1].cs, u64::from(KERNEL_CS32), "CS in the kernel");
    Ok(())
}

/// A 32-bit TSS (SDM vol. 3, figure 8-2).
const OTHER: u64 = TSS + 0x100;

fn write_task(m: &Machine, eip: u64, eflags: u32) -> Outcome {
    let data = u32::from(KERNEL_DS);
    for (offset, value) in [
        (0x20, eip as u32),
        (0x24, eflags),
        (0x28, 0xAAAA),
        (0x38, (STACK - 0x1000) as u32),
        (0x48, data),
        (0x4C, u32::from(KERNEL_CS32)),
        (0x50, data),
        (0x54, data),
        (0x58, data),
        (0x5C, data),
    ] {
        m.ram.write(OTHER + offset, &value.to_le_bytes())?;
    }
    m.descriptor(FIRST, descriptor(OTHER as u32, 0x67, 0x89, 0))
}

fn task_switch(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    write_task(&m, CODE2, 2)?;
    m.descriptor(TSS_SELECTOR, descriptor(TSS as u32, 0x67, 0x8B, 0))?;
    m.code(32, CODE2, CODE2, |p| {
        p.put32(0, eax)?;
        p.put32(1, esp)?;
        p.str(ecx)?;
        p.put32(2, ecx)?;
        p.mov(ecx, cr0)?;
        p.put32(3, ecx)?;
        p.done()
    })?;
    m.program(|p| {
        p.mov(eax, 0x1111)?;
        p.mov(esi, 0x2222)?;
        p.far_jump(FIRST, 0)
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0xAAAA, "EAX of the new task");
    check_eq!(m.slot(1)?, STACK - 0x1000, "ESP of the new task");
    check_eq!(m.slot(2)?, u64::from(FIRST), "TR");
    check_eq!(m.slot(3)? >> 3 & 1, 1, "CR0.TS");
    check_eq!(m.get(TSS + 0x28)? as u32, 0x1111, "EAX of the old task");
    check_eq!(m.get(TSS + 0x40)? as u32, 0x2222, "ESI of the old task");
    let access = |selector: u16| m.get(GDT + u64::from(selector)).map(|d| d >> 40 & 0xFF);
    check_eq!(access(TSS_SELECTOR)?, 0x89, "the old task");
    check_eq!(access(FIRST)?, 0x8B, "the new task");
    Ok(())
}

fn task_switch_and_return(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    write_task(&m, CODE2, 2)?;
    m.descriptor(TSS_SELECTOR, descriptor(TSS as u32, 0x67, 0x8B, 0))?;
    // Also through a task gate in the IDT.
    let gate = gate32(FIRST, 0, 0x85, 0);
    m.put(IDT32 + 8 * 0x31, gate)?;
    m.code(32, CODE2, CODE2, |p| {
        let mut again = p.create_label();
        p.set_label(&mut again)?;
        p.inc(dword_ptr(SLOTS as u32))?;
        p.pushfd()?;
        p.pop(ecx)?;
        p.put32(1, ecx)?;
        p.iretd()?;
        // The task goes on behind its IRET when it is called again.
        p.jmp(again)
    })?;
    m.program(|p| {
        p.mov(ebx, 0x77)?;
        far_call(p, FIRST)?;
        p.put32(2, ebx)?;
        p.int(0x31)?;
        p.put32(3, esp)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)? as u32, 2, "calls of the task");
    check_eq!(m.slot(1)? & flag::NT, flag::NT, "NT in the task");
    check_eq!(m.slot(2)?, 0x77, "EBX after the return");
    check_eq!(m.slot(3)?, STACK, "ESP after the return");
    check_eq!(m.get(OTHER)? & 0xFFFF, u64::from(TSS_SELECTOR), "back link");
    let access = |selector: u16| m.get(GDT + u64::from(selector)).map(|d| d >> 40 & 0xFF);
    check_eq!(access(TSS_SELECTOR)?, 0x8B, "the caller");
    check_eq!(access(FIRST)?, 0x89, "the task that returned");
    Ok(())
}

fn virtual_8086_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    // MOV AX, 0x6000; MOV DS, AX; MOV [4], CS; CLI: #GP with IOPL 0.
    let code = [0xB8, 0x00, 0x60, 0x8E, 0xD8, 0x8C, 0x0E, 4, 0, 0xFA];
    m.ram.write(CODE2, &code)?;
    let mut back = 0;
    m.code(32, CODE, CODE, |p| {
        let mut start = p.create_label();
        p.jmp(start)?;
        back = p.mark()?;
        // On the stack: error code, EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
        // The data segments are null now.
        p.mov(ecx, fs)?;
        p.mov(eax, i32::from(KERNEL_DS))?;
        p.mov(ds, eax)?;
        for (slot, offset) in [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16), (5, 20), (6, 28)] {
            p.mov(eax, dword_ptr(esp + offset))?;
            p.put32(slot, eax)?;
        }
        p.put32(7, ecx)?;
        p.done()?;
        p.set_label(&mut start)?;
        p.load_task()?;
        // GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP.
        for value in [1, 2, 3, 4, 0x5000, 0x100, flag::VM as i32 | 2, 0x3000, 0] {
            p.push(value)?;
        }
        p.iretd()
    })?;
    let gate = gate32(KERNEL_CS32, m.mark(back) as u32, 0x8E, 0);
    m.put(IDT32 + 8 * 13, gate)?;
    m.run_to_end()?;
    let wanted = [
        (0, 0, "error code"),
        (1, 9, "EIP"),
        (2, 0x3000, "CS"),
        (3, flag::VM | flag::RF | 2, "EFLAGS"),
        (4, 0x100, "ESP"),
        (5, 0x5000, "SS"),
        (6, 0x6000, "DS"),
        (7, 0, "FS in the handler"),
    ];
    for (slot, value, what) in wanted {
        check_eq!(m.slot(slot)?, value, "{what}");
    }
    check_eq!(
        m.get(0x6_0004)? & 0xFFFF,
        0x3000,
        "store in virtual-8086 mode"
    );
    Ok(())
}
