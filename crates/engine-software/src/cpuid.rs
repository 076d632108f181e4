//! CPUID, and the set of features that decoding and MSRs ask.

use croft_engine::cpu_model::{EngineOffer, Feature, Features, HostFeatures, build, feature as f};
use croft_engine::{CpuModel, CpuProfile, CpuidLeaf, Missing, Topology};
use croft_irqchip::lapic::TIMER_HZ;
use iced_x86::{Code, CpuidFeature, Instruction};

use crate::cpu::{Cpu, cr4, gpr};
use crate::partition::PHYSICAL_BITS;
use crate::shared::lock;
use crate::vector::{AVX_OFFSET, AVX_SIZE, component};

/// IA32_APIC_BASE: globally enabled.
const APIC_ENABLED: u64 = 1 << 11;

/// What the interpreter does by itself.
const EMULATED: &[Feature] = &[
    f::PCID,
    f::X2APIC,
    f::TSC_DEADLINE,
    f::XSAVE,
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
    f::SMEP,
    f::ERMS,
    f::INVPCID,
    f::RDSEED,
    f::SMAP,
    f::CLFLUSHOPT,
    f::CLWB,
    f::UMIP,
    f::RDPID,
    f::FSRM,
    f::SERIALIZE,
    f::SPEC_CTRL,
    f::ARCH_CAPABILITIES,
    f::XSAVEOPT,
    f::XSAVEC,
    f::XGETBV1,
    f::LAHF_LM,
    f::PREFETCHW,
    f::SYSCALL,
    f::NX,
    f::PDPE1GB,
    f::RDTSCP,
    f::LM,
    f::INVARIANT_TSC,
    f::KVM_CLOCK_OLD,
    f::KVM_NOP_IO_DELAY,
    f::KVM_CLOCK,
    f::KVM_PV_EOI,
    f::KVM_CLOCK_STABLE,
    f::ARAT,
];

/// What the host's processor computes for the guest.
const PASSED: &[Feature] = &[
    f::SSE3,
    f::PCLMULQDQ,
    f::SSSE3,
    f::FMA,
    f::CX16,
    f::SSE4_1,
    f::SSE4_2,
    f::MOVBE,
    f::POPCNT,
    f::AES,
    f::AVX,
    f::F16C,
    f::BMI1,
    f::AVX2,
    f::BMI2,
    f::ADX,
    f::SHA,
    f::ABM,
];

/// The profile with which this engine honours `model`, or what is missing.
pub fn profile(model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>> {
    let offer = EngineOffer {
        name: "software",
        emulated: Features::of(EMULATED),
        passed: Features::of(PASSED),
        refused: &[],
        xcr0: component::ALL,
        tsc_khz: crate::clock::host_tsc_khz(),
        apic_khz: (TIMER_HZ / 1000) as u32,
        physical_bits: PHYSICAL_BITS,
    };
    build(model, topology, &HostFeatures::detect(), &offer)
}

/// What the profile announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet {
    /// A bit for each [`CpuidFeature`].
    instructions: [u64; 4],
    /// CR4 bits that may be set.
    pub cr4: u64,
    /// EFER.NXE.
    pub nx: bool,
    /// SMAP, STAC and CLAC.
    pub smap: bool,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: bool,
    /// IA32_SPEC_CTRL and IA32_PRED_CMD.
    pub spec_ctrl: bool,
    /// IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: bool,
    /// Memory type range registers.
    pub mtrr: bool,
    /// Machine check banks (none).
    pub mca: bool,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: bool,
    /// x2APIC mode.
    pub x2apic: bool,
    /// IA32_TSC_AUX.
    pub rdtscp: bool,
    /// XGETBV with ECX = 1.
    pub xgetbv1: bool,
    /// KVM's hypervisor leaf is there.
    pub kvm: bool,
    /// KVM's clock.
    pub kvmclock: bool,
    /// KVM's paravirtual EOI.
    pub pv_eoi: bool,
    /// 1 GiB pages.
    pub huge_pages: bool,
}

/// Bits of the profile's leaves.
struct Bits<'a>(&'a CpuProfile);

impl Bits<'_> {
    fn leaf(&self, function: u32, index: u32) -> CpuidLeaf {
        self.0.leaf(function, index).copied().unwrap_or_default()
    }
}

fn bit(register: u32, bit: u32) -> bool {
    register >> bit & 1 != 0
}

impl FeatureSet {
    /// Everything that `profile` announces.
    pub fn from_profile(profile: &CpuProfile) -> Self {
        use CpuidFeature as F;
        let bits = Bits(profile);
        let basic = bits.leaf(1, 0);
        let seven = bits.leaf(7, 0);
        let seven_1 = bits.leaf(7, 1);
        let xsave = bits.leaf(0xD, 1);
        let extended = bits.leaf(0x8000_0001, 0);
        let kvm = bits.leaf(0x4000_0001, 0);
        let mut set = FeatureSet {
            cr4: cr4::TSD | cr4::PCE,
            nx: bit(extended.edx, 20),
            smap: bit(seven.ebx, 20),
            tsc_adjust: bit(seven.ebx, 1),
            spec_ctrl: bit(seven.edx, 26),
            arch_capabilities: bit(seven.edx, 29),
            mtrr: bit(basic.edx, 12),
            mca: bit(basic.edx, 14),
            tsc_deadline: bit(basic.ecx, 24),
            x2apic: bit(basic.ecx, 21),
            rdtscp: bit(extended.edx, 27),
            xgetbv1: bit(xsave.eax, 2),
            kvm: profile.leaf(0x4000_0001, 0).is_some(),
            kvmclock: bit(kvm.eax, 3),
            pv_eoi: bit(kvm.eax, 6),
            huge_pages: bit(extended.edx, 26),
            ..FeatureSet::default()
        };
        for (announced, cr4) in [
            (bit(basic.edx, 2), cr4::DE),
            (bit(basic.edx, 3), cr4::PSE),
            (bit(basic.edx, 6), cr4::PAE),
            (bit(basic.edx, 7), cr4::MCE),
            (bit(basic.edx, 13), cr4::PGE),
            (bit(basic.edx, 24), cr4::OSFXSR),
            (bit(basic.edx, 25), cr4::OSXMMEXCPT),
            (bit(basic.ecx, 17), cr4::PCIDE),
            (bit(basic.ecx, 26), cr4::OSXSAVE),
            (bit(seven.ecx, 2), cr4::UMIP),
            (bit(seven.ebx, 0), cr4::FSGSBASE),
            (bit(seven.ebx, 7), cr4::SMEP),
            (bit(seven.ebx, 20), cr4::SMAP),
        ] {
            set.cr4 |= if announced { cr4 } else { 0 };
        }
        // Part of every x86-64 processor, or executed as NOP by those that
        // do not know it: hints, ENDBR, prefetches.
        for feature in [
            F::INTEL8086,
            F::INTEL186,
            F::INTEL286,
            F::INTEL386,
            F::INTEL486,
            F::X64,
            F::CPUID,
            F::PAUSE,
            F::MULTIBYTENOP,
            F::CET_IBT,
            F::CLDEMOTE,
            F::PREFETCHW,
            F::PREFETCHWT1,
            F::PREFETCHITI,
            F::RDPMC,
            F::WBNOINVD,
            F::HLE_or_RTM,
            F::HLE,
        ] {
            set.add(feature);
        }
        for (announced, feature) in [
            (bit(basic.edx, 0), F::FPU),
            (bit(basic.edx, 0), F::FPU287),
            (bit(basic.edx, 0), F::FPU387),
            (bit(basic.edx, 4), F::TSC),
            (bit(basic.edx, 5), F::MSR),
            (bit(basic.edx, 8), F::CX8),
            (bit(basic.edx, 11), F::SEP),
            (bit(basic.edx, 15), F::CMOV),
            (bit(basic.edx, 19), F::CLFSH),
            (bit(basic.edx, 23), F::MMX),
            (bit(basic.edx, 24), F::FXSR),
            (bit(basic.edx, 25), F::SSE),
            (bit(basic.edx, 26), F::SSE2),
            (bit(basic.ecx, 0), F::SSE3),
            (bit(basic.ecx, 1), F::PCLMULQDQ),
            (bit(basic.ecx, 9), F::SSSE3),
            (bit(basic.ecx, 12), F::FMA),
            (bit(basic.ecx, 13), F::CMPXCHG16B),
            (bit(basic.ecx, 19), F::SSE4_1),
            (bit(basic.ecx, 20), F::SSE4_2),
            (bit(basic.ecx, 22), F::MOVBE),
            (bit(basic.ecx, 23), F::POPCNT),
            (bit(basic.ecx, 25), F::AES),
            (bit(basic.ecx, 26), F::XSAVE),
            (bit(basic.ecx, 28), F::AVX),
            (bit(basic.ecx, 29), F::F16C),
            (bit(basic.ecx, 30), F::RDRAND),
            (bit(seven.ebx, 0), F::FSGSBASE),
            (bit(seven.ebx, 3), F::BMI1),
            (bit(seven.ebx, 5), F::AVX2),
            (bit(seven.ebx, 8), F::BMI2),
            (bit(seven.ebx, 10), F::INVPCID),
            (bit(seven.ebx, 18), F::RDSEED),
            (bit(seven.ebx, 19), F::ADX),
            (bit(seven.ebx, 20), F::SMAP),
            (bit(seven.ebx, 23), F::CLFLUSHOPT),
            (bit(seven.ebx, 24), F::CLWB),
            (bit(seven.ebx, 29), F::SHA),
            (bit(seven.ecx, 8), F::GFNI),
            (bit(seven.ecx, 9), F::VAES),
            (bit(seven.ecx, 10), F::VPCLMULQDQ),
            (bit(seven.ecx, 22), F::RDPID),
            (bit(seven.ecx, 27), F::MOVDIRI),
            (bit(seven.ecx, 28), F::MOVDIR64B),
            (bit(seven.edx, 14), F::SERIALIZE),
            (bit(seven_1.eax, 4), F::AVX_VNNI),
            (bit(xsave.eax, 0), F::XSAVEOPT),
            (bit(xsave.eax, 1), F::XSAVEC),
            (bit(xsave.eax, 3), F::XSAVES),
            (bit(extended.ecx, 5), F::LZCNT),
            (bit(extended.edx, 11), F::SYSCALL),
            (bit(extended.edx, 27), F::RDTSCP),
        ] {
            if announced {
                set.add(feature);
            }
        }
        set
    }

    fn add(&mut self, feature: CpuidFeature) {
        let n = feature as usize;
        self.instructions[n / 64] |= 1 << (n % 64);
    }

    fn has(&self, feature: CpuidFeature) -> bool {
        let n = feature as usize;
        self.instructions[n / 64] >> (n % 64) & 1 != 0
    }

    /// Whether the processor executes `insn` rather than raise #UD.
    pub fn allows(&self, insn: &Instruction) -> bool {
        let code = insn.code();
        if is_spare_nop(code) {
            return true;
        }
        match code {
            // Hypercalls are answered where KVM's leaf invites them.
            Code::Vmcall | Code::Vmmcall => self.kvm,
            _ => insn.cpuid_features().iter().all(|f| self.has(*f)),
        }
    }
}

/// Instructions of extensions that are never announced here (MPX, shadow
/// stacks) and that processors without them execute as NOPs (opcodes 0F1A,
/// 0F1B, 0F1E /1).
pub fn is_spare_nop(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Bndmov_bnd_bndm64
            | Bndmov_bnd_bndm128
            | Bndmov_bndm64_bnd
            | Bndmov_bndm128_bnd
            | Bndcl_bnd_rm32
            | Bndcl_bnd_rm64
            | Bndcu_bnd_rm32
            | Bndcu_bnd_rm64
            | Bndcn_bnd_rm32
            | Bndcn_bnd_rm64
            | Bndldx_bnd_mib
            | Bndstx_mib_bnd
            | Bndmk_bnd_m32
            | Bndmk_bnd_m64
            | Rdsspd_r32
            | Rdsspq_r64
    )
}

impl Cpu {
    /// The leaf as this vCPU shows it now.
    pub fn cpuid_leaf(&self, function: u32, index: u32) -> CpuidLeaf {
        let profile = &self.shared.profile;
        // Beyond the highest leaf of its range, a processor answers with its
        // highest basic leaf (SDM vol. 2, CPUID).
        let base = match function >> 16 {
            0x4000 if self.shared.features.kvm => 0x4000_0000,
            0x8000 => 0x8000_0000,
            _ => 0,
        };
        let last = |base| profile.leaf(base, 0).map_or(0, |leaf| leaf.eax);
        let function = if function > last(base).max(base) {
            last(0)
        } else {
            function
        };
        let mut leaf = profile.leaf(function, index).copied().unwrap_or_default();
        match function {
            0x1 => {
                leaf.ebx = leaf.ebx & 0x00FF_FFFF | self.index << 24;
                if self.cr4 & cr4::OSXSAVE != 0 {
                    leaf.ecx |= 1 << 27;
                }
                if lock(&self.own.lapic).apic_base() & APIC_ENABLED == 0 {
                    leaf.edx &= !(1 << 9);
                }
            }
            0xB | 0x1F => {
                // The level's number is echoed, also for those not there.
                leaf.ecx = leaf.ecx & !0xFF | index & 0xFF;
                leaf.edx = self.index;
            }
            // Bytes that XSAVE needs for what XCR0 enables: in compacted
            // form (index 1) the same, as nothing lies between.
            0xD if index <= 1 && leaf != CpuidLeaf::default() => {
                let avx = self.xcr0 & component::AVX != 0;
                leaf.ebx = (AVX_OFFSET + if avx { AVX_SIZE } else { 0 }) as u32;
            }
            _ => {}
        }
        leaf
    }

    /// CPUID.
    pub(crate) fn cpuid(&mut self) {
        let leaf = self.cpuid_leaf(self.regs[gpr::RAX] as u32, self.regs[gpr::RCX] as u32);
        self.set_r32(gpr::RAX, leaf.eax);
        self.set_r32(gpr::RBX, leaf.ebx);
        self.set_r32(gpr::RCX, leaf.ecx);
        self.set_r32(gpr::RDX, leaf.edx);
    }
}
