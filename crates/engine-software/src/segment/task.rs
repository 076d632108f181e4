//! Hardware task switches (SDM vol. 3, chapter 8).
//!
//! ```text
//! check new TSS ─► read it ─► save old task ─► busy bits, link ─► commit
//!     faults belong to the old task            │ faults belong to the new one
//! ```

use crate::cpu::{Cpu, Segment, attr, cr0, cr4, flag, gpr, seg};
use crate::fault::{Exec, vector};
use crate::segment::{
    BUSY, Descriptor, Stack, is_null, null_segment, rpl, selector_error, system_type, vm86_segment,
};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitch {
    /// JMP.
    Jump,
    /// CALL: nested, returns by IRET.
    Call,
    /// An interrupt or exception through a task gate, with its error code.
    Interrupt(Option<u32>),
    /// IRET with NT set.
    Return,
}

/// What a TSS holds of a task, widened to 32 bits.
#[derive(Clone, Copy, Debug, Default)]
struct Image {
    cr3: Option<u32>,
    eip: u32,
    eflags: u32,
    registers: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    /// T flag: debug trap after the switch.
    trap: bool,
}

/// Byte offsets in a 32-bit TSS (SDM vol. 3, figure 8-2).
mod tss32 {
    pub const LIMIT: u32 = 0x67;
    pub const CR3: u64 = 0x1C;
    pub const EIP: u64 = 0x20;
    pub const SELECTORS: u64 = 0x48;
    pub const LDT: u64 = 0x60;
    pub const TRAP: u64 = 0x64;
}

/// Byte offsets in a 16-bit TSS (SDM vol. 3, figure 8-10).
mod tss16 {
    pub const LIMIT: u32 = 0x2B;
    pub const IP: u64 = 0x0E;
    pub const SELECTORS: u64 = 0x22;
    pub const LDT: u64 = 0x2A;
}

fn is_wide(attributes: u32) -> bool {
    attributes & attr::TYPE & !BUSY == system_type::TSS32
}

impl Cpu {
    /// Switches to the task of the TSS `selector`. `next` is the instruction
    /// at which the old task continues.
    pub fn switch_task(&mut self, how: TaskSwitch, selector: u16, next: u64) -> Exec {
        let fault = if how == TaskSwitch::Return {
            vector::TS
        } else {
            vector::GP
        };
        let error = selector_error(selector);
        if selector & 4 != 0 || is_null(selector) {
            return Err(self.raise_code(fault, error));
        }
        let mut descriptor = self.descriptor(selector, fault)?;
        let busy = descriptor.kind() & BUSY != 0;
        let is_tss = !descriptor.is_segment()
            && matches!(
                descriptor.kind() & !BUSY,
                system_type::TSS16 | system_type::TSS32
            );
        if !is_tss || busy != (how == TaskSwitch::Return) {
            return Err(self.raise_code(fault, error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let wide = is_wide(descriptor.attr());
        let least = if wide { tss32::LIMIT } else { tss16::LIMIT };
        if descriptor.limit() < least {
            return Err(self.raise_code(vector::TS, error));
        }
        let mut new = self.read_image(descriptor.base(), wide)?;
        let old_tr = self.tr;
        self.save_task(how, next)?;
        if matches!(how, TaskSwitch::Jump | TaskSwitch::Return) {
            self.set_busy(&old_tr, false)?;
        }
        if matches!(how, TaskSwitch::Call | TaskSwitch::Interrupt(_)) {
            self.write_system::<u16>(descriptor.base(), old_tr.selector)?;
            new.eflags |= flag::NT as u32;
        }
        if how != TaskSwitch::Return {
            descriptor.raw |= u64::from(BUSY) << 40;
            let byte = (descriptor.raw >> 40) as u8;
            self.write_system::<u8>(descriptor.address.wrapping_add(5), byte)?;
        }
        self.commit_task(&descriptor, selector, &new);
        self.enter_task(how, &new, wide).inspect_err(|_| {
            // RIP stands in the new task, which the exception belongs to.
            self.raised.trap = true;
        })
    }

    fn read_image(&mut self, base: u64, wide: bool) -> Exec<Image> {
        let mut image = Image::default();
        let at = |offset: u64| base.wrapping_add(offset);
        if wide {
            image.cr3 = Some(self.read_system::<u32>(at(tss32::CR3))?);
            image.eip = self.read_system::<u32>(at(tss32::EIP))?;
            image.eflags = self.read_system::<u32>(at(tss32::EIP + 4))?;
            for n in 0..8 {
                image.registers[n] = self.read_system::<u32>(at(tss32::EIP + 8 + 4 * n as u64))?;
            }
            for n in 0..6 {
                image.selectors[n] =
                    self.read_system::<u16>(at(tss32::SELECTORS + 4 * n as u64))?;
            }
            image.ldt = self.read_system::<u16>(at(tss32::LDT))?;
            image.trap = self.read_system::<u16>(at(tss32::TRAP))? & 1 != 0;
        } else {
            image.eip = u32::from(self.read_system::<u16>(at(tss16::IP))?);
            image.eflags = u32::from(self.read_system::<u16>(at(tss16::IP + 2))?);
            for n in 0..8 {
                let low = self.read_system::<u16>(at(tss16::IP + 4 + 2 * n as u64))?;
                image.registers[n] = u32::from(low) | 0xFFFF_0000;
            }
            for n in 0..4 {
                image.selectors[n] =
                    self.read_system::<u16>(at(tss16::SELECTORS + 2 * n as u64))?;
            }
            image.ldt = self.read_system::<u16>(at(tss16::LDT))?;
        }
        Ok(image)
    }

    /// Stores the running task in the current TSS.
    fn save_task(&mut self, how: TaskSwitch, next: u64) -> Exec {
        let base = self.tr.base;
        let at = |offset: u64| base.wrapping_add(offset);
        let mut flags = self.rflags as u32;
        if how == TaskSwitch::Return {
            flags &= !(flag::NT as u32);
        }
        if is_wide(self.tr.attr) {
            // The last byte first: a page that cannot be written shows
            // before anything has changed.
            for n in (0..6).rev() {
                let selector = self.segs[n].selector;
                self.write_system::<u16>(at(tss32::SELECTORS + 4 * n as u64), selector)?;
            }
            for n in (0..8).rev() {
                let value = self.regs[n] as u32;
                self.write_system::<u32>(at(tss32::EIP + 8 + 4 * n as u64), value)?;
            }
            self.write_system::<u32>(at(tss32::EIP + 4), flags)?;
            self.write_system::<u32>(at(tss32::EIP), next as u32)
        } else {
            for n in (0..4).rev() {
                let selector = self.segs[n].selector;
                self.write_system::<u16>(at(tss16::SELECTORS + 2 * n as u64), selector)?;
            }
            for n in (0..8).rev() {
                let value = self.regs[n] as u16;
                self.write_system::<u16>(at(tss16::IP + 4 + 2 * n as u64), value)?;
            }
            self.write_system::<u16>(at(tss16::IP + 2), flags as u16)?;
            self.write_system::<u16>(at(tss16::IP), next as u16)
        }
    }

    fn set_busy(&mut self, tr: &Segment, busy: bool) -> Exec {
        let descriptor = self.descriptor(tr.selector, vector::TS)?;
        let byte = (descriptor.raw >> 40) as u8 & !(BUSY as u8);
        let byte = byte | if busy { BUSY as u8 } else { 0 };
        self.write_system::<u8>(descriptor.address.wrapping_add(5), byte)
    }

    /// The point of no return: everything that needs no check.
    fn commit_task(&mut self, descriptor: &Descriptor, selector: u16, new: &Image) {
        self.tr = descriptor.segment(selector);
        self.tr.attr |= BUSY;
        self.cr0 |= cr0::TS;
        for (register, value) in self.regs.iter_mut().zip(new.registers) {
            *register = u64::from(value);
        }
        self.set_rip(u64::from(new.eip));
        let known = flag::ARITH
            | flag::TF
            | flag::IF
            | flag::DF
            | flag::IOPL
            | flag::NT
            | flag::RF
            | flag::VM
            | flag::AC
            | flag::ID;
        self.rflags = u64::from(new.eflags) & known | flag::FIXED;
        let vm86 = self.vm86();
        for (segment, selector) in self.segs.iter_mut().zip(new.selectors) {
            *segment = if vm86 {
                vm86_segment(selector)
            } else {
                null_segment(selector, 0)
            };
        }
        // Until SS is loaded, the new privilege is what CS asks for.
        if !vm86 {
            let cpl = rpl(new.selectors[seg::CS as usize]);
            self.segs[seg::SS as usize].attr |= u32::from(cpl) << attr::DPL_SHIFT;
        }
        self.ldtr = null_segment(new.ldt, 0);
        // Local breakpoints belong to a task (SDM vol. 3, 18.2.4).
        self.dr7 &= !0x155;
        if let Some(cr3) = new.cr3
            && self.cr0 & cr0::PG != 0
        {
            self.cr3 = u64::from(cr3);
            self.switch_address_space(false);
        }
        self.update_mode();
    }

    /// Loads what has to be checked, in the new task.
    fn enter_task(&mut self, how: TaskSwitch, new: &Image, wide: bool) -> Exec {
        if new.cr3.is_some() && self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.load_pdptes()?;
        }
        if !is_null(new.ldt) {
            let error = selector_error(new.ldt);
            if new.ldt & 4 != 0 {
                return Err(self.raise_code(vector::TS, error));
            }
            let descriptor = self.descriptor(new.ldt, vector::TS)?;
            let is_ldt = !descriptor.is_segment() && descriptor.kind() == system_type::LDT;
            if !is_ldt || !descriptor.present() {
                return Err(self.raise_code(vector::TS, error));
            }
            self.ldtr = descriptor.segment(new.ldt);
        }
        if !self.vm86() {
            self.load_task_segments(new)?;
        }
        if let TaskSwitch::Interrupt(Some(code)) = how {
            let mut stack = Stack::current(self);
            stack.push(self, if wide { 4 } else { 2 }, u64::from(code))?;
            self.regs[gpr::RSP] = stack.rsp;
        }
        let code = self.segs[seg::CS as usize];
        self.check_target(&code, u64::from(new.eip))?;
        if new.trap {
            self.raise(vector::DB);
            // BT (SDM vol. 3, 18.2.3).
            self.raised.dr6 = 1 << 15;
            return Err(crate::fault::Fault);
        }
        Ok(())
    }

    fn load_task_segments(&mut self, new: &Image) -> Exec {
        let cs = new.selectors[seg::CS as usize];
        let error = selector_error(cs);
        if is_null(cs) {
            return Err(self.raise_code(vector::TS, 0));
        }
        let cpl = rpl(cs);
        let mut descriptor = self.descriptor(cs, vector::TS)?;
        let level = if descriptor.is_conforming() {
            descriptor.dpl() <= cpl
        } else {
            descriptor.dpl() == cpl
        };
        if !descriptor.is_code() || !level {
            return Err(self.raise_code(vector::TS, error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        self.mark_accessed(&mut descriptor)?;
        let ss = new.selectors[seg::SS as usize];
        if is_null(ss) {
            return Err(self.raise_code(vector::TS, 0));
        }
        let stack = self.fetch_stack(ss, cpl, vector::TS)?;
        self.segs[seg::SS as usize] = stack;
        self.set_code_segment(descriptor.segment(cs), cpl);
        self.update_mode();
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let selector = new.selectors[usize::from(which)];
            let loaded = self.fetch_segment(which, selector).inspect_err(|_| {
                if self.raised.vector == vector::GP {
                    self.raised.vector = vector::TS;
                }
            })?;
            self.segs[usize::from(which)] = loaded;
        }
        Ok(())
    }
}
