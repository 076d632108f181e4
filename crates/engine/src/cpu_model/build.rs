//! From a model to CPUID leaves.
//!
//! # Identity
//! All models are Intel processors of one family, whatever the host is, so
//! that a guest sees the same system calls (SYSCALL in 64-bit mode only,
//! SYSENTER everywhere) wherever it runs:
//!
//! * `portable-v1` has no `*_NO` bit, so that guests apply every mitigation
//!   that needs no help of the processor's (PTI, retpolines). Of the two
//!   vendors, only Intel's makes a guest guard against Meltdown and its
//!   relatives. SPEC_CTRL and MD_CLEAR are not in it, because not all hosts
//!   have them: Linux says in its log what stays open between its processes.
//!   It has 39 physical address bits wherever it runs. No PCID, since nested KVM refuses CR4.PCIDE where the outer processor
//!   lacks it; nothing that QEMU's TCG lacks as an EPYC.
//! * `software-fast` says in IA32_ARCH_CAPABILITIES that it needs none of
//!   them, which is true where every guest access is checked in software. An
//!   AMD identity could do this with AutoIBRS and scattered `*_NO` bits, but
//!   Intel's register says all of it in one place, and Linux 6.1 then leaves
//!   out PTI, retpolines, return thunks, the BHI loop and buffer clearing
//!   (`arch/x86/kernel/cpu/common.c`, `cpu_set_bug_bits`). What remains is
//!   RSB filling on context switches and an LFENCE beside SWAPGS.

use crate::cpu_model::features::{ALL, Feature, Features, PLACES, Register, feature as f};
use crate::cpu_model::host::HostFeatures;
use crate::cpu_model::{CpuModel, CpuProfile, CpuidLeaf, Missing, Topology};

/// What an engine can do for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOffer {
    /// The engine's name.
    pub name: &'static str,
    /// What it provides by itself, whatever the host has.
    pub emulated: Features,
    /// What it can provide where the host has it.
    pub passed: Features,
    /// Models that it refuses, because they would not be safe on it.
    pub refused: &'static [CpuModel],
    /// XCR0 bits it can provide where the host has them.
    pub xcr0: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    /// APIC timer input frequency in kHz, for the hypervisor's timing leaf.
    pub apic_khz: u32,
    /// Guest-physical address bits.
    pub physical_bits: u8,
}

/// What every model has: x86-64-v3, and what kernels need beside it.
const BASE: &[Feature] = &[
    f::SSE3,
    f::PCLMULQDQ,
    f::SSSE3,
    f::FMA,
    f::CX16,
    f::SSE4_1,
    f::SSE4_2,
    f::X2APIC,
    f::MOVBE,
    f::POPCNT,
    f::TSC_DEADLINE,
    f::AES,
    f::XSAVE,
    f::AVX,
    f::F16C,
    f::RDRAND,
    f::HYPERVISOR,
    f::FPU,
    f::DE,
    f::PSE,
    f::TSC,
    f::MSR,
    f::PAE,
    f::MCE,
    f::CX8,
    f::APIC,
    f::SEP,
    f::MTRR,
    f::PGE,
    f::MCA,
    f::CMOV,
    f::PAT,
    f::PSE36,
    f::CLFLUSH,
    f::MMX,
    f::FXSR,
    f::SSE,
    f::SSE2,
    f::FSGSBASE,
    f::TSC_ADJUST,
    f::BMI1,
    f::AVX2,
    f::SMEP,
    f::BMI2,
    f::ADX,
    f::SMAP,
    f::XSAVEOPT,
    f::XGETBV1,
    f::LAHF_LM,
    f::ABM,
    f::SYSCALL,
    f::NX,
    f::PDPE1GB,
    f::RDTSCP,
    f::LM,
    f::KVM_CLOCK_OLD,
    f::KVM_NOP_IO_DELAY,
    f::KVM_CLOCK,
    f::KVM_PV_EOI,
    f::KVM_CLOCK_STABLE,
    f::ARAT,
];

/// What `software-fast` promises beyond [`BASE`].
const FAST: &[Feature] = &[
    f::PCID,
    f::INVPCID,
    f::ERMS,
    f::FSRM,
    f::UMIP,
    f::RDPID,
    f::PREFETCHW,
    f::SPEC_CTRL,
    f::ARCH_CAPABILITIES,
    f::INVARIANT_TSC,
];

/// Not for `host`: mitigations are what the engine passes on, not promises.
const NOT_FOR_HOST: &[Feature] = &[f::SPEC_CTRL, f::ARCH_CAPABILITIES];

/// IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2): RDCL_NO, IBRS_ALL,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const NEEDS_NO_MITIGATION: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    // ITS_NO: Linux assumes the worst of a virtual processor without it.
    | 1 << 62;

/// Family 6, model 85, stepping 4: a server processor of the generation that
/// x86-64-v3 and the mitigations of `portable-v1` belong to.
const SIGNATURE_PORTABLE: u32 = 0x0005_0654;
/// Family 6, model 143, stepping 8: of a generation that Linux has no
/// built-in list of flaws for beyond what the capabilities deny.
const SIGNATURE_FAST: u32 = 0x0008_06F8;

/// x87, SSE, AVX.
const XCR0_AVX: u64 = 0b111;
/// Offset and size of the AVX component in an XSAVE area (SDM vol. 1, 13.5.3).
const AVX_OFFSET: u32 = 576;
const AVX_SIZE: u32 = 256;

/// Highest leaves.
const LAST_BASIC: u32 = 0x16;
const LAST_EXTENDED: u32 = 0x8000_0008;
const LAST_HYPERVISOR: u32 = 0x4000_0010;

/// Guest-physical address bits of `portable-v1`: what the smallest processors
/// of its level have, so that a machine's address space fits everywhere.
const PORTABLE_PHYSICAL_BITS: u8 = 39;

/// Linear address bits: four levels of page tables.
const LINEAR_BITS: u32 = 48;

/// Makes `model` concrete for this host and engine, or says all that is
/// missing.
pub fn build(
    model: CpuModel,
    topology: Topology,
    host: &HostFeatures,
    offer: &EngineOffer,
) -> Result<CpuProfile, Vec<Missing>> {
    if offer.refused.contains(&model) {
        return Err(vec![Missing {
            feature: match model {
                CpuModel::SoftwareFast => "freedom from mitigations",
                _ => "this model",
            },
            lacking: offer.name,
        }]);
    }
    let available = offer
        .emulated
        .union(offer.passed.intersection(host.features));
    let mut wanted = Features::of(BASE);
    if model == CpuModel::SoftwareFast {
        wanted = wanted.union(Features::of(FAST));
    }
    let mut missing: Vec<Missing> = wanted
        .iter()
        .filter(|feature| !available.has(*feature))
        .map(|feature| Missing {
            feature: feature.name,
            lacking: if offer.passed.has(feature) {
                "host"
            } else {
                offer.name
            },
        })
        .collect();
    if host.xcr0 & XCR0_AVX != XCR0_AVX || offer.xcr0 & XCR0_AVX != XCR0_AVX {
        missing.push(Missing {
            feature: "avx state in xcr0",
            lacking: if host.xcr0 & XCR0_AVX != XCR0_AVX {
                "host"
            } else {
                offer.name
            },
        });
    }
    let physical_bits = match model {
        CpuModel::PortableV1 => PORTABLE_PHYSICAL_BITS,
        CpuModel::Host | CpuModel::SoftwareFast => offer.physical_bits,
    };
    if physical_bits > offer.physical_bits {
        missing.push(Missing {
            feature: "39 physical address bits",
            lacking: offer.name,
        });
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    // Models that do not move take whatever else there is.
    let features = match model {
        CpuModel::PortableV1 => wanted,
        CpuModel::SoftwareFast => wanted.union(available),
        CpuModel::Host => {
            let mut all = available;
            for feature in NOT_FOR_HOST {
                all.remove(*feature);
            }
            all
        }
    };
    let fast = model == CpuModel::SoftwareFast;
    Ok(CpuProfile {
        model,
        leaves: leaves(model, topology, &features, offer, physical_bits),
        xcr0: XCR0_AVX,
        arch_capabilities: if fast { NEEDS_NO_MITIGATION } else { 0 },
        tsc_khz: offer.tsc_khz,
        physical_bits,
    })
}

fn ascii(text: &[u8]) -> [u32; 3] {
    let mut padded = [0; 12];
    for (to, from) in padded.iter_mut().zip(text) {
        *to = *from;
    }
    let mut words = [0; 3];
    for (word, chunk) in words.iter_mut().zip(padded.chunks_exact(4)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u32::from(*byte));
    }
    words
}

/// A leaf without sub-leaves.
fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index: None,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// A sub-leaf.
fn sub(function: u32, index: u32, values: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        index: Some(index),
        ..leaf(function, values)
    }
}

/// Cache of leaf 4: type (1 data, 2 instruction, 3 unified), level, KiB, ways;
/// lines of 64 bytes, `sharing` logical processors.
fn cache(index: u32, [kind, level, kib, ways]: [u32; 4], sharing: u32, cores: u32) -> CpuidLeaf {
    let sets = kib * 1024 / 64 / ways;
    // Self-initialising; cores in the package, less one, in bits 31:26.
    let eax =
        kind | level << 5 | 1 << 8 | (sharing.min(4096) - 1) << 14 | (cores.min(64) - 1) << 26;
    let ebx = 63 | (ways - 1) << 22;
    sub(4, index, [eax, ebx, sets - 1, 0])
}

/// Bits that hold a number below `count`.
fn id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

fn leaves(
    model: CpuModel,
    topology: Topology,
    features: &Features,
    offer: &EngineOffer,
    physical_bits: u8,
) -> Vec<CpuidLeaf> {
    let vcpus = topology.vcpus.max(1);
    let id_space = 1 << id_bits(vcpus);
    let [v0, v1, v2] = ascii(b"GenuineIntel");
    let [k0, k1, k2] = ascii(b"KVMKVMKVM");
    let signature = match model {
        CpuModel::PortableV1 => SIGNATURE_PORTABLE,
        CpuModel::Host | CpuModel::SoftwareFast => SIGNATURE_FAST,
    };
    let mhz = offer.tsc_khz / 1000;
    // HTT: leaf 1 tells how many ids the package has.
    let several = if vcpus > 1 { 1 << 28 } else { 0 };
    let mut list = vec![
        leaf(0, [LAST_BASIC, v0, v2, v1]),
        // CLFLUSH line of 8 * 8 bytes; ids in the package.
        leaf(1, [signature, 8 << 8 | id_space.min(255) << 16, 0, several]),
        // Leaf 4 describes the caches (descriptor 0xFF).
        leaf(2, [0x0000_FF01, 0, 0, 0]),
        cache(0, [1, 1, 32, 8], 1, id_space),
        cache(1, [2, 1, 32, 8], 1, id_space),
        cache(2, [3, 2, 1024, 16], 1, id_space),
        cache(3, [3, 3, 32 * 1024, 16], id_space, id_space),
        leaf(6, [0; 4]),
        sub(7, 0, [1, 0, 0, 0]),
        sub(7, 1, [0; 4]),
        // Threads of a core, cores of the package; EDX is the vCPU's id.
        sub(0xB, 0, [0, 1, 1 << 8, 0]),
        sub(0xB, 1, [id_bits(vcpus), vcpus, 1 | 2 << 8, 0]),
        sub(
            0xD,
            0,
            [
                XCR0_AVX as u32,
                AVX_OFFSET + AVX_SIZE,
                AVX_OFFSET + AVX_SIZE,
                0,
            ],
        ),
        sub(0xD, 1, [0; 4]),
        sub(0xD, 2, [AVX_SIZE, AVX_OFFSET, 0, 0]),
        leaf(0x16, [mhz, mhz, 100, 0]),
        leaf(0x4000_0000, [LAST_HYPERVISOR, k0, k1, k2]),
        leaf(0x4000_0001, [0; 4]),
        leaf(0x4000_0010, [offer.tsc_khz, offer.apic_khz, 0, 0]),
        leaf(0x8000_0000, [LAST_EXTENDED, 0, 0, 0]),
        leaf(0x8000_0001, [0; 4]),
    ];
    list.extend(brand(model));
    list.extend([
        // Level 2: 64-byte lines, 16-way (code 8), 1024 KiB.
        leaf(0x8000_0006, [0, 0, 64 | 8 << 12 | 1024 << 16, 0]),
        leaf(0x8000_0007, [0; 4]),
        leaf(
            0x8000_0008,
            [u32::from(physical_bits) | LINEAR_BITS << 8, 0, 0, 0],
        ),
    ]);
    for (word, function, index, register) in PLACES {
        let bits = known(features, word);
        let found = list
            .iter_mut()
            .find(|leaf| leaf.function == function && leaf.index.unwrap_or(0) == index);
        if let Some(leaf) = found {
            match register {
                Register::Eax => leaf.eax |= bits,
                Register::Ebx => leaf.ebx |= bits,
                Register::Ecx => leaf.ecx |= bits,
                Register::Edx => leaf.edx |= bits,
            }
        }
    }
    list
}

/// Bits of one register, of the features that have a name here: nothing
/// else that a host happens to have gets through.
fn known(features: &Features, word: crate::cpu_model::features::Word) -> u32 {
    ALL.iter()
        .filter(|feature| feature.word == word && features.has(**feature))
        .fold(0, |all, feature| all | 1 << feature.bit)
}

/// The three leaves of the processor's name.
fn brand(model: CpuModel) -> Vec<CpuidLeaf> {
    let name = match model {
        CpuModel::Host => "Croft processor (host)",
        CpuModel::PortableV1 => "Croft processor (portable-v1)",
        CpuModel::SoftwareFast => "Croft processor (software-fast)",
    };
    let mut bytes = [0; 48];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
        .chunks_exact(16)
        .zip(0x8000_0002..)
        .map(|(chunk, function)| {
            let word = |n: usize| {
                chunk[n..n + 4]
                    .iter()
                    .rev()
                    .fold(0, |all, byte| all << 8 | u32::from(*byte))
            };
            leaf(function, [word(0), word(4), word(8), word(12)])
        })
        .collect()
}
