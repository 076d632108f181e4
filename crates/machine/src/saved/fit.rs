//! Whether a saved machine's processor is what an engine offers here.

use croft_engine::{CpuProfile, PartitionState};

/// Frequencies this close, in millionths, count as the same: two measurements
/// of one clock, or two hosts of one kind. Guests can correct as much
/// (adjtimex(2): 500 ppm).
const TOLERANCE_PPM: u64 = 500;

/// Leaf 0x16: processor frequency. 0x4000_0010: TSC frequency.
const FREQUENCIES: [u32; 2] = [0x16, 0x4000_0010];
/// EAX 7:0 are the physical address bits.
const ADDRESS_BITS: u32 = 0x8000_0008;

/// How a machine fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// What the engine is to promise: what the machine was promised before.
    pub profile: CpuProfile,
}

/// The profile with which `saved` goes on where an engine offers `offered`
/// for the same model; or what of it differs.
///
/// The guest has read CPUID and keeps what it found, so all of it must be the
/// same, but for frequencies and for a larger address space. The TSC's
/// frequency stays what it was, unless the engine's is as good as the same.
pub fn fit(saved: &CpuProfile, offered: &CpuProfile) -> Result<Fit, String> {
    if saved.physical_bits > offered.physical_bits {
        return Err(format!(
            "{} physical address bits, {} here",
            saved.physical_bits, offered.physical_bits
        ));
    }
    if (saved.xcr0, saved.arch_capabilities) != (offered.xcr0, offered.arch_capabilities) {
        return Err("other XSAVE components or IA32_ARCH_CAPABILITIES".to_owned());
    }
    if saved.leaves.len() != offered.leaves.len() {
        return Err("another number of CPUID leaves".to_owned());
    }
    for (had, has) in saved.leaves.iter().zip(&offered.leaves) {
        let mut has = *has;
        if FREQUENCIES.contains(&had.function) {
            (has.eax, has.ebx) = (had.eax, had.ebx);
        }
        if had.function == ADDRESS_BITS {
            has.eax = has.eax & !0xFF | had.eax & 0xFF;
        }
        if *had != has {
            return Err(format!("another CPUID leaf {:#x}", had.function));
        }
    }
    let mut profile = saved.clone();
    let difference = u64::from(saved.tsc_khz.abs_diff(offered.tsc_khz));
    if difference * 1_000_000 <= u64::from(offered.tsc_khz) * TOLERANCE_PPM {
        profile.tsc_khz = offered.tsc_khz;
    }
    Ok(Fit { profile })
}

impl Fit {
    /// Puts a state's time to the frequency of [`profile`](Self::profile).
    /// Neither the TSC nor guest nanoseconds go back.
    pub fn retime(&self, state: &mut PartitionState) {
        let khz = self.profile.tsc_khz;
        if state.tsc_khz == khz {
            return;
        }
        let ticks = u128::from(state.clock_ns) * u128::from(khz) / 1_000_000;
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        state.tsc = state.tsc.max(ticks);
        let ns = u128::from(state.tsc) * 1_000_000 / u128::from(khz.max(1));
        state.clock_ns = u64::try_from(ns).unwrap_or(u64::MAX).max(state.clock_ns);
        state.tsc_khz = khz;
    }
}
