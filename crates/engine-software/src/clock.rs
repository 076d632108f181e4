//! Guest time: the TSC and, derived from it, guest nanoseconds.
//!
//! The guest's TSC is the host's, scaled and offset, always: an offset of
//! zero would not survive a pause or a restore. Guest nanoseconds are the
//! guest's TSC divided by its frequency, plus an offset that only a restore
//! sets, so the two never drift apart.

use std::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The clock of one partition.
#[derive(Debug)]
pub struct Clock {
    tsc_khz: u32,
    /// Guest ticks for each host tick, as a 32.32 fixed-point number.
    scale: u64,
    /// Added to the scaled host TSC.
    offset: AtomicU64,
    paused: AtomicBool,
    /// Guest TSC while paused.
    paused_at: AtomicU64,
    /// Added to the guest's TSC in nanoseconds: a machine that comes from
    /// another engine may have started the two at different times.
    offset_ns: AtomicU64,
}

fn host_tsc() -> u64 {
    // SAFETY: RDTSC is part of x86-64 and Linux leaves it enabled.
    unsafe { _rdtsc() }
}

/// The host's TSC frequency in kHz: from CPUID where the host tells, else
/// measured once against the monotonic clock.
pub fn host_tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| told_khz().unwrap_or_else(measured_khz))
}

/// Leaf 0x40000010 of a hypervisor, else leaf 0x15 (SDM vol. 2, CPUID).
fn told_khz() -> Option<u32> {
    let features = __cpuid(1);
    if features.ecx >> 31 != 0 && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = __cpuid(0x4000_0010).eax;
        if khz > 100_000 {
            return Some(khz);
        }
    }
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return u32::try_from(hz / 1000).ok().filter(|khz| *khz > 100_000);
        }
    }
    None
}

fn measured_khz() -> u32 {
    /// A point where both clocks were read closest together.
    fn sample() -> (u64, Instant) {
        (0..16)
            .map(|_| {
                let before = host_tsc();
                let now = Instant::now();
                (host_tsc().wrapping_sub(before), before, now)
            })
            .min_by_key(|(gap, ..)| *gap)
            .map_or_else(
                || (host_tsc(), Instant::now()),
                |(gap, before, now)| (before + gap / 2, now),
            )
    }
    let (ticks_0, time_0) = sample();
    std::thread::sleep(Duration::from_millis(10));
    let (ticks_1, time_1) = sample();
    let ns = time_1.duration_since(time_0).as_nanos().max(1) as u64;
    (u128::from(ticks_1.wrapping_sub(ticks_0)) * 1_000_000 / u128::from(ns)) as u32
}

impl Clock {
    /// A running clock at zero with a guest TSC of `tsc_khz`.
    pub fn new(tsc_khz: u32) -> Self {
        let clock = Clock {
            tsc_khz: tsc_khz.max(1),
            scale: ((u128::from(tsc_khz) << 32) / u128::from(host_tsc_khz().max(1))) as u64,
            offset: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            paused_at: AtomicU64::new(0),
            offset_ns: AtomicU64::new(0),
        };
        clock.set_tsc(0);
        clock
    }

    #[inline]
    fn scaled(&self) -> u64 {
        let host = host_tsc();
        if self.scale == 1 << 32 {
            host
        } else {
            ((u128::from(host) * u128::from(self.scale)) >> 32) as u64
        }
    }

    /// Guest TSC, before a vCPU's own IA32_TSC_ADJUST.
    #[inline]
    pub fn tsc(&self) -> u64 {
        if self.paused.load(Ordering::Relaxed) {
            return self.paused_at.load(Ordering::Relaxed);
        }
        self.scaled()
            .wrapping_add(self.offset.load(Ordering::Relaxed))
    }

    /// Makes the guest TSC `tsc` now.
    pub fn set_tsc(&self, tsc: u64) {
        self.paused_at.store(tsc, Ordering::Relaxed);
        self.offset
            .store(tsc.wrapping_sub(self.scaled()), Ordering::Relaxed);
    }

    /// Guest TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Guest nanoseconds.
    #[inline]
    pub fn ns(&self) -> u64 {
        self.ns_at(self.tsc())
    }

    /// Guest nanoseconds when the guest's TSC is `tsc`.
    #[inline]
    pub fn ns_at(&self, tsc: u64) -> u64 {
        self.ticks_to_ns(tsc).wrapping_add(self.offset_ns())
    }

    /// Guest nanoseconds when the guest's TSC is zero (modulo 2^64).
    pub fn offset_ns(&self) -> u64 {
        self.offset_ns.load(Ordering::Relaxed)
    }

    /// The guest's TSC at guest time `ns`, before a vCPU's own
    /// IA32_TSC_ADJUST.
    pub fn tsc_at(&self, ns: u64) -> u64 {
        self.ns_to_ticks(ns.wrapping_sub(self.offset_ns()))
    }

    /// Makes it guest time `ns` with a TSC of `tsc` now.
    pub fn set(&self, ns: u64, tsc: u64) {
        let offset = ns.wrapping_sub(self.ticks_to_ns(tsc));
        self.offset_ns.store(offset, Ordering::Relaxed);
        self.set_tsc(tsc);
    }

    /// A number of guest TSC ticks in nanoseconds.
    #[inline]
    pub fn ticks_to_ns(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz)) as u64
    }

    /// Nanoseconds in guest TSC ticks.
    pub fn ns_to_ticks(&self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.tsc_khz) / 1_000_000) as u64
    }

    /// Stops time.
    pub fn pause(&self) {
        self.paused_at.store(self.tsc(), Ordering::Relaxed);
        self.paused.store(true, Ordering::Release);
    }

    /// Lets time go on from where it stopped.
    pub fn resume(&self) {
        if self.paused.load(Ordering::Acquire) {
            self.set_tsc(self.paused_at.load(Ordering::Relaxed));
            self.paused.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_while_paused() {
        let clock = Clock::new(1_000_000);
        clock.pause();
        let at = clock.tsc();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.tsc(), at);
        let began = Instant::now();
        clock.resume();
        let on = clock.tsc();
        // A tick is a nanosecond.
        let most = 1_000_000_000 + 2 * began.elapsed().as_nanos() as u64;
        assert!(on >= at && on - at < most);
    }

    #[test]
    fn a_restored_clock_keeps_its_own_distance_from_the_tsc() {
        let clock = Clock::new(1_000_000);
        clock.pause();
        clock.set(5_000, 7_000_000);
        assert_eq!((clock.ns(), clock.tsc()), (5_000, 7_000_000));
        assert_eq!(clock.tsc_at(clock.ns()), clock.tsc());
        clock.set(9_000_000, 1_000_000);
        assert_eq!((clock.ns(), clock.tsc()), (9_000_000, 1_000_000));
        assert_eq!(clock.tsc_at(clock.ns()), clock.tsc());
    }

    #[test]
    fn nanoseconds_follow_the_hosts_clock() {
        let clock = Clock::new(2_500_000);
        // Between two readings of the host's, however far apart these are.
        let read = || (Instant::now(), clock.ns(), Instant::now());
        let first = read();
        std::thread::sleep(Duration::from_millis(50));
        let second = read();
        let guest = second.1 - first.1;
        let least = (second.0 - first.2).as_nanos() as u64;
        let most = (second.2 - first.0).as_nanos() as u64;
        assert!(
            guest > least - least / 50 && guest < most + most / 50,
            "{guest} is not from {least} to {most}"
        );
        assert_eq!(clock.ticks_to_ns(clock.ns_to_ticks(1_000_000)), 1_000_000);
    }
}
