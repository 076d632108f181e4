//! Instructions on the vector state as a whole: saving, restoring, clearing.

use iced_x86::{Code, Instruction};

use super::Unit;
use crate::cpu::Cpu;
use crate::fault::Exec;
use crate::op::{Flow, Op};
use crate::vector::{legacy, xsave};

/// Lowers them.
pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    use xsave::{COMPACT, LONG, OPTIMISED, SUPERVISOR};
    let (run, aux): (crate::op::Handler, u8) = match insn.code() {
        Code::Fxsave_m512byte => (legacy::fxsave, 0),
        Code::Fxsave64_m512byte => (legacy::fxsave, 1),
        Code::Fxrstor_m512byte => (legacy::fxrstor, 0),
        Code::Fxrstor64_m512byte => (legacy::fxrstor, 1),
        Code::Xsave_mem => (xsave::save, 0),
        Code::Xsave64_mem => (xsave::save, LONG),
        Code::Xsaveopt_mem => (xsave::save, OPTIMISED),
        Code::Xsaveopt64_mem => (xsave::save, OPTIMISED | LONG),
        Code::Xsavec_mem => (xsave::save, COMPACT),
        Code::Xsavec64_mem => (xsave::save, COMPACT | LONG),
        Code::Xsaves_mem => (xsave::save, COMPACT | SUPERVISOR),
        Code::Xsaves64_mem => (xsave::save, COMPACT | SUPERVISOR | LONG),
        Code::Xrstor_mem => (xsave::restore, 0),
        Code::Xrstor64_mem => (xsave::restore, LONG),
        Code::Xrstors_mem => (xsave::restore, SUPERVISOR),
        Code::Xrstors64_mem => (xsave::restore, SUPERVISOR | LONG),
        Code::Ldmxcsr_m32 => (legacy::ldmxcsr, 0),
        Code::VEX_Vldmxcsr_m32 => (legacy::ldmxcsr, 1),
        Code::Stmxcsr_m32 => (legacy::stmxcsr, 0),
        Code::VEX_Vstmxcsr_m32 => (legacy::stmxcsr, 1),
        Code::Fninit => (legacy::fninit, 0),
        Code::Wait => (legacy::fwait, 0),
        Code::Fnstenv_m14byte => (legacy::fnstenv, 0),
        Code::Fnstenv_m28byte => (legacy::fnstenv, 1),
        Code::Fldenv_m14byte => (legacy::fldenv, 0),
        Code::Fldenv_m28byte => (legacy::fldenv, 1),
        Code::Fnsave_m94byte => (legacy::fnsave, 0),
        Code::Fnsave_m108byte => (legacy::fnsave, 1),
        Code::Frstor_m94byte => (legacy::frstor, 0),
        Code::Frstor_m108byte => (legacy::frstor, 1),
        Code::VEX_Vzeroupper => (zero_upper, 0),
        Code::VEX_Vzeroall => (zero_all, 0),
        _ => return false,
    };
    op.run = run;
    op.aux = aux;
    true
}

fn zero_upper(cpu: &mut Cpu, _op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let count = legacy::registers(cpu);
    for n in 0..count {
        cpu.vector.clear_upper(n);
    }
    Ok(Flow::Next)
}

fn zero_all(cpu: &mut Cpu, _op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::Avx)?;
    let count = legacy::registers(cpu);
    cpu.vector.ymm[..count].fill([0; 32]);
    Ok(Flow::Next)
}
