//! Guest time: the TSC and, derived from it, guest nanoseconds, as on the
//! software engine.
//!
//! The guest's TSC is the host's, scaled by the processor where the machine
//! wants another frequency, plus an offset that every vCPU is given before it
//! runs again after time was changed ([`Clock::generation`]).

use std::arch::x86_64::_rdtsc;
use std::sync::Mutex;

use crate::error::lock;

#[derive(Debug)]
struct Inner {
    /// Added to the scaled host TSC.
    offset: u64,
    /// Guest TSC while paused.
    paused_at: Option<u64>,
    generation: u64,
    /// What KVM is told for `offset`, when it differs; see [`Clock::offset`].
    kvm_offset: Option<u64>,
}

/// The clock of one partition.
#[derive(Debug)]
pub struct Clock {
    tsc_khz: u32,
    /// Guest ticks for each host tick, as a 32.32 fixed-point number.
    scale: u64,
    inner: Mutex<Inner>,
}

/// One in 32.32.
const UNSCALED: u64 = 1 << 32;

fn host_tsc() -> u64 {
    // SAFETY: RDTSC is part of x86-64 and Linux leaves it enabled.
    unsafe { _rdtsc() }
}

impl Clock {
    /// A running clock at zero with a guest TSC of `tsc_khz` on a host TSC of
    /// `host_khz`.
    pub fn new(tsc_khz: u32, host_khz: u32) -> Self {
        let scale = ((u128::from(tsc_khz) << 32) / u128::from(host_khz.max(1))) as u64;
        let clock = Clock {
            tsc_khz: tsc_khz.max(1),
            scale,
            inner: Mutex::new(Inner {
                offset: 0,
                paused_at: None,
                generation: 1,
                kvm_offset: None,
            }),
        };
        clock.set_tsc(0);
        clock
    }

    fn scaled(&self) -> u64 {
        let host = host_tsc();
        if self.scale == UNSCALED {
            host
        } else {
            ((u128::from(host) * u128::from(self.scale)) >> 32) as u64
        }
    }

    fn tsc_of(&self, inner: &Inner) -> u64 {
        inner
            .paused_at
            .unwrap_or_else(|| self.scaled().wrapping_add(inner.offset))
    }

    /// Guest TSC, before a vCPU's own IA32_TSC_ADJUST.
    pub fn tsc(&self) -> u64 {
        self.tsc_of(&lock(&self.inner))
    }

    /// Guest TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Guest nanoseconds.
    pub fn ns(&self) -> u64 {
        self.ticks_to_ns(self.tsc())
    }

    /// A number of guest TSC ticks in nanoseconds.
    pub fn ticks_to_ns(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz)) as u64
    }

    /// Makes the guest TSC `tsc` now.
    pub fn set_tsc(&self, tsc: u64) {
        let mut inner = lock(&self.inner);
        inner.offset = tsc.wrapping_sub(self.scaled());
        if let Some(at) = &mut inner.paused_at {
            *at = tsc;
        }
        inner.generation += 1;
        inner.kvm_offset = None;
    }

    /// Stops time.
    pub fn pause(&self) {
        let mut inner = lock(&self.inner);
        inner.paused_at = Some(self.tsc_of(&inner));
        inner.generation += 1;
    }

    /// Lets time go on from where it stopped.
    pub fn resume(&self) {
        let mut inner = lock(&self.inner);
        if let Some(at) = inner.paused_at.take() {
            inner.offset = at.wrapping_sub(self.scaled());
            inner.generation += 1;
            inner.kvm_offset = None;
        }
    }

    /// Moves whenever the vCPUs' offsets must be set again; `None` while
    /// time stands still, when they must be each time.
    pub fn generation(&self) -> Option<u64> {
        let inner = lock(&self.inner);
        inner.paused_at.is_none().then_some(inner.generation)
    }

    /// The offset that KVM must add to make the guest's TSC, without a vCPU's
    /// IA32_TSC_ADJUST. Where the processor scales, `measure` tells KVM's
    /// scaled host TSC, whose rounding is not ours; all vCPUs then share what
    /// the first measured.
    pub fn offset<E>(&self, measure: impl FnOnce() -> Result<u64, E>) -> Result<u64, E> {
        let mut inner = lock(&self.inner);
        if self.scale == UNSCALED {
            return Ok(match inner.paused_at {
                Some(at) => at.wrapping_sub(self.scaled()),
                None => inner.offset,
            });
        }
        if let (Some(offset), None) = (inner.kvm_offset, inner.paused_at) {
            return Ok(offset);
        }
        let scaled = measure()?;
        let offset = self.tsc_of(&inner).wrapping_sub(scaled);
        if inner.paused_at.is_none() {
            inner.kvm_offset = Some(offset);
        }
        Ok(offset)
    }
}

/// The host's monotonic clock in nanoseconds, by which KVM's PIT counts.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::time::{Duration, Instant};

    #[test]
    fn time_stands_still_while_paused() {
        let clock = Clock::new(1_000_000, 1_000_000);
        let before = clock.generation();
        clock.pause();
        let at = clock.tsc();
        assert_eq!(clock.generation(), None);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.tsc(), at);
        let began = Instant::now();
        clock.resume();
        assert!(clock.generation() > before);
        let on = clock.tsc();
        // The host's TSC is not slower than this, nor ten times as fast.
        let most = 100_000_000 + 10 * began.elapsed().as_nanos() as u64;
        assert!(on >= at && on - at < most);
        clock.set_tsc(5_000_000);
        assert!(clock.ns() >= 5_000_000);
    }

    #[test]
    fn scaled_offsets_are_measured_once() {
        let clock = Clock::new(1_000_000, 3_000_000);
        let first = clock.offset(|| Ok::<_, Infallible>(77)).unwrap();
        let second = clock.offset(|| Ok::<_, Infallible>(99_999)).unwrap();
        assert_eq!(first, second);
        clock.set_tsc(0);
        let third = clock.offset(|| Ok::<_, Infallible>(99_999)).unwrap();
        assert_ne!(first, third);
    }
}
