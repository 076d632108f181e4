//! Memory for stubs: process-wide, bounded, never writable and executable
//! through one mapping.
//!
//! Slots of a [`DualMapping`] have a fixed size; equal code shares a slot, and a slot nobody refers to
//! is kept for the next block that wants the same code until room is needed.
//! A slot is rewritten only after every stub in it was dropped, under the lock
//! through which the new code's users get it: no processor can still have the
//! old code in its pipeline.
//! When all slots are referred to, code goes without: it is copied into one
//! reserved slot each time it runs, behind a lock, which is slow but exact.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::signal;
use crate::dual::DualMapping;

/// Bytes of a slot: more than any stub has.
pub const SLOT: usize = 512;
/// Bytes of the arena.
const SIZE: usize = 16 << 20;
/// Allocations that go without a slot after a search for unused ones found
/// few, before the next search.
const SEARCH_PAUSE: u32 = 4096;

/// Room for one stub. Its code does not change while a `Slot` is alive.
pub struct Slot {
    number: usize,
}

struct Inner {
    known: HashMap<Box<[u8]>, Arc<Slot>>,
    /// Slots given back.
    free: Vec<usize>,
    /// First slot never used.
    fresh: usize,
    slots: usize,
    pause: u32,
}

/// The arena.
pub struct Arena {
    memory: DualMapping,
    inner: Mutex<Inner>,
    /// Guards slot 0, for code without a slot of its own.
    one_shot: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's arena, made on first use.
///
/// # Errors
/// The host refuses executable memory or signal handlers.
pub fn arena() -> io::Result<&'static Arena> {
    static ARENA: OnceLock<Result<Arena, i32>> = OnceLock::new();
    ARENA
        .get_or_init(|| {
            let arena = Arena::new(SIZE).map_err(|e| e.raw_os_error().unwrap_or(libc::ENOMEM))?;
            let start = arena.memory.executable(0) as u64;
            signal::install(start, start + SIZE as u64)
                .map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL))?;
            Ok(arena)
        })
        .as_ref()
        .map_err(|&code| io::Error::from_raw_os_error(code))
}

impl Arena {
    fn new(size: usize) -> io::Result<Self> {
        Ok(Arena {
            memory: DualMapping::new(size)?,
            inner: Mutex::new(Inner {
                known: HashMap::new(),
                free: Vec::new(),
                fresh: 1,
                slots: size / SLOT,
                pause: 0,
            }),
            one_shot: Mutex::new(()),
        })
    }

    /// A slot with `code`, or `None` when there is no room.
    pub fn place(&self, code: &[u8]) -> Option<Arc<Slot>> {
        if code.len() > SLOT {
            return None;
        }
        let mut inner = lock(&self.inner);
        if let Some(slot) = inner.known.get(code) {
            return Some(slot.clone());
        }
        let number = inner.take()?;
        self.write(number, code);
        let slot = Arc::new(Slot { number });
        inner.known.insert(code.into(), slot.clone());
        Some(slot)
    }

    /// Forgets code that no stub has.
    pub fn forget_unused(&self) {
        lock(&self.inner).forget_unused();
    }

    fn write(&self, number: usize, code: &[u8]) {
        // SAFETY: the slot is not in use (`take`), or is slot 0 under its lock.
        unsafe { self.memory.write(number * SLOT, code) };
    }

    /// Where the code of `slot` starts.
    pub fn entry(&self, slot: &Slot) -> usize {
        self.memory.executable(slot.number * SLOT)
    }

    /// Runs `code`, which has no slot, through slot 0.
    pub fn run_once<T>(&self, code: &[u8], run: impl FnOnce(usize) -> T) -> T {
        let _guard = lock(&self.one_shot);
        self.write(0, &code[..code.len().min(SLOT)]);
        // The slot was executed before, with other code, through another
        // mapping: only a serialising instruction orders that (SDM vol. 3,
        // 11.6). CPUID is one.
        std::arch::x86_64::__cpuid(0);
        run(self.memory.executable(0))
    }
}

impl Inner {
    fn take(&mut self) -> Option<usize> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        if self.fresh < self.slots {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        self.forget_unused();
        if self.free.len() < self.slots / 16 {
            self.pause = SEARCH_PAUSE;
        }
        self.free.pop()
    }

    fn forget_unused(&mut self) {
        let free = &mut self.free;
        self.known.retain(|_, slot| {
            let used = Arc::strong_count(slot) > 1;
            if !used {
                free.push(slot.number);
            }
            used
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_code_shares_a_slot_and_unused_slots_are_reused() {
        let arena = Arena::new(4096).unwrap();
        let code = |n: u8| [0xB8, n, 0, 0, 0, 0xC3];
        let first = arena.place(&code(1)).unwrap();
        assert_eq!(
            arena.entry(&first),
            arena.entry(&arena.place(&code(1)).unwrap())
        );
        let held: Vec<_> = (2..8).map(|n| arena.place(&code(n)).unwrap()).collect();
        assert!(arena.place(&code(9)).is_none(), "slot 0 is reserved");
        drop(held);
        lock(&arena.inner).pause = 0;
        let again = arena.place(&code(9)).unwrap();
        assert_ne!(arena.entry(&first), arena.entry(&again));
        let value = arena.run_once(&code(77), |at| {
            // SAFETY: the slot holds `mov eax, 77; ret`.
            let run: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(at) };
            run()
        });
        assert_eq!(value, 77);
    }
}
