//! Loads that wait for each other, and copies.

#![allow(unsafe_code)]

use std::arch::asm;
use std::hint::black_box;
use std::io;
use std::path::Path;

use crate::compute::Random;
use crate::lines::Work;

/// Steps of a chase.
pub const STEPS: u64 = 128 * 1024;
/// What the copies copy in a call.
pub const KIBIBYTES: u64 = 8 * 1024;
/// The length of one copy.
const PIECE: usize = 1 << 20;

const LINE: usize = 64;

/// A cache line with the number of the next one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Link {
    next: u32,
}

/// Within a first-level cache.
pub fn chase_l1(_: &Path) -> io::Result<Work> {
    chase(16 * 1024)
}

/// Beyond second-level caches and what a TLB reaches.
pub fn chase_4m(_: &Path) -> io::Result<Work> {
    chase(4 << 20)
}

/// Follows links through all lines of `size` bytes, in random order.
fn chase(size: usize) -> io::Result<Work> {
    let count = size / LINE;
    // Sattolo's shuffle, whose result is one cycle.
    let mut order: Vec<u32> = (0..).take(count).collect();
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    for last in (1..count).rev() {
        order.swap(last, random.next() as usize % last);
    }
    let links: Vec<Link> = order.into_iter().map(|next| Link { next }).collect();
    Ok(Box::new(move || {
        let (mut at, mut sum) = (0, 0u64);
        for _ in 0..STEPS {
            at = links[at as usize].next;
            sum = sum.wrapping_add(u64::from(at));
        }
        Ok(sum)
    }))
}

/// The C library's copy, which chooses its instructions by what the processor
/// announces.
pub fn copy(_: &Path) -> io::Result<Work> {
    Ok(copies(|to, from| to.copy_from_slice(from)))
}

/// The processor's own, REP MOVSB.
pub fn copy_by_string(_: &Path) -> io::Result<Work> {
    Ok(copies(|to, from| {
        let count = to.len().min(from.len());
        // SAFETY: both slices have `count` bytes and do not overlap, and the
        // direction flag is clear, as the calling convention wants.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") count => _,
                inout("rdi") to.as_mut_ptr() => _,
                inout("rsi") from.as_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
    }))
}

fn copies(copy: fn(&mut [u8], &[u8])) -> Work {
    let mut random = Random(0xA076_1D64_78BD_642F);
    let mut from: Vec<u8> = (0..PIECE).map(|_| random.next() as u8).collect();
    let mut to = vec![0; PIECE];
    Box::new(move || {
        let mut sum = 0u64;
        for round in 0..KIBIBYTES as usize * 1024 / PIECE {
            // Each copy differs from the one before, and is looked at.
            from[round * LINE] = round as u8;
            copy(black_box(&mut to), black_box(&from));
            let seen = to.iter().step_by(4096).map(|byte| u64::from(*byte));
            sum = seen.fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        }
        Ok(sum)
    })
}
