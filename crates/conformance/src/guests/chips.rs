//! I/O APIC, PIC and PIT, and event objects that drive them (Intel 82093AA,
//! 8259A, 8254).

use croft_engine::{Engine, InterruptRoute};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::apic::*;
use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, Program, check_eq};

guests! { "chips":
    ioapic_edge [Iret],
    ioapic_level [Iret],
    event_objects [Iret],
    pic_and_pit [Iret],
    spurious_from_the_pic [Iret],
}

/// Writes a redirection entry; uses RBX.
fn redirect(p: &mut Program, pin: u32, entry: u32) -> Result<(), IcedError> {
    p.mov(ebx, IOAPIC as i32)?;
    p.mov(ebx, ebx)?;
    p.mov(dword_ptr(rbx), (0x10 + 2 * pin) as i32)?;
    p.mov(dword_ptr(rbx + 0x10), entry as i32)?;
    p.mov(dword_ptr(rbx), (0x11 + 2 * pin) as i32)?;
    p.mov(dword_ptr(rbx + 0x10), 0)
}

fn ioapic_edge(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        redirect(p, 20, 0x51)?;
        p.out8(READY, 0)?;
        wait(p, 0x51)?;
        p.out8(READY, 1)?;
        wait(p, 0x51)?;
        p.done()
    })?;
    let stop = m.run_while(|m| {
        until_ready(m, 1);
        m.partition.set_line(20, true);
        until_ready(m, 1);
        // The level alone is no second edge.
        m.partition.set_line(20, true);
        std::thread::sleep(std::time::Duration::from_millis(10));
        check_eq!(m.get(LOG)?, 1, "interrupts without an edge");
        m.partition.set_line(20, false);
        m.partition.set_line(20, true);
        Ok(())
    })?;
    finish(&m, stop)
}

fn ioapic_level(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        enable(p)?;
        redirect(p, 20, 1 << 15 | 0x51)?;
        p.out8(READY, 0)?;
        // The line is still up at the first EOI: it comes again.
        wait(p, 0x51)?;
        p.sti()?;
        p.nop()?;
        p.cli()?;
        p.event(0x51);
        // Remote IRR is set until the EOI.
        p.mov(dword_ptr(rbx), 0x10 + 40)?;
        p.mov(eax, dword_ptr(rbx + 0x10))?;
        p.put(0, rax)?;
        p.out8(READY, 1)?;
        // The outside lowers the line; its answer is in the slot.
        let mut again = p.create_label();
        p.set_label(&mut again)?;
        p.cmp(qword_ptr(SLOTS + 8), 0)?;
        p.je(again)?;
        p.wrmsr_value(EOI, 0)?;
        p.mov(eax, dword_ptr(rbx + 0x10))?;
        p.put(2, rax)?;
        p.sti()?;
        p.nop()?;
        p.cli()?;
        p.done()
    })?;
    let stop = m.run_while(|m| {
        until_ready(m, 1);
        m.partition.set_line(20, true);
        until_ready(m, 1);
        m.partition.set_line(20, false);
        m.put(SLOTS + 8, 1)
    })?;
    finish(&m, stop)?;
    check_eq!(m.slot(0)? & 1 << 14, 1 << 14, "remote IRR in service");
    check_eq!(m.slot(2)? & 1 << 14, 0, "remote IRR after EOI");
    Ok(())
}

fn event_objects(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let line = m.partition.irqfd(InterruptRoute::Line(21))?;
    let msi = m.partition.irqfd(InterruptRoute::Msi(message(0x52)))?;
    let level = m.partition.irqfd(InterruptRoute::Line(22))?;
    let resample = m.partition.resample(22)?;
    m.program(|p| {
        enable(p)?;
        redirect(p, 21, 0x51)?;
        redirect(p, 22, 1 << 15 | 0x53)?;
        for vector in [0x51, 0x52, 0x53] {
            p.out8(READY, 0)?;
            wait(p, vector)?;
        }
        p.sti()?;
        p.nop()?;
        p.cli()?;
        p.done()
    })?;
    let stop = m.run_while(|m| {
        for event in [&line, &msi, &level] {
            until_ready(m, 1);
            event.write(1)?;
        }
        Ok(())
    })?;
    finish(&m, stop)?;
    check_eq!(resample.read().ok(), Some(1), "EOIs of the level line");
    Ok(())
}

/// Sets both PICs up: vectors from 0x20 and 0x28, all but `mask` open.
fn pics(p: &mut Program, mask: u8) -> Result<(), IcedError> {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xA0, 0x11),
        (0xA1, 0x28),
        (0xA1, 0x02),
        (0xA1, 0x01),
        (0x21, mask),
        (0xA1, 0xFF),
    ] {
        p.out8(port, value)?;
    }
    Ok(())
}

fn pic_and_pit(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        pics(p, 0xFE)?;
        // The local APIC passes the PIC through: ExtINT on LINT0.
        p.wrmsr_value(APIC_BASE, XAPIC | 0xD00)?;
        p.wrmsr_value(SVR, 0x1FF)?;
        p.wrmsr_value(LINT0, 0x700)?;
        // Channel 0, rate generator, 1193 ticks (1 ms).
        p.out8(0x43, 0x34)?;
        p.out8(0x40, 0xA9)?;
        p.out8(0x40, 0x04)?;
        for _ in 0..3 {
            p.sti()?;
            p.hlt()?;
            p.cli()?;
            p.event(0x20);
            p.out8(0x20, 0x0B)?;
            p.in_(al, 0x20)?;
            p.movzx(eax, al)?;
            p.put(0, rax)?;
            p.out8(0x20, 0x20)?;
            p.in_(al, 0x20)?;
            p.movzx(eax, al)?;
            p.put(1, rax)?;
        }
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "ISR before EOI");
    check_eq!(m.slot(1)?, 0, "ISR after EOI");
    Ok(())
}

fn spurious_from_the_pic(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        pics(p, 0xF7)?;
        p.wrmsr_value(APIC_BASE, XAPIC | 0xD00)?;
        p.wrmsr_value(SVR, 0x1FF)?;
        p.wrmsr_value(LINT0, 0x700)?;
        p.out8(READY, 0)?;
        p.sti()?;
        p.hlt()?;
        p.cli()?;
        p.event(0x23);
        p.done()
    })?;
    let stop = m.run_while(|m| {
        until_ready(m, 1);
        m.partition.set_line(3, true);
        m.partition.set_line(3, false);
        m.partition.set_line(3, true);
        Ok(())
    })?;
    finish(&m, stop)
}
