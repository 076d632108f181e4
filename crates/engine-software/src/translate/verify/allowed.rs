//! Instructions that only compute.

use iced_x86::{CpuidFeature, Instruction, InstructionInfo, Mnemonic, OpKind, Register};

use super::Verdict;
use crate::translate::liveness;

/// Accepts an instruction that falls through, apart from its accesses to
/// memory.
pub fn check(insn: &Instruction, info: &InstructionInfo) -> Verdict {
    if !insn.cpuid_features().iter().all(|&f| is_computing(f)) || is_special(insn.mnemonic()) {
        return Err("an instruction that translated code never needs".to_owned());
    }
    if insn.is_privileged() || insn.is_save_restore_instruction() {
        return Err("a system instruction".to_owned());
    }
    if insn.is_stack_instruction() {
        return Err("an instruction that moves the stack pointer".to_owned());
    }
    if insn.rflags_modified() & !liveness::ALL != 0 {
        return Err("a change of flags that are not arithmetic".to_owned());
    }
    if insn.is_vsib() || insn.is_string_instruction() {
        return Err("an instruction with several accesses to memory".to_owned());
    }
    if insn.segment_prefix() == Register::FS || insn.segment_prefix() == Register::GS {
        return Err("a segment of the host's".to_owned());
    }
    for n in 0..insn.op_count() {
        let register = insn.op_register(n);
        if insn.op_kind(n) == OpKind::Register && !is_plain(register) {
            return Err("a register that is not the guest's".to_owned());
        }
    }
    // Registers that are used without being named.
    for used in info.used_registers() {
        let register = used.register();
        if register.is_st() || register.is_mm() || register.is_segment_register() {
            return Err("x87, MMX or segment registers".to_owned());
        }
    }
    Ok(())
}

/// General registers but the stack pointer, and vector registers.
fn is_plain(register: Register) -> bool {
    register.is_gpr() && register.full_register() != Register::RSP
        || register.is_xmm()
        || register.is_ymm()
}

fn is_computing(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::VAES
            | F::VPCLMULQDQ
            | F::GFNI
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::MOVBE
            | F::POPCNT
            | F::LZCNT
            | F::MULTIBYTENOP
    )
}

/// Instructions of the features above that do more than compute.
fn is_special(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Ldmxcsr | M::Vldmxcsr | M::Stmxcsr | M::Vstmxcsr | M::Fisttp | M::Mwait | M::Monitor
    )
}
