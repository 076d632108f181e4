//! Floating point. Only what every x86-64 has, SSE2, and no fused operations:
//! every machine computes the same bits.

use std::hint::black_box;
use std::io;
use std::path::Path;

use crate::compute::Random;
use crate::lines::Work;

/// Products that [`dot`] adds.
pub const TERMS: u64 = (LENGTH * ROUNDS) as u64;
const LENGTH: usize = 1024;
const ROUNDS: usize = 256;
/// Products that [`matrices`] adds.
pub const PRODUCTS: u64 = (SIDE * SIDE * SIDE) as u64;
const SIDE: usize = 96;

/// Between 0 and 1.
fn values(count: usize, seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    let range = u64::MAX as f64;
    (0..count).map(|_| random.next() as f64 / range).collect()
}

/// A dot product, one number after the other: a compiler must not change the
/// order of floating-point additions.
pub fn dot(_: &Path) -> io::Result<Work> {
    let (a, b) = (values(LENGTH, 3), values(LENGTH, 5));
    Ok(Box::new(move || {
        let mut sum = 0.0;
        for _ in 0..ROUNDS {
            for (a, b) in black_box(&a).iter().zip(black_box(&b)) {
                sum += a * b;
            }
        }
        Ok(f64::to_bits(sum))
    }))
}

/// A product of matrices whose inner loop a compiler makes of vector
/// instructions, since its elements do not need each other.
pub fn matrices(_: &Path) -> io::Result<Work> {
    let (a, b) = (values(SIDE * SIDE, 7), values(SIDE * SIDE, 11));
    let mut c = vec![0.0; SIDE * SIDE];
    Ok(Box::new(move || {
        c.fill(0.0);
        let (a, b) = (black_box(&a), black_box(&b));
        for (row, c) in a.chunks_exact(SIDE).zip(c.chunks_exact_mut(SIDE)) {
            for (factor, b) in row.iter().zip(b.chunks_exact(SIDE)) {
                for (sum, b) in c.iter_mut().zip(b) {
                    *sum += factor * b;
                }
            }
        }
        let bits = c.iter().map(|sum: &f64| sum.to_bits());
        Ok(bits.fold(0, |all: u64, bits| all.rotate_left(1) ^ bits))
    }))
}
