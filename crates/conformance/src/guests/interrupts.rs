//! Interrupt windows and shadows, the local APIC and its timer (SDM vol. 3,
//! chapter 11).

use croft_engine::Engine;
use croft_irqchip::Msi;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::apic::*;
use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, Program, check, check_eq};

guests! { "interrupts":
    message_wakes_halt [Iret],
    sti_shadow [Iret],
    stack_segment_shadow [Iret],
    interrupt_window_opens [Iret],
    task_priority [Iret],
    priorities_and_nesting [Iret],
    self_interrupt [Iret],
    xapic_registers [Iret],
    x2apic_access_faults [Iret],
    x2apic_reserved_bits [Iret, ApicReservedBits],
    timer_one_shot [Iret],
    timer_periodic [Iret],
    timer_tsc_deadline [Iret],
    nmi_wakes_halt [Iret],
    interrupts_off_in_halt_do_not_wake [],
}

fn message_wakes_halt(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.out8(READY, 0)?;
        wait(p, 0x51)?;
        p.done()
    })?;
    let stop = m.run_while(|m| {
        until_ready(m, 1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        m.partition.msi(message(0x51));
        Ok(())
    })?;
    finish(&m, stop)
}

fn sti_shadow(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.wrmsr_value(SELF, 0x51)?;
        p.xor(ebx, ebx)?;
        p.sti()?;
        p.inc(ebx)?;
        let here = p.mark()?;
        debug_assert_eq!(here, 0);
        p.cli()?;
        p.event(0x51);
        p.wrmsr_value(EOI, 0)?;
        // STI, CLI: no window at all.
        p.wrmsr_value(SELF, 0x52)?;
        p.sti()?;
        p.cli()?;
        p.mov(rax, qword_ptr(LOG))?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.log()?[0].rip, m.mark(0), "interrupted after the shadow");
    check_eq!(m.slot(0)?, 1, "interrupts after STI; CLI");
    Ok(())
}

fn stack_segment_shadow(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.mov(ebx, i32::from(KERNEL_DS))?;
        // Once before, so that nothing of the host's comes between later.
        p.mov(ss, ebx)?;
        p.wrmsr_value(SELF, 0x51)?;
        p.sti()?;
        // The shadow of STI covers this one. Whether it has one of its own
        // then, the processor may choose (SDM vol. 2, MOV).
        p.mov(ss, ebx)?;
        p.inc(ebx)?;
        p.mark()?;
        p.cli()?;
        p.event(0x51);
        p.done()
    })?;
    m.run()?;
    // INC EBX has two bytes.
    let (came, last) = (m.log()?[0].rip, m.mark(0));
    check!(
        came == last || came == last - 2,
        "interrupted at {came:#x}, the shadows end at {last:#x} or before INC"
    );
    Ok(())
}

fn interrupt_window_opens(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.wrmsr_value(SELF, 0x51)?;
        // POPF has no shadow.
        p.push((flag::IF | 2) as i32)?;
        p.popfq()?;
        p.mark()?;
        p.cli()?;
        p.event(0x51);
        p.wrmsr_value(EOI, 0)?;
        p.wrmsr_value(SELF, 0x52)?;
        // Neither has IRET.
        p.mov(rbx, rsp)?;
        p.push(i32::from(KERNEL_DS))?;
        p.push(rbx)?;
        p.push((flag::IF | 2) as i32)?;
        p.push(i32::from(KERNEL_CS))?;
        let mut target = p.create_label();
        p.lea(rax, ptr(target))?;
        p.push(rax)?;
        p.iretq()?;
        p.set_label(&mut target)?;
        p.nop()?;
        p.cli()?;
        p.put(0, rax)?;
        p.event(0x52);
        p.done()
    })?;
    m.run()?;
    check_eq!(m.log()?[0].rip, m.mark(0), "after POPF");
    check_eq!(m.log()?[1].rip, m.slot(0)?, "after IRET");
    Ok(())
}

fn task_priority(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.mov(eax, 5)?;
        p.mov(cr8, rax)?;
        p.rdmsr_value(TPR)?;
        p.put(0, rax)?;
        p.wrmsr_value(SELF, 0x5F)?;
        p.sti()?;
        p.nop()?;
        p.nop()?;
        p.mov(rax, qword_ptr(LOG))?;
        p.put(1, rax)?;
        p.wrmsr_value(SELF, 0x60)?;
        p.nop()?;
        p.event(0x60);
        p.wrmsr_value(EOI, 0)?;
        p.mov(eax, 4)?;
        p.mov(cr8, rax)?;
        p.nop()?;
        p.event(0x5F);
        p.cli()?;
        p.wrmsr_value(TPR, 0x31)?;
        p.mov(rax, cr8)?;
        p.put(2, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0x50, "TPR after MOV to CR8");
    check_eq!(m.slot(1)?, 0, "interrupts below the task priority");
    check_eq!(m.slot(2)?, 3, "CR8 after a write to TPR");
    Ok(())
}

fn priorities_and_nesting(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        for vector in [0x51, 0x71, 0x61, 0x72] {
            p.wrmsr_value(SELF, vector)?;
        }
        p.sti()?;
        p.nop()?;
        // Only the highest: the others wait for its end.
        p.event(0x72);
        p.mov(rax, qword_ptr(LOG))?;
        p.put(0, rax)?;
        p.rdmsr_value(0x80A)?;
        p.put(1, rax)?;
        for vector in [0x71, 0x61, 0x51] {
            p.wrmsr_value(EOI, 0)?;
            p.nop()?;
            p.event(vector);
        }
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "interrupts before the first EOI");
    check_eq!(m.slot(1)? & 0xF0, 0x70, "processor priority");
    Ok(())
}

fn self_interrupt(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.sti()?;
        // By shorthand, by physical and by logical destination.
        for (icr, vector) in [
            (1 << 18 | 0x51, 0x51),
            (0x52, 0x52),
            (1 << 32 | 1 << 11 | 0x53, 0x53),
            (2 << 18 | 0x54, 0x54),
        ] {
            p.wrmsr_value(ICR, icr)?;
            p.nop()?;
            p.event(vector);
            p.wrmsr_value(EOI, 0)?;
        }
        // To all but itself: nobody.
        p.wrmsr_value(ICR, 3 << 18 | 0x55)?;
        p.nop()?;
        p.done()
    })?;
    m.run()
}

fn xapic_registers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.wrmsr_value(APIC_BASE, XAPIC | 0x900)?;
        p.mov(ebx, XAPIC as i32)?;
        p.mov(ebx, ebx)?;
        p.mov(dword_ptr(rbx + 0xF0), 0x1FF)?;
        p.mov(dword_ptr(rbx + 0x350), 1 << 16)?;
        p.mov(eax, dword_ptr(rbx + 0x30))?;
        p.put(0, rax)?;
        p.mov(dword_ptr(rbx + 0x80), 0x20)?;
        p.mov(rax, cr8)?;
        p.put(1, rax)?;
        p.mov(dword_ptr(rbx + 0x310), 0)?;
        p.mov(dword_ptr(rbx + 0x300), 0x51)?;
        p.sti()?;
        p.nop()?;
        p.event(0x51);
        p.mov(eax, dword_ptr(rbx + 0x100 + 0x20))?;
        p.put(2, rax)?;
        p.mov(dword_ptr(rbx + 0xB0), 0)?;
        p.mov(eax, dword_ptr(rbx + 0x100 + 0x20))?;
        p.put(3, rax)?;
        // In xAPIC mode the MSRs are not there.
        p.mov(ecx, SVR as i32)?;
        p.gp(0, |a| a.rdmsr())?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)? & 0xFF, 0x14, "version");
    check_eq!(m.slot(1)?, 2, "CR8 after a write to TPR");
    check_eq!(m.slot(2)?, 1 << 17, "vector 0x51 in service");
    check_eq!(m.slot(3)?, 0, "after EOI");
    Ok(())
}

fn x2apic_access_faults(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.rdmsr_value(0x802)?;
        p.put(0, rax)?;
        p.mov(ecx, EOI as i32)?;
        p.gp(0, |a| a.rdmsr())?;
        // Read-only, and no such register.
        p.xor(eax, eax)?;
        p.xor(edx, edx)?;
        p.mov(ecx, 0x802)?;
        p.gp(0, |a| a.wrmsr())?;
        p.mov(ecx, 0x80E)?;
        p.gp(0, |a| a.rdmsr())?;
        // From x2APIC there is no way back but through "disabled".
        p.mov(ecx, APIC_BASE as i32)?;
        p.mov(eax, (XAPIC | 0x900) as i32)?;
        p.gp(0, |a| a.wrmsr())?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0, "APIC id");
    Ok(())
}

fn x2apic_reserved_bits(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.xor(edx, edx)?;
        for (register, value) in [(EOI, 1), (TPR, 0x100)] {
            p.mov(ecx, register as i32)?;
            p.mov(eax, value)?;
            p.gp(0, |a| a.wrmsr())?;
        }
        p.done()
    })?;
    m.run()
}

fn timer_one_shot(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.wrmsr_value(DIVIDE, 0xB)?;
        p.wrmsr_value(TIMER, 0x51)?;
        p.wrmsr_value(INITIAL, 100_000)?;
        wait(p, 0x51)?;
        p.rdmsr_value(CURRENT)?;
        p.put(0, rax)?;
        // Masked: it counts and stays silent.
        p.wrmsr_value(TIMER, 1 << 16 | 0x52)?;
        p.wrmsr_value(INITIAL, 1000)?;
        let mut again = p.create_label();
        p.sti()?;
        p.set_label(&mut again)?;
        p.rdmsr_value(CURRENT)?;
        p.test(rax, rax)?;
        p.jne(again)?;
        p.cli()?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0, "current count after expiry");
    Ok(())
}

fn timer_periodic(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.wrmsr_value(DIVIDE, 0xB)?;
        p.wrmsr_value(TIMER, 1 << 17 | 0x51)?;
        p.wrmsr_value(INITIAL, 1_000_000)?;
        for _ in 0..4 {
            wait(p, 0x51)?;
        }
        p.wrmsr_value(INITIAL, 0)?;
        p.rdmsr_value(CURRENT)?;
        p.put(0, rax)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 0, "current count of a stopped timer");
    Ok(())
}

/// RAX = TSC + `ticks`, in EDX:EAX; uses RBX.
fn soon(p: &mut Program, ticks: i32) -> Result<(), IcedError> {
    p.rdtsc()?;
    p.shl(rdx, 32)?;
    p.or(rax, rdx)?;
    p.add(rax, ticks)?;
    p.mov(rbx, rax)?;
    p.mov(rdx, rax)?;
    p.shr(rdx, 32)?;
    p.mov(ecx, DEADLINE as i32)
}

fn timer_tsc_deadline(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.wrmsr_value(TIMER, 2 << 17 | 0x51)?;
        // Far enough to be read back on a slow host.
        soon(p, i32::MAX)?;
        p.wrmsr()?;
        p.rdmsr_value(DEADLINE)?;
        p.cmp(rax, rbx)?;
        p.sete(al)?;
        p.movzx(eax, al)?;
        p.put(0, rax)?;
        soon(p, 2_000_000)?;
        p.wrmsr()?;
        wait(p, 0x51)?;
        p.rdtsc()?;
        p.shl(rdx, 32)?;
        p.or(rax, rdx)?;
        p.sub(rax, rbx)?;
        p.put(1, rax)?;
        p.rdmsr_value(DEADLINE)?;
        p.put(2, rax)?;
        // A deadline in the past fires at once.
        soon(p, -1000)?;
        p.wrmsr()?;
        wait(p, 0x51)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "the deadline reads back");
    check!(
        m.slot(1)? as i64 >= 0,
        "the timer fired before its deadline"
    );
    check_eq!(m.slot(2)?, 0, "the deadline after it passed");
    Ok(())
}

fn nmi_wakes_halt(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.out8(READY, 0)?;
        // Interrupts are off: only the NMI gets through.
        p.hlt()?;
        p.mark()?;
        p.event(vector::NMI);
        p.done()
    })?;
    let stop = m.run_while(|m| {
        until_ready(m, 1);
        m.partition.msi(Msi {
            address: XAPIC,
            data: 4 << 8,
        });
        Ok(())
    })?;
    finish(&m, stop)?;
    check_eq!(m.log()?[0].rip, m.mark(0), "behind HLT");
    Ok(())
}

fn interrupts_off_in_halt_do_not_wake(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        p.out8(READY, 0)?;
        p.hlt()?;
        p.mov(eax, 1)?;
        p.put(0, rax)?;
        p.done()
    })?;
    let mut ready = 1;
    // On a busy host it may not have come to HLT before it is kicked.
    for _ in 0..100 {
        let stop = m.run_while(|m| {
            until_ready(m, ready);
            if ready > 0 {
                m.partition.msi(message(0x51));
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            m.io.kick();
            Ok(())
        })?;
        ready = 0;
        check_eq!(stop, croft_engine::Stop::Kicked, "reason to stop");
        check_eq!(m.slot(0)?, 0, "woken with interrupts off");
        if m.saved()?.mp_state == croft_engine::state::MpState::Halted {
            return Ok(());
        }
    }
    Err(crate::Failure::Differs("it never halts".to_owned()))
}
