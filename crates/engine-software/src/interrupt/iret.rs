//! IRET (SDM vol. 2, IRET/IRETD/IRETQ).

use crate::cpu::{Cpu, flag, gpr, seg};
use crate::fault::{Exec, vector};
use crate::segment::{Stack, TaskSwitch, vm86_segment};

impl Cpu {
    /// Returns from a handler; `size` is the operand size in bytes, `next`
    /// the instruction behind (where a task left by IRET would continue).
    pub fn interrupt_return(&mut self, size: u64, next: u64) -> Exec {
        // Even a faulting IRET ends the blocking (SDM vol. 3, 6.7.1).
        self.nmi_blocked = false;
        self.recheck = true;
        if !self.protected() {
            return self.interrupt_return_real(size);
        }
        if self.vm86() {
            if self.iopl() < 3 {
                return Err(self.gp(0));
            }
            return self.interrupt_return_real(size);
        }
        if self.rflags & flag::NT != 0 {
            if self.long_mode {
                return Err(self.gp(0));
            }
            let link = self.read_system::<u16>(self.tr.base)?;
            return self.switch_task(TaskSwitch::Return, link, next);
        }
        self.interrupt_return_protected(size)
    }

    /// The flags that an IRET of `size` bytes at the current privilege may
    /// change.
    fn return_flags(&self, size: u64, popped: u64) -> u64 {
        let mut mask = flag::ARITH | flag::TF | flag::DF | flag::NT;
        if size > 2 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        if self.cpl <= self.iopl() {
            mask |= flag::IF;
        }
        if self.cpl == 0 && !self.vm86() {
            mask |= flag::IOPL;
            if size > 2 {
                mask |= flag::VIF | flag::VIP;
            }
        }
        self.rflags & !mask | popped & mask | flag::FIXED
    }

    fn interrupt_return_real(&mut self, size: u64) -> Exec {
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        let flags = stack.pop(self, size)?;
        let code = self.fetch_segment(seg::CS, selector)?;
        self.check_target(&code, rip)?;
        self.regs[gpr::RSP] = stack.rsp;
        self.segs[seg::CS as usize] = code;
        self.set_rip(rip);
        self.rflags = self.return_flags(size, flags);
        self.update_mode();
        Ok(())
    }

    fn interrupt_return_protected(&mut self, size: u64) -> Exec {
        let wide = self.code64();
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        let flags = stack.pop(self, size)?;
        if size == 4 && flags & flag::VM != 0 && self.cpl == 0 && !self.long_mode {
            return self.return_to_vm86(stack, rip, selector, flags);
        }
        let (mut descriptor, cpl) = self.return_target(selector)?;
        let code = descriptor.segment(selector);
        if cpl == self.cpl && !wide {
            self.check_target(&code, rip)?;
            self.mark_accessed(&mut descriptor)?;
            self.regs[gpr::RSP] = stack.rsp;
        } else {
            let rsp = stack.pop(self, size)?;
            let ss = stack.pop(self, size)? as u16;
            let segment = self.return_stack(&code, ss, cpl)?;
            self.check_target(&code, rip)?;
            self.mark_accessed(&mut descriptor)?;
            self.set_outer_stack(&code, segment, rsp, 0);
        }
        self.rflags = self.return_flags(size, flags);
        let outer = cpl != self.cpl;
        self.set_code_segment(descriptor.segment(selector), cpl);
        self.set_rip(rip);
        self.update_mode();
        if outer {
            self.drop_privileged_segments();
        }
        Ok(())
    }

    fn return_to_vm86(&mut self, mut stack: Stack, rip: u64, cs: u16, flags: u64) -> Exec {
        let rsp = stack.pop(self, 4)?;
        let ss = stack.pop(self, 4)? as u16;
        let mut selectors = [0; 4];
        for selector in &mut selectors {
            *selector = stack.pop(self, 4)? as u16;
        }
        if rip > 0xFFFF {
            return Err(self.raise_code(vector::GP, 0));
        }
        let [es, ds, fs, gs] = selectors;
        for (which, selector) in [es, cs, ss, ds, fs, gs].into_iter().enumerate() {
            self.segs[which] = vm86_segment(selector);
        }
        self.regs[gpr::RSP] = rsp;
        self.set_rip(rip);
        let all = flag::ARITH
            | flag::TF
            | flag::IF
            | flag::DF
            | flag::IOPL
            | flag::NT
            | flag::RF
            | flag::VM
            | flag::AC
            | flag::VIF
            | flag::VIP
            | flag::ID;
        self.rflags = flags & all | flag::FIXED;
        self.update_mode();
        Ok(())
    }
}
