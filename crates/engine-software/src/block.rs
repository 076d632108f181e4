//! The cache of decoded blocks.
//!
//! A block is a run of instructions that starts at a guest-physical address
//! and stays in one page; the one exception is a block of a single
//! instruction that crosses into the next page. Keyed by physical address, a
//! block serves every mapping of its page and survives address-space
//! switches.
//!
//! A block remembers the code generation of its page (`croft-memory`) from
//! before its bytes were read. It is run only while the page's generation is
//! still that one, so stores by any vCPU and DMA by any device invalidate it
//! without having to find it.

use std::cell::Cell;
use std::collections::{HashMap, hash_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use croft_memory::GuestRam;

use crate::cpu::CodeSize;
use crate::op::{Op, Side};
use crate::word::Word;

/// Most instructions in a block.
pub const MAX_OPS: usize = 48;
/// Entries of the direct-mapped front, a power of two.
const FRONT: usize = 1 << 15;
/// Instructions cached before everything is dropped: about 100 MiB.
const MAX_CACHED: usize = 1 << 20;

/// Forgotten blocks dropped with each new one.
const DROPPED: usize = 4;

/// The part of a page that was decoded, and when.
#[derive(Clone)]
struct Origin {
    generation: *const AtomicU32,
    seen: u32,
    /// Keeps what `generation` points to alive.
    _ram: Arc<GuestRam>,
}

impl Origin {
    #[inline(always)]
    fn current(&self) -> bool {
        // SAFETY: `_ram` keeps the page table alive.
        unsafe { (*self.generation).load(Ordering::Acquire) == self.seen }
    }
}

/// Decoded instructions.
pub struct Block {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Translated code by [`AccessMode`](crate::tlb::AccessMode); 0 where
    /// there is none.
    pub native: [Cell<usize>; 3],
    /// The instructions, in order; never empty.
    pub ops: Box<[Op]>,
    /// The second page's guest-physical address, when the one instruction
    /// crosses into it.
    pub second: Option<u64>,
    /// What `Op::side` points into.
    _sides: Box<[Side]>,
    origin: Option<Origin>,
    second_origin: Option<Origin>,
}

impl Block {
    /// A block at `gpa`, decoded from page `first` (and `second`):
    /// guest-physical addresses with the generation seen there. Without a generation the
    /// block is never found current: it runs once.
    pub fn new(
        ram: &Arc<GuestRam>,
        gpa: u64,
        mut ops: Box<[Op]>,
        sides: Box<[Side]>,
        first: Option<(u64, u32)>,
        second: Option<(u64, u32)>,
    ) -> Self {
        let origin = |(gpa, seen): (u64, u32)| {
            Some(Origin {
                generation: ram.page(gpa)?.generation,
                seen,
                _ram: ram.clone(),
            })
        };
        for (left, op) in ops.iter_mut().rev().enumerate() {
            op.left = left as u8;
            op.start = (gpa & 0xFFF) as u16;
        }
        Block {
            gpa,
            native: Default::default(),
            ops,
            second: second.map(|(gpa, _)| gpa),
            _sides: sides,
            origin: first.and_then(origin),
            second_origin: second.and_then(origin),
        }
    }

    /// The guest's bytes where this was decoded from. `None`: there is no RAM.
    pub fn bytes(&self, ram: &GuestRam) -> Option<Vec<u8>> {
        let last = self.ops.last()?;
        let len = usize::from(last.off) + usize::from(last.len);
        let inside = len.min(0x1000 - (self.gpa & 0xFFF) as usize);
        let mut bytes = vec![0; len];
        let (front, back) = bytes.split_at_mut(inside);
        copy(ram, self.gpa, front)?;
        match self.second {
            Some(second) => copy(ram, second, back)?,
            // Where a block ends with its page all of it is inside.
            None => bytes.truncate(inside),
        }
        Some(bytes)
    }

    /// The bytes this was decoded from are still there.
    #[inline(always)]
    pub fn current(&self) -> bool {
        self.origin.as_ref().is_some_and(Origin::current)
            && (self.second.is_none() || self.second_origin.as_ref().is_some_and(Origin::current))
    }
}

/// Copies from guest RAM, inside a page.
fn copy(ram: &GuestRam, gpa: u64, out: &mut [u8]) -> Option<()> {
    let host = ram.page(gpa)?.host.wrapping_add((gpa & 0xFFF) as usize);
    for (n, byte) in out.iter_mut().enumerate() {
        // SAFETY: callers stay inside the page, all of which is RAM.
        *byte = unsafe { u8::load(host.add(n)) };
    }
    Some(())
}

/// Physical address and code size.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    #[inline(always)]
    fn new(gpa: u64, size: CodeSize) -> Self {
        Key(gpa << 2 | size as u64)
    }

    #[inline(always)]
    fn slot(self) -> usize {
        let mixed = self.0 ^ self.0 >> 15 ^ self.0 >> 30;
        mixed as usize % FRONT
    }
}

/// One vCPU's decoded blocks.
pub struct Blocks {
    front: Box<[(Key, *const Block)]>,
    all: HashMap<Key, Box<Block>>,
    /// Blocks that nobody can find any more. They are dropped a few at a
    /// time: all at once would take milliseconds.
    old: Option<hash_map::IntoIter<Key, Box<Block>>>,
    cached: usize,
    /// Blocks decoded so far.
    pub decoded: u64,
}

/// No block has this key: physical addresses have at most 52 bits.
const NO_KEY: Key = Key(u64::MAX);

impl Default for Blocks {
    fn default() -> Self {
        Blocks {
            front: vec![(NO_KEY, std::ptr::null()); FRONT].into_boxed_slice(),
            all: HashMap::new(),
            old: None,
            cached: 0,
            decoded: 0,
        }
    }
}

impl Blocks {
    /// The current block at `gpa`, if there is one. It stays valid until the
    /// next call of [`Blocks::insert`] or [`Blocks::clear`].
    #[inline(always)]
    pub fn find(&mut self, gpa: u64, size: CodeSize) -> Option<*const Block> {
        let key = Key::new(gpa, size);
        let slot = key.slot();
        let (cached, block) = self.front[slot];
        // SAFETY: front entries point to boxes in `all`; whoever drops a box
        // clears its entry first.
        if cached == key && unsafe { (*block).current() } {
            return Some(block);
        }
        self.find_slow(key)
    }

    #[inline(never)]
    fn find_slow(&mut self, key: Key) -> Option<*const Block> {
        let block = self.all.get(&key)?;
        if !block.current() {
            return None;
        }
        let block: *const Block = &**block;
        self.front[key.slot()] = (key, block);
        Some(block)
    }

    /// There are so many that all should be dropped. Translated code refers
    /// to them: it goes first.
    pub fn is_full(&self) -> bool {
        self.cached >= MAX_CACHED
    }

    /// Instructions cached.
    pub fn instructions(&self) -> usize {
        self.cached
    }

    /// Drops what nobody can find any more, at once.
    pub fn drop_old(&mut self) {
        self.old = None;
    }

    /// Caches a block in place of what was there, which was not current.
    pub fn insert(&mut self, gpa: u64, size: CodeSize, block: Block) -> *const Block {
        let key = Key::new(gpa, size);
        self.decoded += 1;
        self.cached += block.ops.len();
        let block = Box::new(block);
        let pointer: *const Block = &*block;
        self.front[key.slot()] = (key, pointer);
        if let Some(old) = self.all.insert(key, block) {
            self.cached -= old.ops.len();
        }
        if let Some(old) = &mut self.old
            && old.by_ref().take(DROPPED).count() < DROPPED
        {
            self.old = None;
        }
        pointer
    }

    /// Forgets every block.
    pub fn clear(&mut self) {
        self.front.fill((NO_KEY, std::ptr::null()));
        self.old = Some(std::mem::take(&mut self.all).into_iter());
        self.cached = 0;
    }
}
