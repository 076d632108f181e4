//! Causes, error codes and frames of exceptions (SDM vol. 3, 6.15).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::{Machine, Mode};
use crate::tables::{descriptor, gate64};
use crate::{Outcome, check, check_eq};

guests! { "exceptions":
    plain_program [],
    faults_and_traps [Iret, Int3],
    resume_flag_in_frames [Iret, Int3],
    non_canonical_addresses [Iret],
    illegal_instructions [Iret],
    bad_selectors [Iret],
    null_task [Iret],
    bad_gates [Iret],
    control_registers [Iret],
    floating_point [Iret, Vector],
    device_not_available [Iret, Vector],
    alignment_check [Iret],
    bound_and_overflow [Iret],
    jumps_that_cannot_be_fetched [Iret],
    instructions_across_pages [Iret],
}

/// An address that 48 bits cannot express.
const NOWHERE: u64 = 0x8000_0000_0000;

fn plain_program(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(rax, 0x1234_5678_9ABCu64)?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x1234_5678_9ABC, "slot");
    Ok(())
}

fn faults_and_traps(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.ud(|a| a.ud2())?;
        p.xor(ecx, ecx)?;
        p.mov(rax, -1i64)?;
        p.xor(edx, edx)?;
        p.fault(vector::DE, 0, |a| a.div(rcx))?;
        p.mov(eax, 0x8000_0000u32 as i32)?;
        p.cdq()?;
        p.mov(ecx, -1)?;
        p.fault(vector::DE, 0, |a| a.idiv(ecx))?;
        p.put32(0, eax)?;
        p.trap(vector::BP, |a| a.int3())?;
        p.trap(0x30, |a| a.int(0x30))?;
        p.user(|p| {
            p.trap(vector::BP, |a| a.int3())?;
            p.ud(|a| a.ud2())?;
            p.put_user(1, rsp)
        })?;
        p.put(2, rsp)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x8000_0000, "EAX after #DE");
    check_eq!(m.slot(1)?, USER_STACK, "user RSP");
    check_eq!(m.slot(2)?, STACK, "kernel RSP");
    let log = m.log()?;
    let last = log[log.len() - 1];
    check_eq!(last.cs, u64::from(USER_CS), "CS in the frame");
    check_eq!(last.ss, u64::from(USER_DS), "SS in the frame");
    check_eq!(last.rsp, USER_STACK, "RSP in the frame");
    Ok(())
}

fn resume_flag_in_frames(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.ud(|a| a.ud2())?;
        p.mov(rax, NOWHERE)?;
        p.gp(0, |a| a.mov(rax, qword_ptr(rax)))?;
        p.trap(vector::BP, |a| a.int3())?;
        p.done()
    })?;
    m.run()?;
    for (n, wanted) in [flag::RF, flag::RF, 0].into_iter().enumerate() {
        check_eq!(m.log()?[n].rflags & flag::RF, wanted, "RF of exception {n}");
    }
    Ok(())
}

fn non_canonical_addresses(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    // The last canonical page below is there.
    m.put(PML4 + 8 * 255, PDPT | 3)?;
    m.put(PDPT + 8 * 511, PD | 3)?;
    m.put(PD + 8 * 511, page::PS | 3)?;
    m.program(|p| {
        p.mov(rbx, NOWHERE)?;
        p.mov(rax, qword_ptr(rbx - 8))?;
        p.gp(0, |a| a.mov(rax, qword_ptr(rbx)))?;
        p.gp(0, |a| a.mov(qword_ptr(rbx), rax))?;
        // The last byte only.
        p.gp(0, |a| a.mov(rax, qword_ptr(rbx - 7)))?;
        p.mov(rbp, rbx)?;
        p.fault(vector::SS, 0, |a| a.mov(rax, qword_ptr(rbp)))?;
        // 64-bit code ignores the override.
        p.fault(vector::SS, 0, |a| a.mov(rax, qword_ptr(rbp).ds()))?;
        p.done()
    })?;
    m.run()?;
    // Pushing needs a stack of its own for the handler: IST 2.
    let mut m = Machine::long(engine)?;
    let at = u64::from(vector::SS);
    let gate = gate64(KERNEL_CS, crate::handlers::entry(vector::SS), 0x8E, 2);
    m.put(IDT + 16 * at, gate)?;
    m.program(|p| {
        p.mov(rsp, NOWHERE + 0x100)?;
        p.fault(vector::SS, 0, |a| a.push(rax))?;
        p.fault(vector::SS, 0, |a| a.pop(rax))?;
        p.fault(vector::SS, 0, |a| a.pushfq())?;
        p.fault(vector::SS, 0, |a| a.ret())?;
        p.put(0, rsp)?;
        p.mov(rsp, STACK)?;
        p.mov(rax, NOWHERE)?;
        // A near branch checks its target first.
        p.gp(0, |a| a.jmp(rax))?;
        p.gp(0, |a| a.call(rax))?;
        p.put(1, rsp)?;
        p.push(rax)?;
        p.gp(0, |a| a.ret())?;
        p.put(2, rsp)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, NOWHERE + 0x100, "RSP after failed pushes");
    check_eq!(m.slot(1)?, STACK, "RSP after a failed call");
    check_eq!(m.slot(2)?, STACK - 8, "RSP after a failed return");
    Ok(())
}

fn illegal_instructions(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        // LOCK on a register, and on what takes none.
        p.ud(|a| a.db(&[0xF0, 0x01, 0xC0]))?;
        p.ud(|a| a.db(&[0xF0, 0x90]))?;
        // Opcodes that 64-bit mode does not have: PUSH ES, AAA, PUSHA.
        p.ud(|a| a.db(&[0x06]))?;
        p.ud(|a| a.db(&[0x37]))?;
        p.ud(|a| a.db(&[0x60]))?;
        // UD1, and MOV to CR1, CS.
        p.ud(|a| a.db(&[0x0F, 0xB9, 0xC0]))?;
        p.ud(|a| a.db(&[0x0F, 0x22, 0xC8]))?;
        p.ud(|a| a.db(&[0x8E, 0xC8]))?;
        // More than 15 bytes.
        p.gp(0, |a| {
            a.db(&[0x66; 15])?;
            a.db(&[0x90])
        })?;
        // VMX and SVM are not there.
        p.ud(|a| a.db(&[0x0F, 0x01, 0xC2]))?;
        p.ud(|a| a.db(&[0x0F, 0x01, 0xD8]))?;
        p.done()
    })?;
    m.run()
}

fn bad_selectors(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let absent = FREE_SELECTOR;
    m.descriptor(absent, descriptor(0, 0xF_FFFF, 0x13, 0xC))?;
    let execute_only = FREE_SELECTOR + 8;
    m.descriptor(execute_only, descriptor(0, 0xF_FFFF, 0x99, 0xC))?;
    let absent_tss = FREE_SELECTOR + 0x10;
    m.descriptor(absent_tss, descriptor(TSS as u32, 0x67, 0x09, 0))?;
    let beyond = GDT_LIMIT + 1;
    m.program(|p| {
        for (selector, vector) in [
            (beyond, vector::GP),
            (absent, vector::NP),
            (execute_only, vector::GP),
            (TSS_SELECTOR, vector::GP),
            // In the LDT, which is null.
            (0x0C, vector::GP),
        ] {
            p.mov(eax, i32::from(selector))?;
            p.fault(vector, u64::from(selector & !3), |a| a.mov(ds, eax))?;
        }
        for (selector, vector) in [
            (absent, vector::SS),
            (KERNEL_CS, vector::GP),
            // Its RPL is not the CPL.
            (USER_DS, vector::GP),
        ] {
            p.mov(eax, i32::from(selector))?;
            p.fault(vector, u64::from(selector & !3), |a| a.mov(ss, eax))?;
        }
        // Null: fine for data, and for SS in the kernel's 64-bit mode.
        p.xor(eax, eax)?;
        p.mov(ds, eax)?;
        p.mov(ss, eax)?;
        p.mov(rax, qword_ptr(CODE))?;
        p.mov(eax, i32::from(TSS_SELECTOR))?;
        // Busy after the state was loaded? It is not in memory: load it.
        p.ltr(ax)?;
        p.gp(u64::from(TSS_SELECTOR), |a| a.ltr(ax))?;
        p.mov(eax, i32::from(absent_tss))?;
        p.fault(vector::NP, u64::from(absent_tss), |a| a.ltr(ax))?;
        p.xor(eax, eax)?;
        p.lldt(ax)?;
        p.mov(eax, i32::from(KERNEL_DS))?;
        p.gp(u64::from(KERNEL_DS), |a| a.lldt(ax))?;
        p.user(|p| {
            p.mov(eax, i32::from(KERNEL_DS))?;
            p.gp(u64::from(KERNEL_DS), |a| a.mov(ds, eax))?;
            p.xor(eax, eax)?;
            p.gp(0, |a| a.mov(ss, eax))
        })?;
        p.done()
    })?;
    m.run()?;
    let tss = m.get(GDT + u64::from(TSS_SELECTOR))?;
    check_eq!(tss >> 40 & 0xFF, 0x8B, "the TSS is busy after LTR");
    Ok(())
}

fn null_task(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.xor(eax, eax)?;
        p.gp(0, |a| a.ltr(ax))?;
        p.done()
    })?;
    m.run()
}

fn bad_gates(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let target = crate::handlers::entry(0x40);
    for (vector, gate) in [
        (0x40, gate64(KERNEL_CS, target, 0x0E, 0)),
        (0x41, gate64(KERNEL_DS, target, 0x8E, 0)),
        (0x42, gate64(0, target, 0x8E, 0)),
        (0x43, gate64(KERNEL_CS, target, 0x85, 0)),
        // A 32-bit code segment cannot be a target in long mode.
        (0x44, gate64(KERNEL_CS32, target, 0x8E, 0)),
    ] {
        m.put(IDT + 16 * vector, gate)?;
    }
    m.state(|state| state.idtr.limit = 0xEFF)?;
    m.program(|p| {
        p.fault(vector::NP, 0x40 << 3 | 2, |a| a.int(0x40))?;
        p.gp(u64::from(KERNEL_DS), |a| a.int(0x41))?;
        p.gp(0, |a| a.int(0x42))?;
        p.gp(0x43 << 3 | 2, |a| a.int(0x43))?;
        p.gp(u64::from(KERNEL_CS32), |a| a.int(0x44))?;
        p.gp(0xF0 << 3 | 2, |a| a.int(0xF0))?;
        p.user(|p| {
            p.gp(0x30 << 3 | 2, |a| a.int(0x30))?;
            p.trap(vector::BP, |a| a.int(3))
        })?;
        p.done()
    })?;
    m.run()
}

fn control_registers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(rbx, cr0)?;
        // Paging cannot go in 64-bit mode; NW without CD; upper bits.
        for (change, bit) in [(31, false), (0, false), (29, true), (32, true)] {
            p.mov(rax, rbx)?;
            if bit {
                p.bts(rax, change)?;
            } else {
                p.btr(rax, change)?;
            }
            p.gp(0, |a| a.mov(cr0, rax))?;
        }
        p.mov(rbx, cr4)?;
        for (change, bit) in [(5, false), (63, true), (13, true), (25, true)] {
            p.mov(rax, rbx)?;
            if bit {
                p.bts(rax, change)?;
            } else {
                p.btr(rax, change)?;
            }
            p.gp(0, |a| a.mov(cr4, rax))?;
        }
        p.mov(rax, 1u64 << 62)?;
        p.gp(0, |a| a.mov(cr3, rax))?;
        p.mov(eax, 16)?;
        p.gp(0, |a| a.mov(cr8, rax))?;
        p.mov(rax, 1u64 << 32)?;
        p.gp(0, |a| a.mov(dr7, rax))?;
        p.gp(0, |a| a.mov(dr6, rax))?;
        // LMSW cannot clear PE.
        p.xor(eax, eax)?;
        p.lmsw(ax)?;
        p.mov(rax, cr0)?;
        p.put(0, rax)?;
        p.mov(rax, cr4)?;
        p.put(1, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)? & 0x8000_0001, 0x8000_0001, "CR0");
    check_eq!(
        m.slot(1)?,
        creg::PAE | creg::PGE | creg::OSFXSR | creg::OSXMMEXCPT,
        "CR4 after refused writes"
    );
    Ok(())
}

fn floating_point(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(DATA, 0x0340)?;
    // Division by zero unmasked.
    m.put(DATA + 8, 0x1F80 & !(1 << 9))?;
    m.program(|p| {
        p.fninit()?;
        p.mov(word_ptr(DATA), 0x037B)?;
        p.fldcw(word_ptr(DATA))?;
        p.fld1()?;
        p.fldz()?;
        p.fdivp(st1, st0)?;
        // The exception waits for the next instruction that looks.
        p.fnstsw(ax)?;
        p.fault(vector::MF, 0, |a| a.wait())?;
        p.fault(vector::MF, 0, |a| a.fld1())?;
        p.fnclex()?;
        p.wait()?;
        p.ldmxcsr(dword_ptr(DATA + 8))?;
        p.mov(eax, 1)?;
        p.cvtsi2sd(xmm0, eax)?;
        p.xorpd(xmm1, xmm1)?;
        p.fault(vector::XM, 0, |a| a.divsd(xmm0, xmm1))?;
        p.stmxcsr(dword_ptr(DATA + 16))?;
        p.movq(rax, xmm0)?;
        p.put(0, rax)?;
        // Without OSXMMEXCPT it is #UD.
        p.mov(rax, cr4)?;
        p.btr(rax, 10)?;
        p.mov(cr4, rax)?;
        p.ud(|a| a.divsd(xmm0, xmm1))?;
        p.done()
    })?;
    m.run()?;
    check_eq!(
        m.slot(0)?,
        1f64.to_bits(),
        "destination of a faulting division"
    );
    check!(m.get(DATA + 16)? & 4 != 0, "MXCSR.ZE is not set");
    Ok(())
}

fn device_not_available(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(rax, cr0)?;
        p.bts(rax, 3)?;
        p.mov(cr0, rax)?;
        p.fault(vector::NM, 0, |a| a.fld1())?;
        p.fault(vector::NM, 0, |a| a.xorps(xmm0, xmm0))?;
        p.fault(vector::NM, 0, |a| a.emms())?;
        // WAIT looks at MP as well.
        p.wait()?;
        p.bts(rax, 1)?;
        p.mov(cr0, rax)?;
        p.fault(vector::NM, 0, |a| a.wait())?;
        p.clts()?;
        p.fld1()?;
        // With EM, SSE is #UD and x87 #NM.
        p.mov(rax, cr0)?;
        p.bts(rax, 2)?;
        p.mov(cr0, rax)?;
        p.fault(vector::NM, 0, |a| a.fld1())?;
        p.ud(|a| a.xorps(xmm0, xmm0))?;
        p.btr(rax, 2)?;
        p.mov(cr0, rax)?;
        p.mov(rax, cr4)?;
        p.btr(rax, 9)?;
        p.mov(cr4, rax)?;
        p.ud(|a| a.xorps(xmm0, xmm0))?;
        p.done()
    })?;
    m.run()
}

fn alignment_check(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(rax, cr0)?;
        p.bts(rax, 18)?;
        p.mov(cr0, rax)?;
        // Not in the kernel.
        p.pushfq()?;
        p.or(dword_ptr(rsp), flag::AC as i32)?;
        p.popfq()?;
        p.mov(eax, dword_ptr(DATA + 1))?;
        p.user_with(flag::AC, |p| {
            let data = ALIAS + DATA;
            p.mov(eax, dword_ptr(data + 4))?;
            p.fault(vector::AC, 0, |a| a.mov(eax, dword_ptr(data + 1)))?;
            p.fault(vector::AC, 0, |a| a.mov(dword_ptr(data + 2), eax))?;
            p.fault(vector::AC, 0, |a| a.mov(ax, word_ptr(data + 3)))?;
            p.fault(vector::AC, 0, |a| a.mov(rax, qword_ptr(data + 4)))?;
            p.mov(al, byte_ptr(data + 3))?;
            p.mov(rsp, USER_STACK - 4)?;
            p.fault(vector::AC, 0, |a| a.push(rax))
        })?;
        p.done()
    })?;
    m.run()
}

fn bound_and_overflow(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Protected, 1)?;
    m.put(DATA, 10 | 20 << 32)?;
    m.program(|p| {
        p.mov(eax, 10)?;
        p.bound(eax, qword_ptr(DATA))?;
        p.mov(eax, 21)?;
        p.fault(vector::BR, 0, |a| a.bound(eax, qword_ptr(DATA)))?;
        p.mov(eax, 0x7FFF_FFFF)?;
        p.add(eax, 0)?;
        CodeAssembler::into(p)?;
        p.add(eax, 1)?;
        p.trap(vector::OF, CodeAssembler::into)?;
        p.trap(vector::BP, |a| a.int3())?;
        p.mov(al, 3)?;
        p.fault(vector::DE, 0, |a| a.aam(0))?;
        p.done()
    })?;
    m.run()
}

fn jumps_that_cannot_be_fetched(engine: &dyn Engine) -> Outcome {
    const ABSENT: u64 = 0x10_0000;
    const NO_EXECUTE: u64 = 0x10_1000;
    let mut m = Machine::long(engine)?;
    m.map(ABSENT, 0)?;
    m.map(NO_EXECUTE, NO_EXECUTE | page::P | page::W | page::NX)?;
    m.program(|p| {
        p.mov(eax, ABSENT as i32)?;
        p.fault_at((vector::PF, 0x10), Some(ABSENT), ABSENT, |a| a.jmp(rax))?;
        p.mov(eax, NO_EXECUTE as i32)?;
        p.fault_at((vector::PF, 0x11), Some(NO_EXECUTE), NO_EXECUTE, |a| {
            a.call(rax)
        })?;
        // The call itself has been executed.
        p.put(0, rsp)?;
        p.user(|p| {
            // A kernel page.
            p.mov(eax, CODE as i32)?;
            p.fault_at((vector::PF, 0x15), Some(CODE), CODE, |a| a.jmp(rax))
        })?;
        p.done()
    })?;
    // The last one resumes without the alias: back in the kernel's page.
    let error = m.run_to_end().err();
    let log = m.log()?;
    check!(log.len() >= 3, "{} exceptions, {error:?}", log.len());
    for (record, (code, address)) in
        log.iter()
            .zip([(0x10, ABSENT), (0x11, NO_EXECUTE), (0x15, CODE)])
    {
        check_eq!(record.vector, u64::from(vector::PF), "vector");
        check_eq!(record.error, code, "error code at {address:#x}");
        check_eq!(record.cr2, address, "CR2");
        check_eq!(record.rip, address, "RIP");
    }
    check_eq!(m.slot(0)?, STACK - 8, "RSP after the call");
    Ok(())
}

fn instructions_across_pages(engine: &dyn Engine) -> Outcome {
    const SECOND: u64 = 0x10_1000;
    // MOV EAX, imm32 with each split; the second page absent.
    let instruction = [0xB8, 0x11, 0x22, 0x33, 0x44];
    for split in 1..instruction.len() as u64 {
        let mut m = Machine::long(engine)?;
        let start = SECOND - split;
        m.ram.write(start, &instruction)?;
        m.ram.write(start + 5, &[0xC3])?;
        m.program(|p| {
            p.mov(ebx, start as i32)?;
            p.call(rbx)?;
            p.put(0, rax)?;
            p.mov(qword_ptr(Machine::pte(SECOND)), 0)?;
            p.invlpg(byte_ptr(SECOND))?;
            p.fault_at((vector::PF, 0x10), Some(SECOND), start, |a| a.call(rbx))?;
            p.mov(rsp, STACK)?;
            p.mov(rax, SECOND | page::P | page::NX)?;
            p.mov(qword_ptr(Machine::pte(SECOND)), rax)?;
            p.fault_at((vector::PF, 0x11), Some(SECOND), start, |a| a.jmp(rbx))?;
            p.done()
        })?;
        // Both exceptions have the same address in their frame: the second
        // must go on behind its own jump.
        m.run_to_end().ok();
        let log = m.log()?;
        check!(log.len() >= 2, "{} exceptions, split {split}", log.len());
        check_eq!(m.slot(0)?, 0x4433_2211, "split {split}");
        check_eq!(log[0].error, 0x10, "split {split}");
        check_eq!(log[0].cr2, SECOND, "CR2, split {split}");
        check_eq!(log[0].rip, start, "RIP, split {split}");
    }
    Ok(())
}
