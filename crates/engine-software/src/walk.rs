//! Page walks: linear to guest-physical, with exact faults and A/D bits
//! (SDM vol. 3, chapter 4).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::fault::Exec;
use crate::tlb::AccessMode;

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Fetch an instruction.
    Fetch,
}

/// A finished walk.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Guest-physical address of the byte asked for.
    pub gpa: u64,
    /// log2 of the page's size.
    pub shift: u32,
    /// R/W in every level.
    pub writable: bool,
    /// U/S in every level.
    pub user: bool,
    /// XD in some level.
    pub no_execute: bool,
    /// The same in every address space (G, and CR4.PGE is set).
    pub global: bool,
}

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Page-fault error code bits (SDM vol. 3, 4.7).
const ERR_P: u32 = 1 << 0;
const ERR_W: u32 = 1 << 1;
const ERR_U: u32 = 1 << 2;
const ERR_RSVD: u32 = 1 << 3;
const ERR_I: u32 = 1 << 4;

/// A page-table entry in guest memory.
#[derive(Clone, Copy)]
enum Slot {
    Wide(*const AtomicU64),
    Narrow(*const AtomicU32),
}

/// Why a walk did not reach a page: the P and RSVD bits of the error code.
struct Broken(u32);

/// Up to four levels of entries visited, with the values seen.
struct Path {
    slots: [(Slot, u64, u64); 4],
    len: usize,
}

impl Path {
    fn push(&mut self, slot: Slot, gpa: u64, value: u64) {
        self.slots[self.len] = (slot, gpa, value);
        self.len += 1;
    }
}

impl Cpu {
    /// Walks for an access and sets A and D bits, or raises #PF.
    pub fn walk(&mut self, linear: u64, want: Want, mode: AccessMode) -> Exec<Mapping> {
        if let Some(counting) = &mut self.counting {
            counting.walked();
        }
        let user = mode == AccessMode::User;
        loop {
            let mut path = Path {
                slots: [(Slot::Wide(std::ptr::null()), 0, 0); 4],
                len: 0,
            };
            let bits = match self.walk_entries(linear, &mut path) {
                Ok(mapping) => {
                    if self.allowed(&mapping, want, mode) {
                        if self.mark(&path, want) {
                            return Ok(mapping);
                        }
                        // Somebody changed an entry meanwhile: look again.
                        continue;
                    }
                    ERR_P
                }
                Err(Broken(bits)) => bits,
            };
            let fetch_shown =
                self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0 || self.cr4 & cr4::SMEP != 0;
            let mut code = bits;
            if want == Want::Write {
                code |= ERR_W;
            }
            if user {
                code |= ERR_U;
            }
            if want == Want::Fetch && fetch_shown {
                code |= ERR_I;
            }
            return Err(self.page_fault(linear, code));
        }
    }

    /// Walks without any side effect, for the debugger.
    pub fn walk_quietly(&self, linear: u64) -> Option<Mapping> {
        let mut path = Path {
            slots: [(Slot::Wide(std::ptr::null()), 0, 0); 4],
            len: 0,
        };
        self.walk_entries(linear, &mut path).ok()
    }

    fn allowed(&self, mapping: &Mapping, want: Want, mode: AccessMode) -> bool {
        let write_protect = self.cr0 & cr0::WP != 0;
        if mode == AccessMode::User {
            return mapping.user
                && match want {
                    Want::Read => true,
                    Want::Write => mapping.writable,
                    Want::Fetch => !mapping.no_execute,
                };
        }
        let smap = mode == AccessMode::SupervisorSmap && mapping.user;
        match want {
            Want::Read => !smap,
            Want::Write => !smap && (mapping.writable || !write_protect),
            Want::Fetch => !(mapping.no_execute || mapping.user && self.cr4 & cr4::SMEP != 0),
        }
    }

    /// Sets A on every level and D on the last; false when an entry changed.
    fn mark(&self, path: &Path, want: Want) -> bool {
        for (level, (slot, gpa, seen)) in path.slots[..path.len].iter().enumerate() {
            let last = level + 1 == path.len;
            let bits = if last && want == Want::Write {
                A | D
            } else {
                A
            };
            if seen & bits == bits {
                continue;
            }
            // SAFETY: the pointers come from `slot`, which checked that they
            // lie in guest RAM, aligned; RAM lives as long as `shared`.
            let swapped = unsafe {
                match *slot {
                    Slot::Wide(entry) => (*entry)
                        .compare_exchange(*seen, seen | bits, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok(),
                    Slot::Narrow(entry) => (*entry)
                        .compare_exchange(
                            *seen as u32,
                            (seen | bits) as u32,
                            Ordering::AcqRel,
                            Ordering::Relaxed,
                        )
                        .is_ok(),
                }
            };
            if !swapped {
                return false;
            }
            self.shared.stored(*gpa, 8);
        }
        true
    }

    fn walk_entries(&self, linear: u64, path: &mut Path) -> Result<Mapping, Broken> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Mapping {
                gpa: linear & 0xFFFF_FFFF,
                shift: 12,
                writable: true,
                user: true,
                no_execute: false,
                global: false,
            });
        }
        if self.long_mode {
            self.walk_wide(self.cr3, 39, linear, path)
        } else if self.cr4 & cr4::PAE != 0 {
            let pdpte = self.pdpte[(linear >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(Broken(0));
            }
            self.walk_wide(pdpte, 21, linear, path)
        } else {
            self.walk_narrow(linear, path)
        }
    }

    /// Levels of 512 eight-byte entries, from `shift` down.
    fn walk_wide(
        &self,
        root: u64,
        mut shift: u32,
        linear: u64,
        path: &mut Path,
    ) -> Result<Mapping, Broken> {
        let address_bits = ((1u64 << self.shared.profile.physical_bits) - 1) & !0xFFF;
        let mut reserved = !address_bits & 0x000F_FFFF_FFFF_F000;
        if self.efer & efer::NXE == 0 {
            reserved |= NX;
        }
        if !self.long_mode {
            // PAE: bits 62:52 are reserved (SDM vol. 3, table 4-10 ff.).
            reserved |= 0x7FF0_0000_0000_0000;
        }
        let mut table = root & address_bits;
        let (mut writable, mut user, mut no_execute) = (true, true, false);
        loop {
            let gpa = table + (linear >> shift & 511) * 8;
            let Some(host) = self.shared.host(gpa) else {
                return Err(Broken(0));
            };
            let slot = host.cast::<AtomicU64>().cast_const();
            // SAFETY: eight aligned bytes of guest RAM, which lives as long
            // as `shared`.
            let entry = unsafe { (*slot).load(Ordering::Acquire) };
            if entry & P == 0 {
                return Err(Broken(0));
            }
            let large = shift != 12 && entry & PS != 0;
            let mut wrong = reserved;
            if shift == 39 || shift == 30 && !self.shared.features.huge_pages {
                wrong |= PS;
            }
            if large {
                // Address bits below the page's size, PAT (bit 12) excepted.
                wrong |= ((1 << shift) - 1) & !0x1FFF;
            }
            if entry & wrong != 0 {
                return Err(Broken(ERR_P | ERR_RSVD));
            }
            writable &= entry & RW != 0;
            user &= entry & US != 0;
            no_execute |= entry & NX != 0;
            path.push(Slot::Wide(slot), gpa, entry);
            if large || shift == 12 {
                let page = (1u64 << shift) - 1;
                return Ok(Mapping {
                    gpa: entry & address_bits & !page | linear & page,
                    shift,
                    writable,
                    user,
                    no_execute,
                    global: entry & G != 0 && self.cr4 & cr4::PGE != 0,
                });
            }
            table = entry & address_bits;
            shift -= 9;
        }
    }

    /// Two levels of 1024 four-byte entries.
    fn walk_narrow(&self, linear: u64, path: &mut Path) -> Result<Mapping, Broken> {
        let mut table = self.cr3 & 0xFFFF_F000;
        let (mut writable, mut user) = (true, true);
        let mut shift = 22;
        loop {
            let gpa = table + (linear >> shift & 1023) * 4;
            let Some(host) = self.shared.host(gpa) else {
                return Err(Broken(0));
            };
            let slot = host.cast::<AtomicU32>().cast_const();
            // SAFETY: four aligned bytes of guest RAM, which lives as long as
            // `shared`.
            let entry = u64::from(unsafe { (*slot).load(Ordering::Acquire) });
            if entry & P == 0 {
                return Err(Broken(0));
            }
            writable &= entry & RW != 0;
            user &= entry & US != 0;
            path.push(Slot::Narrow(slot), gpa, entry);
            let large = shift == 22 && entry & PS != 0 && self.cr4 & cr4::PSE != 0;
            if large && entry & 1 << 21 != 0 {
                return Err(Broken(ERR_P | ERR_RSVD));
            }
            if large || shift == 12 {
                let page = (1u64 << shift) - 1;
                // PSE-36: bits 20:13 of a 4 MiB entry are address bits 39:32.
                let high = if large { (entry >> 13 & 0xFF) << 32 } else { 0 };
                return Ok(Mapping {
                    gpa: high | entry & 0xFFFF_F000 & !page | linear & page,
                    shift,
                    writable,
                    user,
                    no_execute: false,
                    global: entry & G != 0 && self.cr4 & cr4::PGE != 0,
                });
            }
            table = entry & 0xFFFF_F000;
            shift = 12;
        }
    }
}
