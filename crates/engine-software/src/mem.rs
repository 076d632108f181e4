//! Guest memory as instructions see it: linear addresses, checked.
//!
//! Every access goes through one of three doors:
//!
//! ```text
//! read/write::<T>   one TLB compare, then a host load or store
//! direct            a host pointer for accesses inside one RAM page
//! read/write_bytes  anything: page-crossing, MMIO
//! ```
//!
//! All of them translate through [`Cpu::walk`], so a host address is only
//! ever made from a page of guest RAM and an offset inside it: that is the
//! machine's isolation boundary.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::cpu::{Cpu, seg};
use crate::fault::{Exec, Fault, vector};
use crate::tlb::{AccessMode, Entry, Tlb};
use crate::walk::Want;
use crate::word::Word;

const PAGE: u64 = 0x1000;
const OFFSET: u64 = PAGE - 1;

/// A piece of one page of guest RAM, translated for an access.
#[derive(Clone, Copy)]
pub struct Direct {
    /// Host address of the first byte.
    pub host: *mut u8,
    /// The page's watch byte.
    pub watch: *const AtomicU8,
    /// Guest-physical address of the first byte.
    pub gpa: u64,
}

/// Where a linear page leads.
enum Target {
    Ram(Direct),
    /// Guest-physical address without RAM.
    Mmio(u64),
}

impl Cpu {
    /// How implicit supervisor accesses (descriptor tables, TSS) are made:
    /// EFLAGS.AC does not suspend SMAP for them.
    fn system_mode(&self) -> AccessMode {
        if self.cr4 & crate::cpu::cr4::SMAP != 0 {
            AccessMode::SupervisorSmap
        } else {
            AccessMode::Supervisor
        }
    }

    /// The rules for the running code's own data accesses.
    fn own_mode(&self) -> AccessMode {
        use crate::cpu::{cr4, flag};
        if self.cpl == 3 {
            AccessMode::User
        } else if self.cr4 & cr4::SMAP != 0 && self.rflags & flag::AC == 0 {
            AccessMode::SupervisorSmap
        } else {
            AccessMode::Supervisor
        }
    }

    /// Reads data at the current privilege level.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, linear: u64) -> Exec<T> {
        let entry = &self.tlb.read[Tlb::data_index(linear)];
        if entry.tag == (linear.wrapping_add(T::SIZE - 1) & !OFFSET | self.tlb_key) {
            // SAFETY: a matching tag says that the bytes lie in one page of
            // guest RAM, which the entry's addend leads to.
            return Ok(unsafe { T::load(linear.wrapping_add(entry.addend) as *const u8) });
        }
        self.read_slow(linear, self.own_mode())
    }

    /// Writes data at the current privilege level.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        let entry = &self.tlb.write[Tlb::data_index(linear)];
        if entry.tag == (linear.wrapping_add(T::SIZE - 1) & !OFFSET | self.tlb_key) {
            // SAFETY: as in `read`, and the entry is in the write array; the
            // watch byte lives as long as guest RAM.
            unsafe {
                T::store(linear.wrapping_add(entry.addend) as *mut u8, value);
                if (*entry.watch).load(Ordering::Relaxed) != 0 {
                    let gpa = entry.gpa | linear & OFFSET;
                    self.stored_watched(gpa, T::SIZE);
                }
            }
            return Ok(());
        }
        self.write_slow(linear, value, self.own_mode())
    }

    /// Reads as the processor itself does (descriptor tables, TSS).
    pub fn read_system<T: Word>(&mut self, linear: u64) -> Exec<T> {
        let linear = self.truncate(linear);
        self.read_slow(linear, self.system_mode())
    }

    /// Writes as the processor itself does.
    pub fn write_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        let linear = self.truncate(linear);
        self.write_slow(linear, value, self.system_mode())
    }

    /// Outside IA-32e mode linear addresses have 32 bits.
    fn truncate(&self, linear: u64) -> u64 {
        if self.long_mode {
            linear
        } else {
            linear & 0xFFFF_FFFF
        }
    }

    #[inline(never)]
    fn read_slow<T: Word>(&mut self, linear: u64, mode: AccessMode) -> Exec<T> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..T::SIZE as usize];
        self.check_alignment(linear, T::SIZE, mode)?;
        if linear & OFFSET <= PAGE - T::SIZE {
            self.watch_data(linear, T::SIZE, false);
            match self.target(linear, Want::Read, mode)? {
                Target::Ram(direct) => {
                    // SAFETY: the bytes lie in one page of guest RAM.
                    return Ok(unsafe { T::load(direct.host) });
                }
                Target::Mmio(gpa) => self.physical_read(gpa, bytes),
            }
        } else {
            self.read_bytes_as(linear, bytes, mode)?;
        }
        Ok(T::from_u64(
            bytes
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte)),
        ))
    }

    #[inline(never)]
    fn write_slow<T: Word>(&mut self, linear: u64, value: T, mode: AccessMode) -> Exec {
        let bytes = value.to_u64().to_le_bytes();
        let bytes = &bytes[..T::SIZE as usize];
        self.check_alignment(linear, T::SIZE, mode)?;
        if linear & OFFSET <= PAGE - T::SIZE {
            match self.target(linear, Want::Write, mode)? {
                Target::Ram(direct) => {
                    // SAFETY: the bytes lie in one page of guest RAM.
                    unsafe { T::store(direct.host, value) };
                    self.stored(&direct, T::SIZE);
                }
                Target::Mmio(gpa) => self.physical_write(gpa, bytes),
            }
            self.watch_data(linear, T::SIZE, true);
            return Ok(());
        }
        self.write_bytes_as(linear, bytes, mode)
    }

    /// #AC for misaligned data accesses at CPL 3 (SDM vol. 3, 6.15). Vectors
    /// that may be misaligned at all may be so here too, as on processors.
    fn check_alignment(&mut self, linear: u64, size: u64, mode: AccessMode) -> Exec {
        let misaligned = match size {
            2 | 4 | 8 => linear & (size - 1) != 0,
            // An x87 number is one of 8 bytes and one of 2.
            10 => linear & 7 != 0,
            _ => false,
        };
        if misaligned && mode == AccessMode::User {
            return self.misaligned(linear);
        }
        Ok(())
    }

    /// What a misaligned access raises first: a fault for a non-canonical
    /// address, #AC(0) at CPL 3 if alignment is checked.
    #[cold]
    pub fn misaligned(&mut self, linear: u64) -> Exec {
        use crate::cpu::{cr0, flag};
        if self.code64() && !self.canonical(linear) {
            return Err(self.non_canonical());
        }
        if self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.rflags & flag::AC != 0 {
            return Err(self.raise_code(vector::AC, 0));
        }
        Ok(())
    }

    /// Records data breakpoints (DR0–DR3, and the debugger's) that an access
    /// touches; they are reported as traps after the instruction.
    fn watch_data(&mut self, linear: u64, len: u64, write: bool) {
        if !self.data_breakpoints() {
            return;
        }
        let overlaps =
            |at: u64, size: u64| linear < at.wrapping_add(size) && at < linear.wrapping_add(len);
        for n in 0..4 {
            let enabled = self.dr7 >> (2 * n) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * n) & 3;
            let size = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
            let at = self.dr[n as usize] & !(size - 1);
            if enabled && (kind == 3 || kind == 1 && write) && overlaps(at, size) {
                self.debug_hits |= 1 << n;
                self.recheck = true;
            }
        }
        for &(at, size, reads) in &self.watchpoints {
            if (write || reads) && overlaps(at, u64::from(size)) {
                self.watch_hit = Some((at, size, reads));
                self.recheck = true;
            }
        }
    }

    /// True when bits 63:47 are equal, or outside IA-32e mode.
    #[inline(always)]
    pub fn canonical(&self, linear: u64) -> bool {
        !self.long_mode || (linear as i64) << 16 >> 16 == linear as i64
    }

    /// Translates the page at `linear`, filling the TLB where it is RAM.
    fn target(&mut self, linear: u64, want: Want, mode: AccessMode) -> Exec<Target> {
        let linear = self.truncate(linear);
        let page = linear & !OFFSET;
        let key = self.tlb.key(mode);
        let index = Tlb::data_index(linear);
        let entry = match want {
            Want::Read => &self.tlb.read[index],
            _ => &self.tlb.write[index],
        };
        if entry.tag == page | key || entry.tag == Tlb::global(page | key) {
            return Ok(Target::Ram(Direct {
                host: linear.wrapping_add(entry.addend) as *mut u8,
                watch: entry.watch,
                gpa: entry.gpa | linear & OFFSET,
            }));
        }
        if !self.canonical(linear) {
            return Err(self.non_canonical());
        }
        let mapping = self.walk(linear, want, mode)?;
        let Some(ram) = self.shared.ram.page(mapping.gpa) else {
            return Ok(Target::Mmio(mapping.gpa));
        };
        let tag = page | key;
        let entry = Entry {
            tag: if mapping.global {
                Tlb::global(tag)
            } else {
                tag
            },
            addend: (ram.host as u64).wrapping_sub(page),
            watch: ram.watch,
            gpa: mapping.gpa & !OFFSET,
        };
        self.tlb.note_large(linear, mapping.shift);
        match want {
            Want::Write => self.tlb.write[index] = entry,
            _ => self.tlb.read[index] = entry,
        }
        Ok(Target::Ram(Direct {
            host: linear.wrapping_add(entry.addend) as *mut u8,
            watch: ram.watch,
            gpa: mapping.gpa,
        }))
    }

    /// A host pointer for `len` bytes of data at the current privilege
    /// level, when they lie in one page of RAM; `None` when they cross a
    /// page or are not RAM: then [`Cpu::read_bytes`] and
    /// [`Cpu::write_bytes`] do the access.
    #[inline]
    pub fn direct(&mut self, linear: u64, len: u64, write: bool) -> Exec<Option<Direct>> {
        let entry = if write {
            &self.tlb.write[Tlb::data_index(linear)]
        } else {
            &self.tlb.read[Tlb::data_index(linear)]
        };
        if entry.tag == (linear.wrapping_add(len.wrapping_sub(1)) & !OFFSET | self.tlb_key) {
            return Ok(Some(Direct {
                host: linear.wrapping_add(entry.addend) as *mut u8,
                watch: entry.watch,
                gpa: entry.gpa | linear & OFFSET,
            }));
        }
        self.direct_slow(linear, len, write)
    }

    #[inline(never)]
    fn direct_slow(&mut self, linear: u64, len: u64, write: bool) -> Exec<Option<Direct>> {
        let mode = self.own_mode();
        self.check_alignment(linear, len, mode)?;
        if linear & OFFSET > PAGE.saturating_sub(len) {
            return Ok(None);
        }
        self.watch_data(linear, len, write);
        let want = if write { Want::Write } else { Want::Read };
        Ok(match self.target(linear, want, mode)? {
            Target::Ram(direct) => Some(direct),
            Target::Mmio(_) => None,
        })
    }

    /// Must follow every store of `len` bytes through a [`Direct`].
    #[inline(always)]
    pub fn stored(&self, direct: &Direct, len: u64) {
        // SAFETY: the watch byte lives as long as guest RAM, which `shared`
        // holds.
        if unsafe { (*direct.watch).load(Ordering::Relaxed) } != 0 {
            self.stored_watched(direct.gpa, len);
        }
    }

    /// A store to a page that is watched. One to decoded code ends the running
    /// block: what it changed may be the block's next instruction.
    #[cold]
    fn stored_watched(&self, gpa: u64, len: u64) {
        if self.shared.stored(gpa, len) {
            self.code_changed.set(true);
        }
    }

    /// Reads up to a page of data; nothing is returned unless all of it can
    /// be read.
    pub fn read_bytes(&mut self, linear: u64, out: &mut [u8]) -> Exec {
        self.read_bytes_as(linear, out, self.own_mode())
    }

    /// Writes up to a page of data; nothing is written unless all of it can
    /// be.
    pub fn write_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        self.write_bytes_as(linear, data, self.own_mode())
    }

    fn read_bytes_as(&mut self, linear: u64, out: &mut [u8], mode: AccessMode) -> Exec {
        let len = out.len() as u64;
        let first = len.min(PAGE - (linear & OFFSET));
        let start = self.target(linear, Want::Read, mode)?;
        let rest = if first < len {
            Some(self.target(linear.wrapping_add(first), Want::Read, mode)?)
        } else {
            None
        };
        self.watch_data(linear, len, false);
        let (head, tail) = out.split_at_mut(first as usize);
        self.read_target(&start, head);
        if let Some(rest) = rest {
            self.read_target(&rest, tail);
        }
        Ok(())
    }

    fn write_bytes_as(&mut self, linear: u64, data: &[u8], mode: AccessMode) -> Exec {
        let len = data.len() as u64;
        let first = len.min(PAGE - (linear & OFFSET));
        let start = self.target(linear, Want::Write, mode)?;
        let rest = if first < len {
            Some(self.target(linear.wrapping_add(first), Want::Write, mode)?)
        } else {
            None
        };
        self.watch_data(linear, len, true);
        let (head, tail) = data.split_at(first as usize);
        self.write_target(&start, head);
        if let Some(rest) = rest {
            self.write_target(&rest, tail);
        }
        Ok(())
    }

    fn read_target(&mut self, target: &Target, out: &mut [u8]) {
        match target {
            Target::Ram(direct) => {
                for (n, byte) in out.iter_mut().enumerate() {
                    // SAFETY: callers split at the page's end.
                    *byte = unsafe { u8::load(direct.host.add(n)) };
                }
            }
            Target::Mmio(gpa) => self.physical_read(*gpa, out),
        }
    }

    fn write_target(&mut self, target: &Target, data: &[u8]) {
        match target {
            Target::Ram(direct) => {
                for (n, byte) in data.iter().enumerate() {
                    // SAFETY: callers split at the page's end.
                    unsafe { u8::store(direct.host.add(n), *byte) };
                }
                self.stored(direct, data.len() as u64);
            }
            Target::Mmio(gpa) => self.physical_write(*gpa, data),
        }
    }

    /// Raises what an access of `len` bytes (at most a page) would raise.
    pub fn probe(&mut self, linear: u64, len: u64, write: bool) -> Exec {
        self.check_alignment(linear, len, self.own_mode())?;
        self.probe_misaligned(linear, len, write)
    }

    /// [`Cpu::probe`] for accesses that need no alignment.
    pub fn probe_misaligned(&mut self, linear: u64, len: u64, write: bool) -> Exec {
        let mode = self.own_mode();
        let want = if write { Want::Write } else { Want::Read };
        self.target(linear, want, mode)?;
        let first = PAGE - (linear & OFFSET);
        if first < len {
            self.target(linear.wrapping_add(first), want, mode)?;
        }
        Ok(())
    }

    /// Makes a fault that of a stack access: a non-canonical address is #SS.
    #[cold]
    pub fn on_stack(&mut self, fault: Fault) -> Fault {
        if self.raised.non_canonical {
            self.raised.vector = vector::SS;
        }
        fault
    }

    /// Pushes at SS:RSP; RSP changes only on success.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, value: T) -> Exec {
        const RSP: usize = crate::cpu::gpr::RSP;
        if self.code64() {
            let at = self.regs[RSP].wrapping_sub(T::SIZE);
            if let Err(fault) = self.write(at, value) {
                return Err(self.on_stack(fault));
            }
            self.regs[RSP] = at;
            return Ok(());
        }
        let rsp = self.regs[RSP].wrapping_sub(T::SIZE) & self.stack_mask;
        let at = self.linear_at(seg::SS, rsp, T::SIZE, true)?;
        self.write(at, value)?;
        self.set_rsp(rsp);
        Ok(())
    }

    /// Pops at SS:RSP; RSP changes only on success.
    #[inline(always)]
    pub fn pop<T: Word>(&mut self) -> Exec<T> {
        const RSP: usize = crate::cpu::gpr::RSP;
        if self.code64() {
            let at = self.regs[RSP];
            let value = match self.read(at) {
                Ok(value) => value,
                Err(fault) => return Err(self.on_stack(fault)),
            };
            self.regs[RSP] = at.wrapping_add(T::SIZE);
            return Ok(value);
        }
        let rsp = self.regs[RSP] & self.stack_mask;
        let at = self.linear_at(seg::SS, rsp, T::SIZE, false)?;
        let value = self.read(at)?;
        self.set_rsp(rsp.wrapping_add(T::SIZE));
        Ok(value)
    }

    /// Writes the part of RSP that the stack's size covers.
    pub fn set_rsp(&mut self, value: u64) {
        const RSP: usize = crate::cpu::gpr::RSP;
        self.regs[RSP] = match self.stack_mask {
            0xFFFF => self.regs[RSP] & !0xFFFF | value & 0xFFFF,
            mask => value & mask,
        };
    }

    /// Forgets every translation.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush_all();
        self.tlb.renew(self.pcid());
        self.tables_follow(u64::MAX);
        self.update_mode();
    }

    /// Lets the tables of translated code follow a change of the address
    /// space, before which everything had been flushed `flushes` times.
    fn tables_follow(&mut self, flushes: u64) {
        let (space, all) = (self.tlb.space(), self.tlb.flushes != flushes);
        let tables = self.tables();
        tables.switch(space);
        if all {
            tables.clear_pages();
            tables.clear_jumps();
        }
    }

    /// Forgets the translations of the current address space that are not
    /// global.
    pub fn flush_tlb_non_global(&mut self) {
        let flushes = self.tlb.flushes;
        self.tlb.renew(self.pcid());
        self.tables_follow(flushes);
        self.update_mode();
    }

    /// Forgets the translations of the page at `linear`.
    pub fn flush_tlb_page(&mut self, linear: u64) {
        let flushes = self.tlb.flushes;
        self.tlb.flush_page(linear);
        if self.tlb.flushes == flushes {
            self.tables().flush_page(linear);
        } else {
            self.tables_follow(flushes);
        }
    }

    /// Forgets the translations of `pcid` that are not global.
    pub fn flush_tlb_pcid(&mut self, pcid: u16) {
        if pcid == self.pcid() {
            self.flush_tlb_non_global();
        } else {
            self.tlb.forget(pcid);
        }
    }

    /// After CR3 was written: goes on in the address space of its PCID,
    /// keeping what is cached for it where `keep` says so.
    pub fn switch_address_space(&mut self, keep: bool) {
        let pcid = self.pcid();
        let flushes = self.tlb.flushes;
        if keep {
            self.tlb.switch(pcid);
        } else {
            self.tlb.renew(pcid);
        }
        self.tables_follow(flushes);
        self.update_mode();
    }

    /// The current PCID; 0 when CR4.PCIDE is clear.
    pub fn pcid(&self) -> u16 {
        if self.cr4 & crate::cpu::cr4::PCIDE != 0 {
            (self.cr3 & 0xFFF) as u16
        } else {
            0
        }
    }
}
