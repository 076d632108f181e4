//! Far jumps, calls and returns (SDM vol. 2, JMP, CALL, RET).

use crate::cpu::{Cpu, Segment, attr, gpr, seg};
use crate::fault::{Exec, vector};
use crate::segment::task::TaskSwitch;
use crate::segment::{
    BUSY, Descriptor, Stack, is_null, null_segment, rpl, selector_error, system_type,
};

/// Most parameters that a call gate copies.
const GATE_PARAMETERS: u64 = 0x1F;

impl Cpu {
    /// JMP or CALL (`call`) to `selector:offset`. `size` is the operand size
    /// in bytes, `next` the instruction behind.
    pub fn far_branch(
        &mut self,
        call: bool,
        selector: u16,
        offset: u64,
        size: u64,
        next: u64,
    ) -> Exec {
        if self.real_or_vm86() {
            return self.far_branch_real(call, selector, offset, size, next);
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        if descriptor.is_segment() {
            return self.far_branch_code(call, descriptor, selector, offset, size, next);
        }
        match descriptor.kind() {
            system_type::CALL_GATE16 if !self.long_mode => {
                self.call_gate(call, descriptor, selector, 2, next)
            }
            system_type::CALL_GATE32 if self.long_mode => {
                self.call_gate(call, descriptor, selector, 8, next)
            }
            system_type::CALL_GATE32 => self.call_gate(call, descriptor, selector, 4, next),
            system_type::TSS16 | system_type::TSS32 if !self.long_mode => {
                if descriptor.dpl() < self.cpl.max(rpl(selector)) {
                    return Err(self.gp(selector_error(selector)));
                }
                self.branch_to_task(call, selector, next)
            }
            system_type::TASK_GATE if !self.long_mode => {
                if descriptor.dpl() < self.cpl.max(rpl(selector)) {
                    return Err(self.gp(selector_error(selector)));
                }
                if !descriptor.present() {
                    return Err(self.raise_code(vector::NP, selector_error(selector)));
                }
                self.branch_to_task(call, descriptor.gate_selector(), next)
            }
            _ => Err(self.gp(selector_error(selector))),
        }
    }

    fn branch_to_task(&mut self, call: bool, selector: u16, next: u64) -> Exec {
        let how = if call {
            TaskSwitch::Call
        } else {
            TaskSwitch::Jump
        };
        self.switch_task(how, selector, next)
    }

    fn far_branch_real(
        &mut self,
        call: bool,
        selector: u16,
        offset: u64,
        size: u64,
        next: u64,
    ) -> Exec {
        let code = self.fetch_segment(seg::CS, selector)?;
        let mut stack = Stack::current(self);
        if call {
            let cs = u64::from(self.segs[seg::CS as usize].selector);
            stack.push(self, size, cs)?;
            stack.push(self, size, next)?;
        }
        self.check_target(&code, offset)?;
        self.regs[gpr::RSP] = stack.rsp;
        self.segs[seg::CS as usize] = code;
        self.set_rip(offset);
        self.update_mode();
        Ok(())
    }

    /// Checks that a branch at the same privilege may go to `descriptor`.
    fn check_same_level(&mut self, descriptor: &Descriptor, selector: u16) -> Exec {
        self.check_code(descriptor, selector, vector::GP)?;
        let dpl = descriptor.dpl();
        let allowed = if descriptor.is_conforming() {
            dpl <= self.cpl
        } else {
            rpl(selector) <= self.cpl && dpl == self.cpl
        };
        if !allowed {
            return Err(self.gp(selector_error(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, selector_error(selector)));
        }
        Ok(())
    }

    fn far_branch_code(
        &mut self,
        call: bool,
        mut descriptor: Descriptor,
        selector: u16,
        offset: u64,
        size: u64,
        next: u64,
    ) -> Exec {
        self.check_same_level(&descriptor, selector)?;
        let code = descriptor.segment(selector);
        self.check_target(&code, offset)?;
        let mut stack = Stack::current(self);
        if call {
            let cs = u64::from(self.segs[seg::CS as usize].selector);
            stack.push(self, size, cs)?;
            stack.push(self, size, next)?;
        }
        self.mark_accessed(&mut descriptor)?;
        self.regs[gpr::RSP] = stack.rsp;
        self.set_code_segment(descriptor.segment(selector), self.cpl);
        self.set_rip(offset);
        self.update_mode();
        Ok(())
    }

    /// Through a call gate of `size` bytes (2, 4; 8 in IA-32e mode).
    fn call_gate(
        &mut self,
        call: bool,
        gate: Descriptor,
        selector: u16,
        size: u64,
        next: u64,
    ) -> Exec {
        let gate_error = selector_error(selector);
        if gate.dpl() < self.cpl.max(rpl(selector)) {
            return Err(self.gp(gate_error));
        }
        if !gate.present() {
            return Err(self.raise_code(vector::NP, gate_error));
        }
        let mut offset = u64::from(gate.gate_offset());
        match size {
            2 => offset &= 0xFFFF,
            8 => offset |= self.system_descriptor(selector, vector::GP)?.1 << 32,
            _ => {}
        }
        let target = gate.gate_selector();
        if is_null(target) {
            return Err(self.gp(0));
        }
        let error = selector_error(target);
        let mut descriptor = self.descriptor(target, vector::GP)?;
        self.check_code(&descriptor, target, vector::GP)?;
        let long = attr::L;
        if descriptor.dpl() > self.cpl || size == 8 && descriptor.attr() & long == 0 {
            return Err(self.gp(error));
        }
        let inner = !descriptor.is_conforming() && descriptor.dpl() < self.cpl;
        if !call && inner {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let code = descriptor.segment(target);
        let cs = u64::from(self.segs[seg::CS as usize].selector);
        if !inner {
            self.check_target(&code, offset)?;
            let mut stack = Stack::current(self);
            if size == 8 {
                stack.mask = u64::MAX;
            }
            if call {
                stack.push(self, size, cs)?;
                stack.push(self, size, next)?;
            }
            self.mark_accessed(&mut descriptor)?;
            self.regs[gpr::RSP] = stack.rsp;
            self.set_code_segment(descriptor.segment(target), self.cpl);
            self.set_rip(offset);
            self.update_mode();
            return Ok(());
        }
        let cpl = descriptor.dpl();
        let mut stack = if size == 8 {
            let rsp = self.tss64_pointer(4 + 8 * u64::from(cpl))?;
            Stack {
                ss: null_segment(u16::from(cpl), cpl),
                rsp,
                mask: u64::MAX,
                cpl,
                error: 0,
            }
        } else {
            self.inner_stack(cpl)?
        };
        self.check_target(&code, offset)?;
        let old_ss = u64::from(self.segs[seg::SS as usize].selector);
        let old_rsp = self.regs[gpr::RSP];
        let parameters = if size == 8 {
            Vec::new()
        } else {
            self.gate_parameters(gate.raw >> 32 & GATE_PARAMETERS, size)?
        };
        stack.push(self, size, old_ss)?;
        stack.push(self, size, old_rsp)?;
        for value in parameters.iter().rev() {
            stack.push(self, size, *value)?;
        }
        stack.push(self, size, cs)?;
        stack.push(self, size, next)?;
        self.mark_accessed(&mut descriptor)?;
        self.segs[seg::SS as usize] = stack.ss;
        self.regs[gpr::RSP] = stack.rsp;
        self.set_code_segment(descriptor.segment(target), cpl);
        self.set_rip(offset);
        self.update_mode();
        Ok(())
    }

    /// The caller's parameters, first popped first.
    fn gate_parameters(&mut self, count: u64, size: u64) -> Exec<Vec<u64>> {
        let mut caller = Stack::current(self);
        (0..count).map(|_| caller.pop(self, size)).collect()
    }

    /// RET far, releasing `release` bytes of parameters.
    pub fn far_return(&mut self, size: u64, release: u64) -> Exec {
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, size)?;
        let selector = stack.pop(self, size)? as u16;
        if self.real_or_vm86() {
            let code = self.fetch_segment(seg::CS, selector)?;
            self.check_target(&code, rip)?;
            stack.skip(release);
            self.regs[gpr::RSP] = stack.rsp;
            self.segs[seg::CS as usize] = code;
            self.set_rip(rip);
            self.update_mode();
            return Ok(());
        }
        let (mut descriptor, cpl) = self.return_target(selector)?;
        let code = descriptor.segment(selector);
        if cpl == self.cpl {
            self.check_target(&code, rip)?;
            stack.skip(release);
            self.mark_accessed(&mut descriptor)?;
            self.regs[gpr::RSP] = stack.rsp;
        } else {
            stack.skip(release);
            let rsp = stack.pop(self, size)?;
            let ss = stack.pop(self, size)? as u16;
            let segment = self.return_stack(&code, ss, cpl)?;
            self.check_target(&code, rip)?;
            self.mark_accessed(&mut descriptor)?;
            self.set_outer_stack(&code, segment, rsp, release);
        }
        let outer = cpl != self.cpl;
        self.set_code_segment(descriptor.segment(selector), cpl);
        self.set_rip(rip);
        self.update_mode();
        if outer {
            self.drop_privileged_segments();
        }
        Ok(())
    }

    /// Checks the code segment that RET or IRET returns to; its privilege is
    /// the selector's RPL.
    pub(crate) fn return_target(&mut self, selector: u16) -> Exec<(Descriptor, u8)> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let error = selector_error(selector);
        let cpl = rpl(selector);
        let descriptor = self.descriptor(selector, vector::GP)?;
        self.check_code(&descriptor, selector, vector::GP)?;
        let level = if descriptor.is_conforming() {
            descriptor.dpl() <= cpl
        } else {
            descriptor.dpl() == cpl
        };
        if cpl < self.cpl || !level {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        Ok((descriptor, cpl))
    }

    /// Checks the stack segment that a return to `code` at `cpl` loads. Null
    /// is allowed where the target is 64-bit code below CPL 3.
    pub(crate) fn return_stack(&mut self, code: &Segment, selector: u16, cpl: u8) -> Exec<Segment> {
        if is_null(selector) {
            let wide = self.long_mode && code.attr & attr::L != 0;
            if wide && cpl != 3 && rpl(selector) == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(self.gp(0));
        }
        self.fetch_stack(selector, cpl, vector::GP)
    }

    /// Installs the stack that a return pops, its pointer raised by `release`.
    pub(crate) fn set_outer_stack(&mut self, code: &Segment, ss: Segment, rsp: u64, release: u64) {
        self.segs[seg::SS as usize] = ss;
        let old = self.regs[gpr::RSP];
        let wide = self.long_mode && code.attr & attr::L != 0;
        self.regs[gpr::RSP] = if wide {
            rsp.wrapping_add(release)
        } else if ss.attr & attr::DB != 0 {
            rsp.wrapping_add(release) & 0xFFFF_FFFF
        } else {
            old & !0xFFFF | rsp.wrapping_add(release) & 0xFFFF
        };
    }

    /// A stack pointer in a 64-bit TSS, at byte `offset`.
    pub(crate) fn tss64_pointer(&mut self, offset: u64) -> Exec<u64> {
        if offset + 7 > u64::from(self.tr.limit) {
            let error = selector_error(self.tr.selector);
            return Err(self.raise_code(vector::TS, error));
        }
        let rsp = self.read_system::<u64>(self.tr.base.wrapping_add(offset))?;
        if !self.canonical(rsp) {
            return Err(self.raise_code(vector::SS, 0));
        }
        Ok(rsp)
    }

    /// The stack for `cpl` in a 16- or 32-bit TSS.
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Exec<Stack> {
        let wide = self.tr.attr & attr::TYPE & !BUSY == system_type::TSS32;
        let (offset, size) = if wide {
            (4 + 8 * u64::from(cpl), 8)
        } else {
            (2 + 4 * u64::from(cpl), 4)
        };
        if offset + size - 1 > u64::from(self.tr.limit) || self.tr.attr & attr::UNUSABLE != 0 {
            let error = selector_error(self.tr.selector);
            return Err(self.raise_code(vector::TS, error));
        }
        let at = self.tr.base.wrapping_add(offset);
        let (rsp, selector) = if wide {
            (
                u64::from(self.read_system::<u32>(at)?),
                self.read_system::<u16>(at.wrapping_add(4))?,
            )
        } else {
            (
                u64::from(self.read_system::<u16>(at)?),
                self.read_system::<u16>(at.wrapping_add(2))?,
            )
        };
        if is_null(selector) {
            return Err(self.raise_code(vector::TS, selector_error(selector)));
        }
        let ss = self.fetch_stack(selector, cpl, vector::TS)?;
        Ok(Stack::legacy(ss, rsp, cpl))
    }
}
