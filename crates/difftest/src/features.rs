//! Which instructions a CPU model announces: CPUID bits as the manuals have
//! them, independent of the engine's own table.

use croft_engine::CpuProfile;
use iced_x86::{Code, CpuidFeature};

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What every x86-64 processor has, or executes as a NOP where it does not
/// know it.
const ALWAYS: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL286_ONLY,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL386_ONLY,
    CpuidFeature::INTEL386_A0_ONLY,
    CpuidFeature::INTEL486,
    CpuidFeature::INTEL486_A_ONLY,
    CpuidFeature::X64,
    CpuidFeature::CPUID,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::RDPMC,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::PREFETCHW,
];

/// Leaf 1.
const BASIC: &[(CpuidFeature, Register, u32)] = &[
    (CpuidFeature::TSC, Register::Edx, 4),
    (CpuidFeature::MSR, Register::Edx, 5),
    (CpuidFeature::CX8, Register::Edx, 8),
    (CpuidFeature::SEP, Register::Edx, 11),
    (CpuidFeature::CMOV, Register::Edx, 15),
    (CpuidFeature::CLFSH, Register::Edx, 19),
    (CpuidFeature::MMX, Register::Edx, 23),
    (CpuidFeature::FXSR, Register::Edx, 24),
    (CpuidFeature::SSE, Register::Edx, 25),
    (CpuidFeature::SSE2, Register::Edx, 26),
    (CpuidFeature::SSE3, Register::Ecx, 0),
    (CpuidFeature::PCLMULQDQ, Register::Ecx, 1),
    (CpuidFeature::MONITOR, Register::Ecx, 3),
    (CpuidFeature::VMX, Register::Ecx, 5),
    (CpuidFeature::SSSE3, Register::Ecx, 9),
    (CpuidFeature::FMA, Register::Ecx, 12),
    (CpuidFeature::CMPXCHG16B, Register::Ecx, 13),
    (CpuidFeature::SSE4_1, Register::Ecx, 19),
    (CpuidFeature::SSE4_2, Register::Ecx, 20),
    (CpuidFeature::MOVBE, Register::Ecx, 22),
    (CpuidFeature::POPCNT, Register::Ecx, 23),
    (CpuidFeature::AES, Register::Ecx, 25),
    (CpuidFeature::XSAVE, Register::Ecx, 26),
    (CpuidFeature::AVX, Register::Ecx, 28),
    (CpuidFeature::F16C, Register::Ecx, 29),
    (CpuidFeature::RDRAND, Register::Ecx, 30),
];

/// Leaf 7, index 0.
const STRUCTURED: &[(CpuidFeature, Register, u32)] = &[
    (CpuidFeature::FSGSBASE, Register::Ebx, 0),
    (CpuidFeature::BMI1, Register::Ebx, 3),
    (CpuidFeature::AVX2, Register::Ebx, 5),
    (CpuidFeature::BMI2, Register::Ebx, 8),
    (CpuidFeature::INVPCID, Register::Ebx, 10),
    (CpuidFeature::RTM, Register::Ebx, 11),
    (CpuidFeature::AVX512F, Register::Ebx, 16),
    (CpuidFeature::RDSEED, Register::Ebx, 18),
    (CpuidFeature::ADX, Register::Ebx, 19),
    (CpuidFeature::SMAP, Register::Ebx, 20),
    (CpuidFeature::CLFLUSHOPT, Register::Ebx, 23),
    (CpuidFeature::CLWB, Register::Ebx, 24),
    (CpuidFeature::SHA, Register::Ebx, 29),
    (CpuidFeature::GFNI, Register::Ecx, 8),
    (CpuidFeature::VAES, Register::Ecx, 9),
    (CpuidFeature::VPCLMULQDQ, Register::Ecx, 10),
    (CpuidFeature::RDPID, Register::Ecx, 22),
    (CpuidFeature::CLDEMOTE, Register::Ecx, 25),
    (CpuidFeature::MOVDIRI, Register::Ecx, 27),
    (CpuidFeature::MOVDIR64B, Register::Ecx, 28),
    (CpuidFeature::SERIALIZE, Register::Edx, 14),
];

/// Leaf 7, index 1.
const STRUCTURED_1: &[(CpuidFeature, Register, u32)] =
    &[(CpuidFeature::AVX_VNNI, Register::Eax, 4)];

/// Leaf 0xD, index 1.
const XSAVE: &[(CpuidFeature, Register, u32)] = &[
    (CpuidFeature::XSAVEOPT, Register::Eax, 0),
    (CpuidFeature::XSAVEC, Register::Eax, 1),
    (CpuidFeature::XSAVES, Register::Eax, 3),
];

/// Leaf 0x8000_0001.
const EXTENDED: &[(CpuidFeature, Register, u32)] = &[
    (CpuidFeature::SVM, Register::Ecx, 2),
    (CpuidFeature::LZCNT, Register::Ecx, 5),
    (CpuidFeature::SSE4A, Register::Ecx, 6),
    (CpuidFeature::XOP, Register::Ecx, 11),
    (CpuidFeature::FMA4, Register::Ecx, 16),
    (CpuidFeature::TBM, Register::Ecx, 21),
    (CpuidFeature::SYSCALL, Register::Edx, 11),
    (CpuidFeature::RDTSCP, Register::Edx, 27),
    (CpuidFeature::D3NOW, Register::Edx, 31),
];

/// Features that `profile` announces.
pub fn announced(profile: &CpuProfile) -> Vec<CpuidFeature> {
    let mut features = ALWAYS.to_vec();
    let leaves = [
        (1, 0, BASIC),
        (7, 0, STRUCTURED),
        (7, 1, STRUCTURED_1),
        (0xD, 1, XSAVE),
        (0x8000_0001, 0, EXTENDED),
    ];
    for (function, index, bits) in leaves {
        let Some(leaf) = profile.leaf(function, index) else {
            continue;
        };
        for (feature, register, bit) in bits {
            let value = match register {
                Register::Eax => leaf.eax,
                Register::Ebx => leaf.ebx,
                Register::Ecx => leaf.ecx,
                Register::Edx => leaf.edx,
            };
            if value >> bit & 1 != 0 {
                features.push(*feature);
            }
        }
    }
    features
}

/// Every instruction form of `features`.
pub fn forms(features: &[CpuidFeature]) -> Vec<Code> {
    Code::values()
        .filter(|code| *code != Code::INVALID && code.op_code().is_instruction())
        .filter(|code| !code.op_code().instruction_string().is_empty())
        .filter(|code| {
            code.cpuid_features()
                .iter()
                .all(|feature| features.contains(feature))
        })
        .collect()
}
