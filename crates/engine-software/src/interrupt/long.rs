//! Delivery in IA-32e mode (SDM vol. 3, 6.14).

use crate::cpu::{Cpu, attr, flag, gpr, seg};
use crate::fault::{Exec, vector};
use crate::interrupt::Step;
use crate::segment::{Stack, is_null, null_segment, selector_error, system_type};

/// Offset of RSP0 in a 64-bit TSS.
const TSS_RSP0: u64 = 0x04;
/// Offset of IST1 in a 64-bit TSS, less one entry.
const TSS_IST0: u64 = 0x1C;

impl Cpu {
    pub(super) fn deliver_long(&mut self, step: &Step) -> Exec {
        let at = u64::from(step.vector) * 16;
        if at + 15 > u64::from(self.idtr.limit) {
            return Err(self.gp(Cpu::gate_error(step.vector)));
        }
        let address = self.idtr.base.wrapping_add(at);
        let low = self.read_system::<u64>(address)?;
        let high = self.read_system::<u64>(address.wrapping_add(8))?;
        let kind = (low >> 40 & 0x1F) as u32;
        let dpl = (low >> 45 & 3) as u8;
        let is_gate = matches!(
            kind,
            system_type::INTERRUPT_GATE32 | system_type::TRAP_GATE32
        );
        if !is_gate || step.software && dpl < self.cpl {
            return Err(self.gp(Cpu::gate_error(step.vector)));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise_code(vector::NP, Cpu::gate_error(step.vector)));
        }
        let selector = (low >> 16) as u16;
        let target = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | high << 32;
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let error = selector_error(selector);
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        let size = descriptor.attr() & (attr::L | attr::DB);
        if !descriptor.is_code() || descriptor.dpl() > self.cpl || size != attr::L {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let cpl = if descriptor.is_conforming() {
            self.cpl
        } else {
            descriptor.dpl()
        };
        let ist = low >> 32 & 7;
        let rsp = if ist != 0 {
            self.tss64_pointer(TSS_IST0 + 8 * ist)?
        } else if cpl != self.cpl {
            self.tss64_pointer(TSS_RSP0 + 8 * u64::from(cpl))?
        } else {
            self.regs[gpr::RSP]
        };
        if !self.canonical(target) {
            return Err(self.gp(0));
        }
        let old_ss = self.segs[seg::SS as usize];
        let ss = if cpl == self.cpl {
            old_ss
        } else {
            null_segment(u16::from(cpl), cpl)
        };
        let mut stack = Stack {
            ss,
            rsp: rsp & !0xF,
            mask: u64::MAX,
            cpl,
            error: 0,
        };
        stack.push(self, 8, u64::from(old_ss.selector))?;
        stack.push(self, 8, self.regs[gpr::RSP])?;
        stack.push(self, 8, step.flags)?;
        stack.push(self, 8, u64::from(self.segs[seg::CS as usize].selector))?;
        stack.push(self, 8, step.return_rip)?;
        if let Some(code) = step.error {
            stack.push(self, 8, u64::from(code))?;
        }
        self.mark_accessed(&mut descriptor)?;
        self.regs[gpr::RSP] = stack.rsp;
        self.segs[seg::SS as usize] = ss;
        self.set_code_segment(descriptor.segment(selector), cpl);
        self.set_rip(target);
        self.rflags &= !(flag::TF | flag::NT | flag::RF | flag::VM);
        if kind == system_type::INTERRUPT_GATE32 {
            self.rflags &= !flag::IF;
        }
        self.update_mode();
        Ok(())
    }
}
