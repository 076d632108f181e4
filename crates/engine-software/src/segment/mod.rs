//! Segment descriptors: fetching, checking, loading (SDM vol. 3, chapters
//! 3.4 and 5; vol. 2, MOV and POP).

mod far;
mod task;

use crate::cpu::{Cpu, Segment, attr, seg};
use crate::fault::{Exec, vector};

pub use task::TaskSwitch;

/// Types of system descriptors (SDM vol. 3, table 3-2).
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16: u32 = 0x1;
    pub const LDT: u32 = 0x2;
    pub const CALL_GATE16: u32 = 0x4;
    pub const TASK_GATE: u32 = 0x5;
    pub const INTERRUPT_GATE16: u32 = 0x6;
    pub const TRAP_GATE16: u32 = 0x7;
    pub const TSS32: u32 = 0x9;
    pub const CALL_GATE32: u32 = 0xC;
    pub const INTERRUPT_GATE32: u32 = 0xE;
    pub const TRAP_GATE32: u32 = 0xF;
}

/// The bit of a type that says busy (TSS).
pub const BUSY: u32 = 0x2;

/// The selector as an error code.
pub fn selector_error(selector: u16) -> u32 {
    u32::from(selector & 0xFFFC)
}

/// Requested privilege level.
pub fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// True for the null selectors 0–3.
pub fn is_null(selector: u16) -> bool {
    selector & 0xFFFC == 0
}

/// A segment or gate descriptor as it lies in a table, with its address.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Linear address of its first byte.
    pub address: u64,
    /// Its (first) eight bytes.
    pub raw: u64,
}

impl Descriptor {
    /// See [`attr`].
    pub fn attr(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xF0FF
    }

    /// The four type bits.
    pub fn kind(&self) -> u32 {
        self.attr() & attr::TYPE
    }

    /// Code or data, rather than a system segment or gate.
    pub fn is_segment(&self) -> bool {
        self.attr() & attr::S != 0
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        self.is_segment() && self.attr() & attr::CODE != 0
    }

    /// A conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.attr() & attr::EC != 0
    }

    /// A writable data segment.
    pub fn is_writable_data(&self) -> bool {
        self.is_segment() && self.attr() & (attr::CODE | attr::RW) == attr::RW
    }

    /// Data, or code that can be read.
    pub fn is_readable(&self) -> bool {
        self.is_segment() && self.attr() & (attr::CODE | attr::RW) != attr::CODE
    }

    /// Present.
    pub fn present(&self) -> bool {
        self.attr() & attr::P != 0
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attr() >> attr::DPL_SHIFT & 3) as u8
    }

    /// Base address, 32 bits.
    pub fn base(&self) -> u64 {
        self.raw >> 16 & 0xFF_FFFF | self.raw >> 32 & 0xFF00_0000
    }

    /// Limit in bytes.
    pub fn limit(&self) -> u32 {
        let limit = (self.raw & 0xFFFF | self.raw >> 32 & 0xF_0000) as u32;
        if self.attr() & attr::G != 0 {
            limit << 12 | 0xFFF
        } else {
            limit
        }
    }

    /// Target selector of a gate.
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// Target offset of a 32-bit gate; the low half is a 16-bit gate's.
    pub fn gate_offset(&self) -> u32 {
        (self.raw & 0xFFFF | self.raw >> 32 & 0xFFFF_0000) as u32
    }

    /// The segment register that loading it gives.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            attr: self.attr(),
            limit: self.limit(),
            base: self.base(),
        }
    }
}

/// A null selector, loaded. It remembers a DPL: that of SS is the CPL.
pub fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        attr: attr::UNUSABLE | u32::from(dpl) << attr::DPL_SHIFT,
        limit: 0,
        base: 0,
    }
}

/// A segment of virtual-8086 mode (SDM vol. 3, 21.2.1).
pub fn vm86_segment(selector: u16) -> Segment {
    Segment {
        selector,
        attr: 0xF3,
        limit: 0xFFFF,
        base: u64::from(selector) << 4,
    }
}

impl Cpu {
    /// Reads the descriptor of a selector that is not null. Beyond the
    /// table's limit: `fault` with the selector as its error code.
    pub fn descriptor(&mut self, selector: u16, fault: u8) -> Exec<Descriptor> {
        self.descriptor_of(selector, 8, fault)
    }

    fn descriptor_of(&mut self, selector: u16, size: u32, fault: u8) -> Exec<Descriptor> {
        let (base, limit) = if selector & 4 != 0 {
            if self.ldtr.attr & attr::UNUSABLE != 0 {
                return Err(self.raise_code(fault, selector_error(selector)));
            }
            (self.ldtr.base, self.ldtr.limit)
        } else {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        };
        let offset = u32::from(selector & 0xFFF8);
        if offset + (size - 1) > limit {
            return Err(self.raise_code(fault, selector_error(selector)));
        }
        let address = base.wrapping_add(u64::from(offset));
        let raw = self.read_system::<u64>(address)?;
        Ok(Descriptor { address, raw })
    }

    /// Reads a descriptor that is 16 bytes long in IA-32e mode (LDT, TSS,
    /// call gate), and its upper half (0 outside IA-32e mode).
    pub fn system_descriptor(&mut self, selector: u16, fault: u8) -> Exec<(Descriptor, u64)> {
        if !self.long_mode {
            return Ok((self.descriptor(selector, fault)?, 0));
        }
        let low = self.descriptor_of(selector, 16, fault)?;
        let high = self.read_system::<u64>(low.address.wrapping_add(8))?;
        // The type field of the upper half must be zero.
        if high >> 40 & 0x1F != 0 {
            return Err(self.raise_code(fault, selector_error(selector)));
        }
        Ok((low, high))
    }

    /// Sets the accessed bit in the table, if it is not set.
    pub fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Exec {
        if descriptor.raw & 1 << 40 == 0 {
            descriptor.raw |= 1 << 40;
            let byte = (descriptor.raw >> 40) as u8;
            self.write_system::<u8>(descriptor.address.wrapping_add(5), byte)?;
        }
        Ok(())
    }

    /// MOV, POP or L*S to a segment register other than CS.
    pub fn load_segment(&mut self, which: u8, selector: u16) -> Exec {
        let loaded = self.fetch_segment(which, selector)?;
        self.segs[usize::from(which)] = loaded;
        if which == seg::SS {
            self.update_mode();
        }
        Ok(())
    }

    /// What [`Cpu::load_segment`] would load.
    pub fn fetch_segment(&mut self, which: u8, selector: u16) -> Exec<Segment> {
        if self.vm86() {
            return Ok(vm86_segment(selector));
        }
        if !self.protected() {
            // Limit and attributes stay ("unreal mode" relies on it).
            let old = self.segs[usize::from(which)];
            let (attr, limit) = if old.attr & attr::UNUSABLE != 0 {
                (0x93, 0xFFFF)
            } else {
                (old.attr, old.limit)
            };
            return Ok(Segment {
                selector,
                attr,
                limit,
                base: u64::from(selector) << 4,
            });
        }
        if which == seg::SS {
            return self.fetch_stack(selector, self.cpl, vector::GP);
        }
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        let privileged =
            !descriptor.is_conforming() && descriptor.dpl() < self.cpl.max(rpl(selector));
        if !descriptor.is_readable() || privileged {
            return Err(self.gp(selector_error(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, selector_error(selector)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// A stack segment for `cpl`. `fault` is what a bad one raises: #GP, or
    /// #TS where it comes from a TSS.
    pub fn fetch_stack(&mut self, selector: u16, cpl: u8, fault: u8) -> Exec<Segment> {
        if is_null(selector) {
            if self.code64() && cpl < 3 && rpl(selector) == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(self.raise_code(fault, selector_error(selector)));
        }
        let mut descriptor = self.descriptor(selector, fault)?;
        let level = rpl(selector) == cpl && descriptor.dpl() == cpl;
        if !level || !descriptor.is_writable_data() {
            return Err(self.raise_code(fault, selector_error(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::SS, selector_error(selector)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Makes data segments unusable that the new, lower privilege may not
    /// use (returns to an outer level). Bases stay: in 64-bit mode those of FS
    /// and GS count with any selector.
    pub fn drop_privileged_segments(&mut self) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.segs[usize::from(which)];
            let conforming = attr::S | attr::CODE | attr::EC;
            // A null selector stays, with the base that FS and GS may have.
            let null = segment.attr & attr::UNUSABLE != 0;
            if null || segment.attr & conforming == conforming {
                continue;
            }
            if ((segment.attr >> attr::DPL_SHIFT & 3) as u8) < self.cpl {
                *segment = Segment {
                    base: segment.base,
                    ..null_segment(0, 0)
                };
            }
        }
    }

    /// Installs CS (its RPL becoming `cpl`), with SS of the same privilege.
    pub fn set_code_segment(&mut self, mut code: Segment, cpl: u8) {
        code.selector = code.selector & !3 | u16::from(cpl);
        self.segs[seg::CS as usize] = code;
    }

    /// #GP(0) unless `target` may be the instruction pointer in `code`.
    pub fn check_target(&mut self, code: &Segment, target: u64) -> Exec {
        let wide = self.long_mode && code.attr & attr::L != 0;
        let allowed = if wide {
            (target as i64) << 16 >> 16 == target as i64
        } else {
            target <= u64::from(code.limit)
        };
        if !allowed {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Checks the type of a code segment: in IA-32e mode L and D exclude
    /// each other. The error code is the selector.
    pub fn check_code(&mut self, descriptor: &Descriptor, selector: u16, fault: u8) -> Exec {
        let both = attr::L | attr::DB;
        let bad_size = self.long_mode && descriptor.attr() & both == both;
        if !descriptor.is_code() || bad_size {
            return Err(self.raise_code(fault, selector_error(selector)));
        }
        Ok(())
    }
}

/// A stack that may not be the current one: values are pushed on it before
/// anything is committed.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// Its segment.
    pub ss: Segment,
    /// Its pointer; moved by pushes and pops.
    pub rsp: u64,
    /// 16, 32 or 64 bits of the pointer count.
    pub mask: u64,
    /// Privilege with which it is accessed.
    pub cpl: u8,
    /// Error code of a limit violation.
    pub error: u32,
}

impl Stack {
    /// The current stack.
    pub fn current(cpu: &Cpu) -> Self {
        Stack {
            ss: cpu.segs[seg::SS as usize],
            rsp: cpu.regs[crate::cpu::gpr::RSP],
            mask: cpu.stack_mask,
            cpl: cpu.cpl,
            error: 0,
        }
    }

    /// A 16- or 32-bit stack in `ss`, as its descriptor says.
    pub fn legacy(ss: Segment, rsp: u64, cpl: u8) -> Self {
        let mask = if ss.attr & attr::DB != 0 {
            0xFFFF_FFFF
        } else {
            0xFFFF
        };
        Stack {
            ss,
            rsp,
            mask,
            cpl,
            error: selector_error(ss.selector),
        }
    }

    /// Linear address of `size` bytes at the masked `offset`.
    fn linear(&self, cpu: &mut Cpu, offset: u64, size: u64) -> Exec<u64> {
        if self.mask == u64::MAX {
            if !cpu.canonical(offset) || !cpu.canonical(offset.wrapping_add(size - 1)) {
                return Err(cpu.raise_code(vector::SS, 0));
            }
            return Ok(offset);
        }
        let last = offset + (size - 1);
        let limit = u64::from(self.ss.limit);
        let inside = if self.ss.attr & attr::UNUSABLE != 0 {
            false
        } else if self.ss.attr & (attr::CODE | attr::EC) == attr::EC {
            offset > limit
                && last
                    <= (if self.ss.attr & attr::DB != 0 {
                        0xFFFF_FFFF
                    } else {
                        0xFFFF
                    })
        } else {
            last <= limit
        };
        if !inside {
            return Err(cpu.raise_code(vector::SS, self.error));
        }
        Ok(self.ss.base.wrapping_add(offset) & 0xFFFF_FFFF)
    }

    /// Pushes `size` (2, 4, 8) bytes; the pointer moves only on success.
    pub fn push(&mut self, cpu: &mut Cpu, size: u64, value: u64) -> Exec {
        let offset = self.rsp.wrapping_sub(size) & self.mask;
        let at = self.linear(cpu, offset, size)?;
        match (size, self.cpl == 3) {
            (2, true) => cpu.write::<u16>(at, value as u16)?,
            (2, false) => cpu.write_system::<u16>(at, value as u16)?,
            (4, true) => cpu.write::<u32>(at, value as u32)?,
            (4, false) => cpu.write_system::<u32>(at, value as u32)?,
            (_, true) => cpu.write::<u64>(at, value)?,
            (_, false) => cpu.write_system::<u64>(at, value)?,
        }
        self.set(offset);
        Ok(())
    }

    /// Pops `size` (2, 4, 8) bytes of the current stack.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u64) -> Exec<u64> {
        let offset = self.rsp & self.mask;
        let at = self.linear(cpu, offset, size)?;
        let value = match size {
            2 => u64::from(cpu.read::<u16>(at)?),
            4 => u64::from(cpu.read::<u32>(at)?),
            _ => cpu.read::<u64>(at)?,
        };
        self.set(offset.wrapping_add(size));
        Ok(value)
    }

    /// Moves the pointer up by `bytes`.
    pub fn skip(&mut self, bytes: u64) {
        self.set(self.rsp.wrapping_add(bytes));
    }

    fn set(&mut self, value: u64) {
        self.rsp = match self.mask {
            0xFFFF => self.rsp & !0xFFFF | value & 0xFFFF,
            mask => value & mask,
        };
    }
}
