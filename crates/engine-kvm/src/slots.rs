//! Guest RAM as KVM's memory slots, and their dirty logs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use croft_engine::EngineError;
use croft_memory::{GuestRam, PAGE_SHIFT, Range, StoreLog};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::error::{host, os};

struct Slot {
    vm: Arc<VmFd>,
    number: u32,
    range: Range,
    host: u64,
    /// The log could not be switched on or read: every page counts as dirty.
    blind: AtomicBool,
    /// Keeps the memory mapped.
    _ram: GuestRam,
}

impl Slot {
    fn set(&self, flags: u32) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: self.number,
            flags,
            guest_phys_addr: self.range.start,
            memory_size: self.range.len,
            userspace_addr: self.host,
        };
        // SAFETY: the memory is guest RAM, mapped for as long as this slot
        // lives, and reached by this process through volatile accesses only.
        unsafe { self.vm.set_user_memory_region(region) }
    }
}

impl StoreLog for Slot {
    fn start(&self) {
        let failed = self.set(KVM_MEM_LOG_DIRTY_PAGES).is_err();
        self.blind.store(failed, Ordering::Release);
    }

    fn stop(&self) {
        // A log that goes on costs speed only.
        let _ = self.set(0);
    }

    fn take(&self, dirty: &mut [u64]) {
        let log = if self.blind.load(Ordering::Acquire) {
            None
        } else {
            self.vm
                .get_dirty_log(self.number, self.range.len as usize)
                .ok()
        };
        match log {
            Some(log) => {
                for (word, more) in dirty.iter_mut().zip(log) {
                    *word |= more;
                }
            }
            None => all(dirty, self.range.len >> PAGE_SHIFT),
        }
    }
}

/// Sets the first `pages` bits.
fn all(dirty: &mut [u64], pages: u64) {
    for (at, word) in (0..).step_by(64).zip(dirty) {
        *word |= match pages.saturating_sub(at) {
            0 => 0,
            left @ 1..64 => (1 << left) - 1,
            _ => u64::MAX,
        };
    }
}

/// The slots of one machine.
pub struct Slots {
    /// The tables of guest RAM know them by weak references.
    _slots: Vec<Arc<Slot>>,
}

impl Slots {
    /// Gives `vm` all of `ram`.
    pub fn new(vm: &Arc<VmFd>, ram: &GuestRam) -> Result<Self, EngineError> {
        let mut slots = Vec::new();
        for (number, (range, table)) in (0..).zip(ram.tables()) {
            let page = ram.page(range.start).ok_or_else(|| {
                os("cannot give a machine its memory")(std::io::ErrorKind::InvalidInput.into())
            })?;
            let slot = Arc::new(Slot {
                vm: vm.clone(),
                number,
                range,
                host: page.host as u64,
                blind: AtomicBool::new(false),
                _ram: ram.clone(),
            });
            slot.set(0)
                .map_err(host("cannot give a machine its memory"))?;
            let log: Weak<Slot> = Arc::downgrade(&slot);
            table.attach(log);
            slots.push(slot);
        }
        Ok(Slots { _slots: slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blind_slot_reports_its_pages_and_no_more() {
        let mut dirty = [0; 3];
        all(&mut dirty, 70);
        assert_eq!(dirty, [u64::MAX, 0x3F, 0]);
        let mut dirty = [0; 1];
        all(&mut dirty, 64);
        assert_eq!(dirty, [u64::MAX]);
    }
}
