//! Features by name, and sets of them in the layout of CPUID.

use std::arch::x86_64::CpuidResult;

/// A CPUID register that holds feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Word {
    BasicEcx = 0,
    BasicEdx = 1,
    SevenEbx = 2,
    SevenEcx = 3,
    SevenEdx = 4,
    SevenOneEax = 5,
    XsaveEax = 6,
    ExtendedEcx = 7,
    ExtendedEdx = 8,
    PowerEdx = 9,
    KvmEax = 10,
    ThermalEax = 11,
}

/// Number of [`Word`]s.
pub(super) const WORDS: usize = 12;

/// Registers of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where each [`Word`] lies: word, leaf, sub-leaf, register.
pub(super) const PLACES: [(Word, u32, u32, Register); WORDS] = [
    (Word::BasicEcx, 1, 0, Register::Ecx),
    (Word::BasicEdx, 1, 0, Register::Edx),
    (Word::SevenEbx, 7, 0, Register::Ebx),
    (Word::SevenEcx, 7, 0, Register::Ecx),
    (Word::SevenEdx, 7, 0, Register::Edx),
    (Word::SevenOneEax, 7, 1, Register::Eax),
    (Word::XsaveEax, 0xD, 1, Register::Eax),
    (Word::ExtendedEcx, 0x8000_0001, 0, Register::Ecx),
    (Word::ExtendedEdx, 0x8000_0001, 0, Register::Edx),
    (Word::PowerEdx, 0x8000_0007, 0, Register::Edx),
    (Word::KvmEax, 0x4000_0001, 0, Register::Eax),
    (Word::ThermalEax, 6, 0, Register::Eax),
];

/// One feature: an index into the table of known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name as in `/proc/cpuinfo`.
    pub name: &'static str,
    /// Register it stands in.
    pub word: Word,
    /// Bit, 0–31.
    pub bit: u8,
}

macro_rules! features {
    ($($ident:ident $name:literal $word:ident $bit:literal;)*) => {
        /// The features that models are made of.
        #[allow(missing_docs)]
        pub mod feature {
            use super::{Feature, Word};
            $(pub const $ident: Feature = Feature { name: $name, word: Word::$word, bit: $bit };)*
        }
        /// All of [`feature`].
        pub const ALL: &[Feature] = &[$(feature::$ident),*];
    };
}

features! {
    SSE3 "pni" BasicEcx 0;
    PCLMULQDQ "pclmulqdq" BasicEcx 1;
    SSSE3 "ssse3" BasicEcx 9;
    FMA "fma" BasicEcx 12;
    CX16 "cx16" BasicEcx 13;
    PCID "pcid" BasicEcx 17;
    SSE4_1 "sse4_1" BasicEcx 19;
    SSE4_2 "sse4_2" BasicEcx 20;
    X2APIC "x2apic" BasicEcx 21;
    MOVBE "movbe" BasicEcx 22;
    POPCNT "popcnt" BasicEcx 23;
    TSC_DEADLINE "tsc_deadline_timer" BasicEcx 24;
    AES "aes" BasicEcx 25;
    XSAVE "xsave" BasicEcx 26;
    AVX "avx" BasicEcx 28;
    F16C "f16c" BasicEcx 29;
    RDRAND "rdrand" BasicEcx 30;
    HYPERVISOR "hypervisor" BasicEcx 31;
    FPU "fpu" BasicEdx 0;
    DE "de" BasicEdx 2;
    PSE "pse" BasicEdx 3;
    TSC "tsc" BasicEdx 4;
    MSR "msr" BasicEdx 5;
    PAE "pae" BasicEdx 6;
    MCE "mce" BasicEdx 7;
    CX8 "cx8" BasicEdx 8;
    APIC "apic" BasicEdx 9;
    SEP "sep" BasicEdx 11;
    MTRR "mtrr" BasicEdx 12;
    PGE "pge" BasicEdx 13;
    MCA "mca" BasicEdx 14;
    CMOV "cmov" BasicEdx 15;
    PAT "pat" BasicEdx 16;
    PSE36 "pse36" BasicEdx 17;
    CLFLUSH "clflush" BasicEdx 19;
    MMX "mmx" BasicEdx 23;
    FXSR "fxsr" BasicEdx 24;
    SSE "sse" BasicEdx 25;
    SSE2 "sse2" BasicEdx 26;
    FSGSBASE "fsgsbase" SevenEbx 0;
    TSC_ADJUST "tsc_adjust" SevenEbx 1;
    BMI1 "bmi1" SevenEbx 3;
    AVX2 "avx2" SevenEbx 5;
    SMEP "smep" SevenEbx 7;
    BMI2 "bmi2" SevenEbx 8;
    ERMS "erms" SevenEbx 9;
    INVPCID "invpcid" SevenEbx 10;
    RDSEED "rdseed" SevenEbx 18;
    ADX "adx" SevenEbx 19;
    SMAP "smap" SevenEbx 20;
    CLFLUSHOPT "clflushopt" SevenEbx 23;
    CLWB "clwb" SevenEbx 24;
    SHA "sha_ni" SevenEbx 29;
    UMIP "umip" SevenEcx 2;
    GFNI "gfni" SevenEcx 8;
    VAES "vaes" SevenEcx 9;
    VPCLMULQDQ "vpclmulqdq" SevenEcx 10;
    RDPID "rdpid" SevenEcx 22;
    FSRM "fsrm" SevenEdx 4;
    SERIALIZE "serialize" SevenEdx 14;
    SPEC_CTRL "ibrs" SevenEdx 26;
    ARCH_CAPABILITIES "arch_capabilities" SevenEdx 29;
    AVX_VNNI "avx_vnni" SevenOneEax 4;
    XSAVEOPT "xsaveopt" XsaveEax 0;
    XSAVEC "xsavec" XsaveEax 1;
    XGETBV1 "xgetbv1" XsaveEax 2;
    LAHF_LM "lahf_lm" ExtendedEcx 0;
    ABM "abm" ExtendedEcx 5;
    PREFETCHW "3dnowprefetch" ExtendedEcx 8;
    SYSCALL "syscall" ExtendedEdx 11;
    NX "nx" ExtendedEdx 20;
    PDPE1GB "pdpe1gb" ExtendedEdx 26;
    RDTSCP "rdtscp" ExtendedEdx 27;
    LM "lm" ExtendedEdx 29;
    INVARIANT_TSC "nonstop_tsc" PowerEdx 8;
    KVM_CLOCK_OLD "kvmclock_old" KvmEax 0;
    KVM_NOP_IO_DELAY "kvm_nop_io_delay" KvmEax 1;
    KVM_CLOCK "kvmclock" KvmEax 3;
    KVM_PV_EOI "kvm_pv_eoi" KvmEax 6;
    KVM_CLOCK_STABLE "kvmclock_stable" KvmEax 24;
    ARAT "arat" ThermalEax 2;
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    words: [u32; WORDS],
}

impl Features {
    /// The set of `list`.
    pub fn of(list: &[Feature]) -> Self {
        let mut set = Features::default();
        for feature in list {
            set.insert(*feature);
        }
        set
    }

    /// What CPUID leaves say; `leaf` answers for function and index, `None`
    /// where there is no such leaf.
    pub fn read(leaf: impl Fn(u32, u32) -> Option<CpuidResult>) -> Self {
        let mut set = Features::default();
        for (word, function, index, register) in PLACES {
            let Some(leaf) = leaf(function, index) else {
                continue;
            };
            let value = match register {
                Register::Eax => leaf.eax,
                Register::Ebx => leaf.ebx,
                Register::Ecx => leaf.ecx,
                Register::Edx => leaf.edx,
            };
            set.set_word(word, value);
        }
        set
    }

    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        self.words[feature.word as usize] |= 1 << feature.bit;
    }

    /// Takes one out.
    pub fn remove(&mut self, feature: Feature) {
        self.words[feature.word as usize] &= !(1 << feature.bit);
    }

    /// Whether it is in the set.
    pub fn has(&self, feature: Feature) -> bool {
        self.word(feature.word) >> feature.bit & 1 != 0
    }

    /// The register as CPUID shows the set.
    pub fn word(&self, word: Word) -> u32 {
        self.words[word as usize]
    }

    /// What either has.
    pub fn union(mut self, other: Features) -> Self {
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
        self
    }

    /// What both have.
    pub fn intersection(mut self, other: Features) -> Self {
        for (word, also) in self.words.iter_mut().zip(other.words) {
            *word &= also;
        }
        self
    }

    /// The known features that are in the set.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        ALL.iter().copied().filter(|feature| self.has(*feature))
    }

    pub(super) fn set_word(&mut self, word: Word, value: u32) {
        self.words[word as usize] = value;
    }
}
