//! Guest RAM: host mappings, the dirty log and the code-page bits.
//!
//! Everything that touches guest memory goes through [`GuestRam`]: devices by
//! the `vm-memory` traits ([`GuestRam::mappings`]), engines by [`PageRef`]s
//! held in their TLBs. Both leave the same two traces of a store, so that a
//! device's DMA dirties pages and invalidates translated code by itself:
//!
//! * the **dirty log** (live migration, incremental snapshots), and
//! * the **code generation** of a page: a counter that moves whenever a store
//!   overlaps bytes from which an engine has decoded instructions.
//!
//! # The store protocol
//!
//! Each page has one *watch* byte. It is zero while nobody cares about stores
//! to the page, and a writer's whole cost is then one load:
//!
//! ```text
//! writer:  store bytes ─► load watch ─► (non-zero) PageTable::written()
//! decoder: set watch.CODE ─► membarrier ─► read generation ─► read bytes
//! ```
//!
//! The writer looks *after* its store. A store whose look still missed the
//! CODE bit was therefore globally visible before the decoder's
//! `membarrier(2)` returned, and the decoder reads the new bytes; any later
//! store sees the bit and moves the generation. The barrier makes the rare
//! side (decoding) pay instead of every store.
#![allow(unsafe_code)]

mod pages;
mod ram;

pub use pages::{CodeLog, PAGE_SHIFT, PAGE_SIZE, PageTable, StoreLog};
pub use ram::{GuestRam, MemoryError, PageRef, Range};
