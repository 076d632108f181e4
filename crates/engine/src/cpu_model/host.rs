//! The processor we run on.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use crate::cpu_model::features::Features;

/// What CPUID tells on this host, as far as models ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFeatures {
    /// Feature bits.
    pub features: Features,
    /// XCR0 bits that the host's kernel enabled.
    pub xcr0: u64,
}

impl HostFeatures {
    /// Asks the host's CPUID and XCR0.
    pub fn detect() -> Self {
        let last_basic = __cpuid(0).eax;
        let last_extended = __cpuid(0x8000_0000).eax;
        let read = |function: u32, index: u32| -> Option<CpuidResult> {
            let there = match function >> 16 {
                0x8000 => function <= last_extended,
                // The hypervisor that the host may run under is not the host.
                0x4000 => false,
                _ => function <= last_basic,
            };
            there.then(|| __cpuid_count(function, index))
        };
        let features = Features::read(read);
        let osxsave = __cpuid(1).ecx >> 27 & 1 != 0;
        HostFeatures {
            features,
            xcr0: if osxsave { xgetbv() } else { 0b11 },
        }
    }
}

#[allow(unsafe_code)]
fn xgetbv() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: XCR0 always exists where XGETBV does.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    // SAFETY: the caller saw OSXSAVE, which says that XGETBV is enabled.
    unsafe { read() }
}
