//! Where operands and instructions are put: anywhere, or across each border
//! of [`crate::layout`]'s pages at each byte.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::layout::{self, CODE, DATA, KINDS, PAGE, Page};

/// Borders by the page after them, with what lies on the two sides.
const BORDERS: [u64; 6] = [2, 3, 6, 1, 4, 5];
/// Of these every byte is tried; of the others a third.
const THOROUGH: usize = 3;
/// Longest instruction in bytes.
const LONGEST: u64 = 15;

/// Where something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Within a page that allows everything.
    Free,
    /// Across the border before page `page`, `first` bytes before it.
    Border {
        /// Page after the border.
        page: u64,
        /// Bytes before the border.
        first: u64,
    },
    /// Somewhere in this page.
    Inside(u64),
    /// At an address that is not canonical.
    NonCanonical,
}

/// One arrangement of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Which memory operand, and where; the others are placed freely.
    pub operand: Option<(usize, Placement)>,
    /// Where the instruction is.
    pub code: Placement,
}

/// Every arrangement for operands of these sizes, in bytes.
pub fn scenarios(operands: &[u64]) -> Vec<Scenario> {
    let mut all = Vec::new();
    for (slot, size) in operands.iter().copied().enumerate() {
        let mut place = |placement| {
            all.push(Scenario {
                operand: Some((slot, placement)),
                code: Placement::Free,
            });
        };
        // Large areas at the places where their parts begin and end.
        let step = if size > 64 { 16 } else { 1 };
        for first in (step..size).step_by(step as usize) {
            for (n, page) in BORDERS.into_iter().enumerate() {
                if n < THOROUGH || (first + page) % 3 == 0 {
                    place(Placement::Border { page, first });
                }
            }
        }
        for page in 0..layout::PAGES {
            place(Placement::Inside(page));
        }
        place(Placement::NonCanonical);
    }
    for first in 1..LONGEST {
        for page in BORDERS {
            all.push(Scenario {
                operand: None,
                code: Placement::Border { page, first },
            });
        }
    }
    for page in 0..layout::PAGES {
        all.push(Scenario {
            operand: None,
            code: Placement::Inside(page),
        });
    }
    all
}

/// A page in which everything is allowed.
fn full_page(rng: &mut SmallRng, area: u64) -> u64 {
    let pages: Vec<u64> = (0..layout::PAGES)
        .filter(|n| matches!(KINDS[*n as usize], Page::Full(_)))
        .collect();
    layout::page(area, pages[rng.random_range(0..pages.len())])
}

/// An address for `size` bytes of data.
pub fn data(rng: &mut SmallRng, placement: Placement, size: u64) -> u64 {
    let within = |rng: &mut SmallRng| {
        let room = PAGE - size.clamp(1, PAGE);
        let address = rng.random_range(0..=room);
        // Mostly aligned for what demands it.
        let align = match rng.random_range(0..8) {
            0..4 => 64,
            4 => 32,
            5 => 16,
            6 => 8,
            _ => 1,
        };
        address & !(align - 1)
    };
    match placement {
        Placement::Free => full_page(rng, DATA) + within(rng),
        Placement::Border { page, first } => layout::page(DATA, page) - first,
        Placement::Inside(page) => layout::page(DATA, page) + within(rng),
        Placement::NonCanonical => {
            // Between the halves, with room for displacements.
            0x0001_0000_0000_0000 + (rng.random::<u64>() >> 9)
        }
    }
}

/// An address for an instruction of `len` bytes; nothing when the border
/// would not lie inside it.
pub fn code(rng: &mut SmallRng, placement: Placement, len: u64) -> Option<u64> {
    match placement {
        Placement::Free | Placement::NonCanonical => {
            Some(full_page(rng, CODE) + rng.random_range(0..PAGE - LONGEST))
        }
        Placement::Border { page, first } => {
            (first < len).then(|| layout::page(CODE, page) - first)
        }
        Placement::Inside(page) => {
            Some(layout::page(CODE, page) + rng.random_range(0..PAGE - LONGEST))
        }
    }
}

/// Where a branch may go, not into the instruction itself at `rip`.
pub fn target(rng: &mut SmallRng, rip: u64) -> u64 {
    loop {
        let target = match rng.random_range(0..10) {
            0 => layout::page(CODE, rng.random_range(0..layout::PAGES)) + rng.random_range(0..PAGE),
            1 => data(rng, Placement::NonCanonical, 1),
            _ => full_page(rng, CODE) + rng.random_range(0..PAGE),
        };
        if target.wrapping_sub(rip) >= LONGEST {
            return target;
        }
    }
}
