//! What user mode may not do, and the ways between privilege levels.

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::tables::descriptor;
use crate::{Outcome, check, check_eq};

guests! { "privilege":
    privileged_instructions [Iret],
    ports_from_user_mode [Iret],
    user_mode_instruction_prevention [Iret],
    flags_that_user_mode_cannot_change [Iret],
    interrupt_return [Iret],
    interrupt_return_faults [Iret],
    segment_bases [Iret],
}

fn privileged_instructions(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.user(|p| {
            let data = ALIAS + DATA;
            p.gp(0, |a| a.hlt())?;
            p.gp(0, |a| a.cli())?;
            p.gp(0, |a| a.sti())?;
            p.gp(0, |a| a.clts())?;
            p.gp(0, |a| a.invd())?;
            p.gp(0, |a| a.wbinvd())?;
            p.gp(0, |a| a.rdmsr())?;
            p.gp(0, |a| a.wrmsr())?;
            p.gp(0, |a| a.mov(rax, cr0))?;
            p.gp(0, |a| a.mov(cr3, rax))?;
            p.gp(0, |a| a.mov(cr8, rax))?;
            p.gp(0, |a| a.mov(rax, dr7))?;
            p.gp(0, |a| a.lmsw(ax))?;
            p.gp(0, |a| a.lgdt(ptr(data)))?;
            p.gp(0, |a| a.lidt(ptr(data)))?;
            p.gp(0, |a| a.lldt(ax))?;
            p.gp(0, |a| a.ltr(ax))?;
            p.gp(0, |a| a.invlpg(byte_ptr(data)))?;
            p.gp(0, |a| a.swapgs())?;
            p.gp(0, |a| a.sysretq())?;
            // Allowed without UMIP and TSD.
            p.smsw(eax)?;
            p.sgdt(ptr(data))?;
            p.rdtsc()
        })?;
        p.mov(rax, cr4)?;
        p.bts(rax, 2)?;
        p.mov(cr4, rax)?;
        p.rdtsc()?;
        p.user(|p| p.gp(0, |a| a.rdtsc()))?;
        p.done()
    })?;
    m.run()?;
    let mut bytes = [0; 10];
    m.ram.read(DATA, &mut bytes)?;
    check_eq!(bytes[..2], GDT_LIMIT.to_le_bytes(), "SGDT limit");
    check_eq!(bytes[2..], GDT.to_le_bytes(), "SGDT base");
    Ok(())
}

fn ports_from_user_mode(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    // An I/O bitmap that opens ports 0x10–0x13 and, in part, 0x18–0x1B.
    let bitmap = 0x68u16;
    m.ram.write(TSS + 0x66, &bitmap.to_le_bytes())?;
    let mut bits = [0xFF; 5];
    bits[2] = 0xF0;
    bits[3] = 0xF8;
    m.ram.write(TSS + 0x68, &bits)?;
    let task = descriptor(TSS as u32, u32::from(bitmap) + 4, 0x89, 0);
    m.descriptor(TSS_SELECTOR, task)?;
    m.program(|p| {
        p.load_task()?;
        p.user(|p| {
            p.in_(eax, 0x10)?;
            p.in_(al, 0x13)?;
            p.gp(0, |a| a.in_(al, 0x14))?;
            p.gp(0, |a| a.in_(eax, 0x12))?;
            p.gp(0, |a| a.out(0x18, eax))?;
            p.out(0x18, ax)?;
            // Beyond the bitmap's end.
            p.gp(0, |a| a.in_(al, 0x60))?;
            p.mov(edx, 0x14)?;
            p.gp(0, |a| a.insb())
        })?;
        // IOPL 3 opens all.
        p.user_with(flag::IOPL, |p| {
            p.in_(al, 0x60)?;
            p.cli()
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.io.take().len(), 4, "accesses that reached the ports");
    Ok(())
}

fn user_mode_instruction_prevention(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if m.profile
        .leaf(7, 0)
        .is_none_or(|leaf| leaf.ecx & 1 << 2 == 0)
    {
        return Ok(());
    }
    m.state(|state| state.cr4 |= creg::UMIP)?;
    m.program(|p| {
        p.sgdt(ptr(DATA))?;
        p.user(|p| {
            let data = ALIAS + DATA;
            p.gp(0, |a| a.sgdt(ptr(data)))?;
            p.gp(0, |a| a.sidt(ptr(data)))?;
            p.gp(0, |a| a.sldt(eax))?;
            p.gp(0, |a| a.str(eax))?;
            p.gp(0, |a| a.smsw(eax))
        })?;
        p.done()
    })?;
    m.run()
}

fn flags_that_user_mode_cannot_change(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.user(|p| {
            p.push((flag::IF | flag::IOPL | flag::AC | flag::NT | 0x8D5) as i32)?;
            p.popfq()?;
            p.pushfq()?;
            p.pop(rax)?;
            p.put_user(0, rax)?;
            p.push(2)?;
            p.popfq()
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, flag::AC | flag::NT | 0x8D7, "flags after POPF");
    Ok(())
}

fn interrupt_return(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let mut same = p.create_label();
        // The same level: RSP and SS come from the frame too.
        p.push(i32::from(KERNEL_DS))?;
        p.push((STACK - 0x100) as i32)?;
        p.push(0x8D7)?;
        p.push(i32::from(KERNEL_CS))?;
        p.lea(rax, ptr(same))?;
        p.push(rax)?;
        p.iretq()?;
        p.set_label(&mut same)?;
        p.pushfq()?;
        p.pop(rax)?;
        p.put(0, rax)?;
        p.put(1, rsp)?;
        // To user mode: data segments that the user may not have become null.
        p.mov(eax, i32::from(KERNEL_DS))?;
        p.mov(ds, eax)?;
        p.mov(eax, i32::from(USER_DS))?;
        p.mov(es, eax)?;
        p.user(|p| {
            p.mov(eax, ds)?;
            p.put_user(2, rax)?;
            p.mov(eax, es)?;
            p.put_user(3, rax)?;
            p.mov(eax, cs)?;
            p.put_user(4, rax)
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x8D7, "flags");
    check_eq!(m.slot(1)?, STACK - 0x100, "RSP");
    check_eq!(m.slot(2)?, 0, "DS in user mode");
    check_eq!(m.slot(3)?, u64::from(USER_DS), "ES in user mode");
    check_eq!(m.slot(4)?, u64::from(USER_CS), "CS in user mode");
    Ok(())
}

fn interrupt_return_faults(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let frame = |p: &mut crate::Program, stack: u16, code: u16, rip: u64| {
            p.mov(rsp, STACK)?;
            p.push(i32::from(stack))?;
            p.push(USER_STACK as i32)?;
            p.push(2)?;
            p.push(i32::from(code))?;
            p.mov(rax, rip)?;
            p.push(rax)
        };
        frame(p, USER_DS, 0, CODE)?;
        p.gp(0, |a| a.iretq())?;
        p.put(0, rsp)?;
        frame(p, USER_DS, KERNEL_DS, CODE)?;
        p.gp(u64::from(KERNEL_DS), |a| a.iretq())?;
        frame(p, KERNEL_DS, USER_CS, CODE)?;
        p.gp(u64::from(KERNEL_DS), |a| a.iretq())?;
        frame(p, 0, USER_CS, CODE)?;
        p.gp(0, |a| a.iretq())?;
        frame(p, USER_DS, USER_CS, 0x8000_0000_0000)?;
        p.gp(0, |a| a.iretq())?;
        // A nested task does not exist in long mode.
        p.push(flag::NT as i32 | 2)?;
        p.popfq()?;
        p.gp(0, |a| a.iretq())?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, STACK - 40, "RSP after a failed IRET");
    Ok(())
}

fn segment_bases(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(DATA + 8, 77)?;
    let has = m.profile.leaf(7, 0).is_some_and(|leaf| leaf.ebx & 1 != 0);
    check!(has, "FSGSBASE is part of every model");
    m.program(|p| {
        p.ud(|a| a.rdfsbase(rax))?;
        p.mov(rax, cr4)?;
        p.bts(rax, 16)?;
        p.mov(cr4, rax)?;
        p.mov(eax, DATA as i32)?;
        p.wrgsbase(rax)?;
        p.mov(rax, qword_ptr(8).gs())?;
        p.put(0, rax)?;
        p.wrmsr_value(0xC000_0102, 0x5555)?;
        p.swapgs()?;
        p.rdgsbase(rax)?;
        p.put(1, rax)?;
        p.rdmsr_value(0xC000_0102)?;
        p.put(2, rax)?;
        p.mov(rax, 0x8000_0000_0000u64)?;
        p.gp(0, |a| a.wrfsbase(rax))?;
        p.mov(edx, 0x8000)?;
        p.xor(eax, eax)?;
        p.mov(ecx, 0xC000_0100u32 as i32)?;
        p.gp(0, |a| a.wrmsr())?;
        // A selector load takes the base from the descriptor: 32 bits, 0.
        p.mov(eax, i32::from(USER_DS))?;
        p.mov(gs, eax)?;
        p.rdgsbase(rax)?;
        p.put(3, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 77, "load through GS");
    check_eq!(m.slot(1)?, 0x5555, "GS base after SWAPGS");
    check_eq!(m.slot(2)?, DATA, "kernel GS base after SWAPGS");
    check_eq!(m.slot(3)?, 0, "GS base after a load");
    Ok(())
}
