//! Integer work that stays in registers and small tables.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lines::Work;

/// Steps of the generator.
pub const STEPS: u64 = 1 << 20;
/// Elements that are sorted.
pub const ELEMENTS: u64 = 16 * 1024;
/// Calls that the recursion of [`calls`] makes: 2 · F(28) - 1.
pub const CALLS: u64 = 635_621;
const DEPTH: u64 = 27;
/// Rounds of [`locks`].
pub const LOCKS: u64 = 64 * 1024;
/// Bytes that [`table`] reads.
pub const BYTES: u64 = 512 * 1024;

/// Marsaglia's xorshift with 64 bits: shifts and exclusive or, in registers.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub fn xorshift(_: &Path) -> io::Result<Work> {
    Ok(Box::new(|| {
        let mut random = Random(black_box(88_172_645_463_325_252));
        for _ in 0..STEPS {
            random.next();
        }
        Ok(random.0)
    }))
}

fn elements() -> Vec<u32> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    (0..ELEMENTS).map(|_| random.next() as u32).collect()
}

/// Something that tells the order of elements.
fn digest(sorted: &[u32]) -> u64 {
    sorted.iter().fold(0, |sum: u64, element| {
        sum.rotate_left(5).wrapping_add(u64::from(*element))
    })
}

type Compare = fn(&u32, &u32) -> i32;

fn ascending(a: &u32, b: &u32) -> i32 {
    i32::from(a > b) - i32::from(a < b)
}

/// Hoare's quicksort that asks a function for the order, as C's qsort does.
pub fn quicksort(_: &Path) -> io::Result<Work> {
    fn sort(elements: &mut [u32], compare: Compare) {
        if elements.len() < 2 {
            return;
        }
        // Never the last one, or the right part could be empty.
        let pivot = elements[(elements.len() - 1) / 2];
        let (mut low, mut high) = (0, elements.len() - 1);
        loop {
            while compare(&elements[low], &pivot) < 0 {
                low += 1;
            }
            while compare(&elements[high], &pivot) > 0 {
                high -= 1;
            }
            if low >= high {
                break;
            }
            elements.swap(low, high);
            low += 1;
            high -= 1;
        }
        let (left, right) = elements.split_at_mut(high + 1);
        sort(left, compare);
        sort(right, compare);
    }

    let unsorted = elements();
    let mut copy = unsorted.clone();
    Ok(Box::new(move || {
        copy.copy_from_slice(&unsorted);
        sort(&mut copy, black_box(ascending as Compare));
        Ok(digest(&copy))
    }))
}

/// Shell's sort with the gaps of Ciura: loops and moves, no calls.
pub fn shellsort(_: &Path) -> io::Result<Work> {
    const GAPS: [usize; 10] = [4001, 1750, 701, 301, 132, 57, 23, 10, 4, 1];

    let unsorted = elements();
    let mut copy = unsorted.clone();
    Ok(Box::new(move || {
        copy.copy_from_slice(&unsorted);
        for gap in GAPS {
            for next in gap..copy.len() {
                let element = copy[next];
                let mut at = next;
                while at >= gap && copy[at - gap] > element {
                    copy[at] = copy[at - gap];
                    at -= gap;
                }
                copy[at] = element;
            }
        }
        Ok(digest(&copy))
    }))
}

/// A recursion that does little but call and return.
pub fn calls(_: &Path) -> io::Result<Work> {
    #[inline(never)]
    fn fibonacci(n: u64) -> u64 {
        // Hidden, lest one of the calls becomes a loop.
        if n < 2 {
            return n;
        }
        black_box(fibonacci(n - 1)) + black_box(fibonacci(n - 2))
    }
    Ok(Box::new(|| Ok(fibonacci(black_box(DEPTH)))))
}

/// Locked instructions and a mutex that nobody else wants: in each round an
/// addition, a compare-and-swap, an exchange, and a mutex taken and left.
pub fn locks(_: &Path) -> io::Result<Work> {
    let counter = AtomicU64::new(0);
    let guarded = Mutex::new(0u64);
    Ok(Box::new(move || {
        counter.store(0, Ordering::Relaxed);
        let mut sum = 0u64;
        for round in 0..LOCKS {
            sum = sum.wrapping_add(counter.fetch_add(round, Ordering::SeqCst));
            let now = counter.load(Ordering::Relaxed);
            let swapped =
                counter.compare_exchange(now, now ^ sum, Ordering::SeqCst, Ordering::SeqCst);
            sum ^= swapped.unwrap_or(1);
            sum = sum.wrapping_add(counter.swap(now, Ordering::SeqCst));
            let Ok(mut value) = guarded.lock() else {
                return Err(io::Error::other("the mutex is poisoned"));
            };
            *value = sum;
        }
        Ok(sum)
    }))
}

/// The polynomial of Ethernet's CRC-32, reflected.
const POLYNOMIAL: u32 = 0xEDB8_8320;

/// A CRC by a table of bytes: each look-up needs the one before.
pub fn table(_: &Path) -> io::Result<Work> {
    let mut table = [0u32; 256];
    for (entry, index) in table.iter_mut().zip(0u32..) {
        *entry = (0..8).fold(index, |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 }
        });
    }
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    let bytes: Vec<u8> = (0..BYTES).map(|_| random.next() as u8).collect();
    Ok(Box::new(move || {
        let crc = bytes.iter().fold(!0u32, |crc, byte| {
            table[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
        });
        Ok(u64::from(!crc))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(prepare: fn(&Path) -> io::Result<Work>) -> u64 {
        prepare(Path::new("")).unwrap()().unwrap()
    }

    #[test]
    fn sorts_agree_with_the_library() {
        let mut sorted = elements();
        sorted.sort_unstable();
        assert_eq!(result(quicksort), digest(&sorted));
        assert_eq!(result(shellsort), digest(&sorted));
    }

    #[test]
    fn the_recursion_is_counted_rightly() {
        // Computing F(n) by calls makes 2 · F(n + 1) - 1 of them.
        assert_eq!(result(calls), 196_418);
        let (_, after) = (0..DEPTH).fold((0u64, 1u64), |(a, b), _| (b, a + b));
        assert_eq!(CALLS, 2 * after - 1);
    }

    #[test]
    fn the_table_gives_crc_32() {
        let mut crc = 0u32;
        let mut random = Random(0x1234_5678_9ABC_DEF1);
        crc = (0..BYTES).fold(!crc, |crc, _| {
            (0..8).fold(crc ^ u32::from(random.next() as u8), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 }
            })
        });
        assert_eq!(result(table), u64::from(!crc));
    }
}
