//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2).

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::{EFER, Machine};
use crate::{Outcome, check_eq};

guests! { "system_calls":
    syscall_and_sysret [Iret],
    sysenter_and_sysexit [Iret],
    syscall_disabled [Iret],
}

const STAR: u32 = 0xC000_0081;
const LSTAR: u32 = 0xC000_0082;
const FMASK: u32 = 0xC000_0084;

fn syscall_and_sysret(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let star = u64::from(KERNEL_CS) << 32 | 0x1B << 48;
    m.program(|p| {
        let (mut start, mut called) = (p.create_label(), p.create_label());
        p.jmp(start)?;
        p.set_label(&mut called)?;
        p.put(0, rcx)?;
        p.put(1, r11)?;
        p.put(2, rsp)?;
        p.mov(rsp, RSP0)?;
        p.pushfq()?;
        p.pop(rax)?;
        p.put(3, rax)?;
        p.mov(rsp, USER_STACK)?;
        p.mov(eax, cs)?;
        p.put(4, rax)?;
        p.mov(eax, ss)?;
        p.put(5, rax)?;
        p.mov(r11d, 0x8D7)?;
        p.sysretq()?;
        p.set_label(&mut start)?;
        p.wrmsr_value(STAR, star)?;
        p.lea(rbx, ptr(called))?;
        p.mov(rax, rbx)?;
        p.mov(rdx, rax)?;
        p.shr(rdx, 32)?;
        p.mov(ecx, LSTAR as i32)?;
        p.wrmsr()?;
        p.wrmsr_value(FMASK, 0x4D5)?;
        p.user(|p| {
            p.push(0xCD7)?;
            p.popfq()?;
            let mut behind = p.create_label();
            p.lea(r14, ptr(behind))?;
            p.syscall()?;
            p.set_label(&mut behind)?;
            p.cld()?;
            p.put_user(6, r14)?;
            p.mov(eax, cs)?;
            p.put_user(7, rax)?;
            p.mov(eax, ss)?;
            p.put_user(8, rax)?;
            p.pushfq()?;
            p.pop(rax)?;
            p.put_user(9, rax)
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, m.slot(6)?, "RCX");
    check_eq!(m.slot(1)?, 0xCD7, "R11");
    check_eq!(m.slot(2)?, USER_STACK, "SYSCALL leaves RSP alone");
    check_eq!(m.slot(3)?, 0x802, "flags are masked");
    check_eq!(m.slot(4)?, u64::from(KERNEL_CS), "kernel CS");
    check_eq!(m.slot(5)?, u64::from(KERNEL_CS) + 8, "kernel SS");
    check_eq!(m.slot(7)?, u64::from(USER_CS), "user CS");
    check_eq!(m.slot(8)?, u64::from(USER_DS), "user SS");
    check_eq!(m.slot(9)?, 0x8D7, "flags are restored");
    Ok(())
}

/// From 32-bit user code: in 64-bit code AMD's processors do not have it, and
/// KVM, which emulates it there, leaves that so.
fn sysenter_and_sysexit(engine: &dyn Engine) -> Outcome {
    const ENTER: u64 = ALIAS + CODE2;
    let mut m = Machine::long(engine)?;
    // SYSENTER.
    m.ram.write(CODE2, &[0x0F, 0x34])?;
    m.program(|p| {
        let (mut start, mut called, mut behind) =
            (p.create_label(), p.create_label(), p.create_label());
        p.jmp(start)?;
        p.set_label(&mut called)?;
        p.put(0, rsp)?;
        p.mov(eax, cs)?;
        p.put(4, rax)?;
        p.mov(rdx, qword_ptr(SLOTS + 64))?;
        p.mov(rcx, USER_STACK - 0x80)?;
        p.sysexitq()?;
        p.set_label(&mut start)?;
        // No code segment, no SYSENTER.
        p.wrmsr_value(0x174, 0)?;
        p.mov(qword_ptr(KERNEL_RSP), rsp)?;
        p.fault_that_escapes(vector::GP, 0, ENTER, |a| {
            for value in [
                i32::from(USER_DS),
                USER_STACK as i32,
                flag::FIXED as i32,
                i32::from(USER_CS32),
                ENTER as i32,
            ] {
                a.push(value)?;
            }
            a.iretq()
        })?;
        p.wrmsr_value(0x174, u64::from(KERNEL_CS))?;
        p.wrmsr_value(0x175, RSP0)?;
        p.lea(rax, ptr(called))?;
        p.xor(edx, edx)?;
        p.mov(ecx, 0x176)?;
        p.wrmsr()?;
        p.user(|p| {
            p.lea(rax, ptr(behind))?;
            p.put_user(8, rax)?;
            p.push(i32::from(USER_CS32))?;
            p.push(ENTER as i32)?;
            // A far return with 64-bit operands.
            p.db(&[0x48, 0xCB])?;
            p.set_label(&mut behind)?;
            p.put_user(5, rsp)?;
            p.mov(eax, cs)?;
            p.put_user(6, rax)?;
            p.mov(eax, ss)?;
            p.put_user(7, rax)
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, RSP0, "RSP from its MSR");
    check_eq!(m.slot(4)?, u64::from(KERNEL_CS), "kernel CS");
    check_eq!(m.slot(5)?, USER_STACK - 0x80, "user RSP");
    check_eq!(m.slot(6)?, u64::from(USER_CS), "user CS");
    check_eq!(m.slot(7)?, u64::from(USER_DS_SYSEXIT), "user SS");
    Ok(())
}

fn syscall_disabled(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.rdmsr_value(EFER)?;
        p.btr(rax, 0)?;
        p.xor(edx, edx)?;
        p.wrmsr()?;
        p.ud(|a| a.syscall())?;
        p.ud(|a| a.sysretq())?;
        p.user(|p| p.ud(|a| a.syscall()))?;
        p.done()
    })?;
    m.run()
}
