//! CPU models on KVM: what it supports of them, and CPUID as it wants it.

use std::arch::x86_64::CpuidResult;

use croft_engine::cpu_model::{EngineOffer, Features, HostFeatures, build, feature, features};
use croft_engine::{CpuModel, CpuProfile, CpuidLeaf, Missing, Topology};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The entry depends on ECX (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const SIGNIFICANT_INDEX: u32 = 1;
/// KVM's APIC timers count nanoseconds.
const APIC_KHZ: u32 = 1_000_000;
/// XCR0: x87, SSE, AVX.
const XCR0_AVX: u64 = 0b111;
/// Guest-physical address bits offered at most: those of the software engine.
const PHYSICAL_BITS: u8 = 46;

/// What KVM supports on this host.
#[derive(Clone, Debug)]
pub struct Supported {
    /// CPUID as KVM can present it.
    host: HostFeatures,
    /// Guest-physical address bits.
    pub physical_bits: u8,
}

impl Supported {
    /// From KVM_GET_SUPPORTED_CPUID; `deadline` says that KVM has the TSC
    /// deadline timer, which that list leaves out.
    pub fn new(entries: &[kvm_cpuid_entry2], deadline: bool) -> Self {
        let find = |function: u32, index: u32| {
            entries
                .iter()
                .find(|entry| {
                    entry.function == function
                        && (entry.flags & SIGNIFICANT_INDEX == 0 || entry.index == index)
                })
                .map(|entry| CpuidResult {
                    eax: entry.eax,
                    ebx: entry.ebx,
                    ecx: entry.ecx,
                    edx: entry.edx,
                })
        };
        let mut features = Features::read(find);
        // KVM emulates x2APIC and says so; it shows itself as a hypervisor to
        // whoever is told about it.
        features.insert(feature::HYPERVISOR);
        if deadline {
            features.insert(feature::TSC_DEADLINE);
        }
        let xcr0 =
            find(0xD, 0).map_or(0b11, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
        let bits = find(0x8000_0008, 0).map_or(36, |leaf| leaf.eax as u8);
        Supported {
            host: HostFeatures { features, xcr0 },
            physical_bits: bits.clamp(32, PHYSICAL_BITS),
        }
    }

    /// The profile with which KVM honours `model`, or what is missing.
    pub fn profile(
        &self,
        model: CpuModel,
        topology: Topology,
        tsc_khz: u32,
    ) -> Result<CpuProfile, Vec<Missing>> {
        let offer = EngineOffer {
            name: "kvm",
            emulated: Features::default(),
            passed: Features::of(features::ALL),
            refused: &[CpuModel::SoftwareFast],
            xcr0: XCR0_AVX,
            tsc_khz,
            apic_khz: APIC_KHZ,
            physical_bits: self.physical_bits,
        };
        build(model, topology, &self.host, &offer)
    }
}

/// A leaf as vCPU `index` shows it.
fn entry(leaf: &CpuidLeaf, index: u32) -> kvm_cpuid_entry2 {
    let mut entry = kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or_default(),
        flags: if leaf.index.is_some() {
            SIGNIFICANT_INDEX
        } else {
            0
        },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    };
    match leaf.function {
        // OSXSAVE, and the APIC bit while the APIC is off, are KVM's.
        0x1 => entry.ebx = entry.ebx & 0x00FF_FFFF | index << 24,
        0xB | 0x1F => {
            entry.ecx = entry.ecx & !0xFF | entry.index & 0xFF;
            entry.edx = index;
        }
        _ => {}
    }
    entry
}

/// CPUID of vCPU `index`; `None` when the profile has more leaves than KVM
/// takes.
pub fn entries(profile: &CpuProfile, index: u32) -> Option<CpuId> {
    let list: Vec<_> = profile
        .leaves
        .iter()
        .map(|leaf| entry(leaf, index))
        .collect();
    CpuId::from_entries(&list).ok()
}

/// Whether the profile announces IA32_ARCH_CAPABILITIES (leaf 7, EDX 29).
pub fn has_arch_capabilities(profile: &CpuProfile) -> bool {
    profile
        .leaf(7, 0)
        .is_some_and(|leaf| leaf.edx >> 29 & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<kvm_cpuid_entry2> {
        let full = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            flags: u32::from(matches!(function, 7 | 0xD)),
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            padding: [0; 3],
        };
        let mut list: Vec<_> = [
            (1, 0),
            (6, 0),
            (7, 0),
            (7, 1),
            (0xD, 0),
            (0xD, 1),
            (0x4000_0001, 0),
            (0x8000_0001, 0),
            (0x8000_0007, 0),
            (0x8000_0008, 0),
        ]
        .map(|(function, index)| full(function, index))
        .to_vec();
        // TSC deadline is not in KVM's list.
        list[0].ecx &= !(1 << 24);
        list[9].eax = 0x3030;
        list
    }

    const TOPOLOGY: Topology = Topology { vcpus: 2 };

    #[test]
    fn models_are_honoured_or_refused_by_name() {
        let supported = Supported::new(&everything(), true);
        for (model, bits) in [(CpuModel::Host, 46), (CpuModel::PortableV1, 39)] {
            let profile = supported.profile(model, TOPOLOGY, 2_000_000).unwrap();
            assert_eq!((profile.tsc_khz, profile.physical_bits), (2_000_000, bits));
            assert!(!has_arch_capabilities(&profile));
            assert!(entries(&profile, 1).is_some());
        }
        assert!(
            supported
                .profile(CpuModel::SoftwareFast, TOPOLOGY, 1)
                .is_err()
        );
        let without = Supported::new(&everything(), false);
        let missing = without
            .profile(CpuModel::PortableV1, TOPOLOGY, 1)
            .unwrap_err();
        assert_eq!(missing.len(), 1);
        assert_eq!(
            (missing[0].feature, missing[0].lacking),
            ("tsc_deadline_timer", "host")
        );
    }

    #[test]
    fn each_vcpu_shows_its_own_id() {
        let supported = Supported::new(&everything(), true);
        let profile = supported
            .profile(CpuModel::PortableV1, TOPOLOGY, 2_000_000)
            .unwrap();
        let cpuid = entries(&profile, 1).unwrap();
        for entry in cpuid.as_slice() {
            match entry.function {
                1 => assert_eq!(entry.ebx >> 24, 1),
                0xB => assert_eq!((entry.edx, entry.ecx & 0xFF), (1, entry.index)),
                _ => {}
            }
        }
    }
}
