//! Per-page state of one RAM range: watch byte, code lines, code generation
//! and dirty bit.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// log2 of the page size of the x86 architecture.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Watch bit: instructions were decoded from this page.
const WATCH_CODE: u8 = 1 << 0;
/// Watch bit: the dirty log is on and the page is still clean.
const WATCH_CLEAN: u8 = 1 << 1;

/// Bytes covered by one bit of a page's code-line mask.
const LINE: u64 = 64;

/// Somebody who sees stores that pass the watch bytes by: an engine whose
/// guests store without its help. Called by the dirty log it belongs to.
pub trait StoreLog: Send + Sync {
    /// Every page counts as clean from here on.
    fn start(&self);
    /// Nobody asks any more.
    fn stop(&self);
    /// Adds one bit for each page stored to since the last call (or since
    /// [`StoreLog::start`]). Who cannot say sets them all.
    fn take(&self, dirty: &mut [u64]);
}

/// Somebody who runs decoded instructions without comparing generations: an
/// engine that translates.
pub trait CodeLog: Send + Sync {
    /// The generation of some page has moved.
    fn overwritten(&self);
}

#[derive(Default)]
struct Logs {
    on: bool,
    logs: Vec<Weak<dyn StoreLog>>,
}

struct Pages {
    /// Non-zero when a store to the page must be reported.
    watch: Box<[AtomicU8]>,
    /// Which 64-byte lines hold decoded instructions.
    code_lines: Box<[AtomicU64]>,
    /// Moves whenever a decoded line is overwritten.
    generation: Box<[AtomicU32]>,
    /// One bit a page: written since the log was last taken.
    dirty: Box<[AtomicU64]>,
    /// Who else knows of stores.
    logs: Mutex<Logs>,
    /// Who wants to know of overwritten instructions.
    code_logs: Mutex<Vec<Weak<dyn CodeLog>>>,
}

impl Pages {
    /// Instructions of page `index` were overwritten. Nothing decoded from it
    /// is valid any more, so nobody needs to watch it until somebody decodes
    /// again: who does so meanwhile sees a generation that is about to move,
    /// or sees its marks gone and starts again.
    fn forget_code(&self, index: usize) {
        let generation = &self.generation[index];
        generation.fetch_add(1, Ordering::AcqRel);
        self.code_lines[index].store(0, Ordering::SeqCst);
        self.watch[index].fetch_and(!WATCH_CODE, Ordering::SeqCst);
        generation.fetch_add(1, Ordering::SeqCst);
        let logs = self
            .code_logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for log in logs.iter().filter_map(Weak::upgrade) {
            log.overwritten();
        }
    }

    /// Calls `visit` for every store log that still lives.
    fn each_log(&self, on: Option<bool>, mut visit: impl FnMut(&dyn StoreLog)) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(on) = on {
            logs.on = on;
        }
        logs.logs.retain(|log| match log.upgrade() {
            Some(log) => {
                visit(&*log);
                true
            }
            None => false,
        });
    }
}

/// The page states of one contiguous RAM range. Cloning shares them.
#[derive(Clone, Default)]
pub struct PageTable(Option<Arc<Pages>>);

impl std::fmt::Debug for PageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageTable({} pages)", self.len())
    }
}

/// `count` zeroed atomics. The host backs them when they are first touched,
/// so a large machine costs nothing here until it uses its memory.
///
/// # Safety
/// `T` must be valid when all its bytes are zero.
unsafe fn zeroed<T>(count: usize) -> Box<[T]> {
    // SAFETY: the caller says that zeroes are a valid `T`.
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}

impl PageTable {
    /// Number of pages described.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |p| p.watch.len())
    }

    /// True when the table describes no page.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The watch byte of page `index`: non-zero when a store to it must be
    /// reported by [`PageTable::written`]. The reference stays valid as long
    /// as this table or a clone of it lives.
    pub fn watch(&self, index: usize) -> Option<&AtomicU8> {
        self.0.as_ref()?.watch.get(index)
    }

    /// The code generation of page `index`.
    pub fn generation(&self, index: usize) -> Option<&AtomicU32> {
        self.0.as_ref()?.generation.get(index)
    }

    /// Reports a finished store of `len` bytes at byte `offset` of the range;
    /// whether it hit decoded code. Out-of-range parts are ignored: the store
    /// itself was bounds-checked.
    #[cold]
    pub fn written(&self, offset: u64, len: u64) -> bool {
        let Some(pages) = &self.0 else { return false };
        if len == 0 {
            return false;
        }
        let mut hit = false;
        let last = offset.saturating_add(len - 1);
        for index in (offset >> PAGE_SHIFT)..=(last >> PAGE_SHIFT) {
            let Some(watch) = pages.watch.get(index as usize) else {
                break;
            };
            let bits = watch.load(Ordering::Acquire);
            if bits & WATCH_CLEAN != 0 {
                pages.dirty[index as usize / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
                watch.fetch_and(!WATCH_CLEAN, Ordering::AcqRel);
            }
            if bits & WATCH_CODE != 0 {
                let start = index << PAGE_SHIFT;
                let from = offset.max(start) - start;
                let to = last.min(start + PAGE_SIZE - 1) - start;
                if pages.code_lines[index as usize].load(Ordering::Acquire) & lines(from, to) != 0 {
                    pages.forget_code(index as usize);
                    hit = true;
                }
            }
        }
        hit
    }

    /// Declares that bytes `from..=to` (within page `index`) are about to be
    /// decoded, and returns the generation to remember with the result: the
    /// decoded instructions are valid while the page's generation stays
    /// equal. Call it *before* reading the bytes.
    pub fn watch_code(&self, index: usize, from: u64, to: u64) -> u32 {
        let Some(pages) = &self.0 else { return 0 };
        let mask = lines(from & (PAGE_SIZE - 1), to & (PAGE_SIZE - 1));
        loop {
            let had = pages.code_lines[index].fetch_or(mask, Ordering::SeqCst);
            let watched = pages.watch[index].fetch_or(WATCH_CODE, Ordering::SeqCst);
            if had & mask != mask || watched & WATCH_CODE == 0 {
                other_threads_barrier();
            }
            let generation = pages.generation[index].load(Ordering::SeqCst);
            // Somebody may have forgotten the page's code between the two.
            if pages.code_lines[index].load(Ordering::SeqCst) & mask == mask
                && pages.watch[index].load(Ordering::SeqCst) & WATCH_CODE != 0
            {
                return generation;
            }
        }
    }

    /// Tells `log`, for as long as it lives, whenever instructions were
    /// overwritten.
    pub fn watch_overwritten(&self, log: Weak<dyn CodeLog>) {
        let Some(pages) = &self.0 else { return };
        let mut logs = pages
            .code_logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        logs.push(log);
    }

    /// Lets `log` contribute to the dirty log for as long as it lives.
    pub fn attach(&self, log: Weak<dyn StoreLog>) {
        let Some(pages) = &self.0 else { return };
        let mut logs = pages.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(log)) = (logs.on, log.upgrade()) {
            log.start();
        }
        logs.logs.push(log);
    }

    /// Turns the dirty log on: every page counts as clean from here on.
    pub fn start_dirty_log(&self) {
        let Some(pages) = &self.0 else { return };
        for word in &pages.dirty {
            word.store(0, Ordering::Release);
        }
        for watch in &pages.watch {
            watch.fetch_or(WATCH_CLEAN, Ordering::AcqRel);
        }
        pages.each_log(Some(true), |log| log.start());
        other_threads_barrier();
    }

    /// Turns the dirty log off.
    pub fn stop_dirty_log(&self) {
        let Some(pages) = &self.0 else { return };
        for watch in &pages.watch {
            watch.fetch_and(!WATCH_CLEAN, Ordering::AcqRel);
        }
        pages.each_log(Some(false), |log| log.stop());
    }

    /// Takes the log: one bit a page written since the last call (or since
    /// [`PageTable::start_dirty_log`]). Pages read *after* this call contain
    /// every store that the log does not report again.
    pub fn take_dirty(&self) -> Vec<u64> {
        let Some(pages) = &self.0 else {
            return Vec::new();
        };
        let mut taken: Vec<u64> = pages
            .dirty
            .iter()
            .map(|word| word.swap(0, Ordering::AcqRel))
            .collect();
        for (word, bits) in taken.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                pages.watch[index].fetch_or(WATCH_CLEAN, Ordering::AcqRel);
                bits &= bits - 1;
            }
        }
        pages.each_log(None, |log| log.take(&mut taken));
        other_threads_barrier();
        taken
    }
}

/// The lines that bytes `from..=to` of a page overlap.
fn lines(from: u64, to: u64) -> u64 {
    let (first, last) = (from / LINE, to / LINE);
    (u64::MAX >> (63 - (last - first))) << first
}

/// Every other thread of this process passes a full barrier before this
/// returns (`membarrier(2)`, private expedited). Kernels without it get the
/// same from the slow global command.
fn other_threads_barrier() {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    fn membarrier(command: i32) -> i64 {
        // SAFETY: membarrier takes integers only and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    }
    static COMMAND: OnceLock<Option<i32>> = OnceLock::new();
    let command = COMMAND.get_or_init(|| {
        let known = membarrier(QUERY).max(0) as i32;
        if known & PRIVATE_EXPEDITED != 0 && membarrier(REGISTER_PRIVATE_EXPEDITED) == 0 {
            Some(PRIVATE_EXPEDITED)
        } else if known & GLOBAL != 0 {
            Some(GLOBAL)
        } else {
            None
        }
    });
    fence(Ordering::SeqCst);
    if let Some(command) = command {
        membarrier(*command);
    }
}

impl<'a> WithBitmapSlice<'a> for PageTable {
    type S = RefSlice<'a, PageTable>;
}

/// `vm-memory` calls `mark_dirty` after each store a device makes.
impl Bitmap for PageTable {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1) >> PAGE_SHIFT;
        let watched = (offset >> PAGE_SHIFT..=last).any(|index| {
            self.watch(index)
                .is_some_and(|watch| watch.load(Ordering::Acquire) != 0)
        });
        if watched {
            self.written(offset as u64, len as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let index = offset >> PAGE_SHIFT;
        self.0.as_ref().is_some_and(|pages| {
            pages
                .dirty
                .get(index / 64)
                .is_some_and(|word| word.load(Ordering::Acquire) >> (index % 64) & 1 != 0)
        })
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, PageTable> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for PageTable {
    fn with_len(len: usize) -> Self {
        let count = len.div_ceil(PAGE_SIZE as usize);
        // SAFETY: integer atomics are valid when zero.
        let pages = unsafe {
            Pages {
                watch: zeroed(count),
                code_lines: zeroed(count),
                generation: zeroed(count),
                dirty: zeroed(count.div_ceil(64)),
                logs: Mutex::default(),
                code_logs: Mutex::default(),
            }
        };
        PageTable(Some(Arc::new(pages)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwatched_stores_leave_no_trace() {
        let table = PageTable::with_len(4 * PAGE_SIZE as usize);
        table.mark_dirty(100, 5000);
        assert!(!table.dirty_at(100));
        assert_eq!(table.watch_code(0, 0, 10), 0);
    }

    #[test]
    fn only_stores_to_decoded_lines_move_the_generation() {
        let table = PageTable::with_len(4 * PAGE_SIZE as usize);
        assert_eq!(table.watch_code(1, 64, 127), 0);
        table.mark_dirty(PAGE_SIZE as usize + 128, 8);
        assert_eq!(table.watch_code(1, 64, 127), 0);
        table.mark_dirty(PAGE_SIZE as usize + 127, 1);
        // Nothing is left to watch until somebody decodes again.
        assert_eq!(table.watch(1).unwrap().load(Ordering::SeqCst), 0);
        let second = table.watch_code(1, 64, 127);
        assert_ne!(second, 0);
        // A store that only ends on the line counts too.
        table.mark_dirty(PAGE_SIZE as usize - 4, 4 + 65);
        assert_ne!(table.watch_code(1, 64, 127), second);
    }

    #[test]
    fn the_dirty_log_reports_each_page_once() {
        let table = PageTable::with_len(130 * PAGE_SIZE as usize);
        table.start_dirty_log();
        table.mark_dirty(129 * PAGE_SIZE as usize, 1);
        table.mark_dirty(PAGE_SIZE as usize - 1, 2);
        assert_eq!(table.take_dirty(), vec![0b11, 0, 0b10]);
        assert_eq!(table.take_dirty(), vec![0, 0, 0]);
        table.mark_dirty(0, 1);
        assert_eq!(table.take_dirty(), vec![0b1, 0, 0]);
        table.stop_dirty_log();
        table.mark_dirty(0, 1);
        assert_eq!(table.take_dirty(), vec![0, 0, 0]);
    }

    #[test]
    fn store_logs_contribute_to_the_dirty_log() {
        #[derive(Default)]
        struct Log(AtomicU64);
        impl StoreLog for Log {
            fn start(&self) {
                self.0.store(0, Ordering::Relaxed);
            }
            fn stop(&self) {
                self.0.store(!0, Ordering::Relaxed);
            }
            fn take(&self, dirty: &mut [u64]) {
                dirty[0] |= self.0.swap(0, Ordering::Relaxed);
            }
        }
        let table = PageTable::with_len(4 * PAGE_SIZE as usize);
        let log = Arc::new(Log(AtomicU64::new(0b1000)));
        let weak: Weak<dyn StoreLog> = Arc::downgrade(&(log.clone() as Arc<dyn StoreLog>));
        table.start_dirty_log();
        table.attach(weak);
        table.mark_dirty(0, 1);
        log.0.store(0b100, Ordering::Relaxed);
        assert_eq!(table.take_dirty(), vec![0b101]);
        table.stop_dirty_log();
        assert_eq!(log.0.load(Ordering::Relaxed), !0);
        drop(log);
        assert_eq!(table.take_dirty(), vec![0]);
    }

    #[test]
    fn the_whole_page_is_64_lines() {
        assert_eq!(lines(0, 4095), u64::MAX);
        assert_eq!(lines(0, 0), 1);
        assert_eq!(lines(63, 64), 3);
        assert_eq!(lines(4032, 4095), 1 << 63);
    }
}
