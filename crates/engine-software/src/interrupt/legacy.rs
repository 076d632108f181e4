//! Delivery in real mode (SDM vol. 3, 21.1.4) and in protected mode without
//! IA-32e mode (6.12).

use crate::cpu::{Cpu, flag, gpr, seg};
use crate::fault::{Exec, vector};
use crate::interrupt::Step;
use crate::segment::{
    Descriptor, Stack, TaskSwitch, is_null, null_segment, selector_error, system_type,
};

impl Cpu {
    pub(super) fn deliver_real(&mut self, step: &Step) -> Exec {
        let at = u64::from(step.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(Cpu::gate_error(step.vector)));
        }
        let entry = self.read_system::<u32>(self.idtr.base.wrapping_add(at))?;
        let code = self.fetch_segment(seg::CS, (entry >> 16) as u16)?;
        let target = u64::from(entry & 0xFFFF);
        self.check_target(&code, target)?;
        let mut stack = Stack::current(self);
        stack.push(self, 2, step.flags)?;
        stack.push(self, 2, u64::from(self.segs[seg::CS as usize].selector))?;
        stack.push(self, 2, step.return_rip)?;
        self.regs[gpr::RSP] = stack.rsp;
        self.segs[seg::CS as usize] = code;
        self.set_rip(target);
        self.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        self.update_mode();
        Ok(())
    }

    pub(super) fn deliver_legacy(&mut self, step: &Step) -> Exec {
        let gate_error = Cpu::gate_error(step.vector);
        let at = u64::from(step.vector) * 8;
        if at + 7 > u64::from(self.idtr.limit) {
            return Err(self.gp(gate_error));
        }
        let address = self.idtr.base.wrapping_add(at);
        let gate = Descriptor {
            address,
            raw: self.read_system::<u64>(address)?,
        };
        let is_gate = !gate.is_segment()
            && matches!(
                gate.kind(),
                system_type::TASK_GATE
                    | system_type::INTERRUPT_GATE16
                    | system_type::TRAP_GATE16
                    | system_type::INTERRUPT_GATE32
                    | system_type::TRAP_GATE32
            );
        if !is_gate || step.software && gate.dpl() < self.cpl {
            return Err(self.gp(gate_error));
        }
        if !gate.present() {
            return Err(self.raise_code(vector::NP, gate_error));
        }
        if gate.kind() == system_type::TASK_GATE {
            let how = TaskSwitch::Interrupt(step.error);
            let flags = self.rflags;
            self.rflags = step.flags;
            let result = self.switch_task(how, gate.gate_selector(), step.return_rip);
            if result.is_err() && !self.raised.trap {
                self.rflags = flags;
            }
            return result;
        }
        self.deliver_gate(step, &gate)
    }

    fn deliver_gate(&mut self, step: &Step, gate: &Descriptor) -> Exec {
        let wide = gate.kind() & 8 != 0;
        let size = if wide { 4 } else { 2 };
        let selector = gate.gate_selector();
        let target = u64::from(gate.gate_offset()) & if wide { 0xFFFF_FFFF } else { 0xFFFF };
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let error = selector_error(selector);
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        if !descriptor.is_code() || descriptor.dpl() > self.cpl {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let vm86 = self.vm86();
        let cpl = if descriptor.is_conforming() {
            self.cpl
        } else {
            descriptor.dpl()
        };
        // Virtual-8086 mode is left for CPL 0 only.
        if vm86 && cpl != 0 {
            return Err(self.gp(error));
        }
        let inner = cpl != self.cpl;
        let mut stack = if inner {
            self.inner_stack(cpl)?
        } else {
            Stack::current(self)
        };
        let code = descriptor.segment(selector);
        self.check_target(&code, target)?;
        if vm86 {
            for which in [seg::GS, seg::FS, seg::DS, seg::ES] {
                let selector = self.segs[usize::from(which)].selector;
                stack.push(self, size, u64::from(selector))?;
            }
        }
        if inner {
            let ss = self.segs[seg::SS as usize].selector;
            stack.push(self, size, u64::from(ss))?;
            stack.push(self, size, self.regs[gpr::RSP])?;
        }
        stack.push(self, size, step.flags)?;
        stack.push(self, size, u64::from(self.segs[seg::CS as usize].selector))?;
        stack.push(self, size, step.return_rip)?;
        if let Some(code) = step.error {
            stack.push(self, size, u64::from(code))?;
        }
        self.mark_accessed(&mut descriptor)?;
        if vm86 {
            for which in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[usize::from(which)] = null_segment(0, 0);
            }
        }
        self.segs[seg::SS as usize] = stack.ss;
        self.regs[gpr::RSP] = stack.rsp;
        self.set_code_segment(descriptor.segment(selector), cpl);
        self.set_rip(target);
        self.rflags &= !(flag::TF | flag::NT | flag::RF | flag::VM);
        let masks = matches!(
            gate.kind(),
            system_type::INTERRUPT_GATE16 | system_type::INTERRUPT_GATE32
        );
        if masks {
            self.rflags &= !flag::IF;
        }
        self.update_mode();
        Ok(())
    }
}
