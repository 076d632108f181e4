//! Which part of the processor an instruction uses, and whether the guest's
//! control registers let it (SDM vol. 2A, 2.6: exception classes; vol. 3,
//! table 2-2 for x87 and MMX).

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpCodeTableKind};

use crate::cpu::{Cpu, cr0, cr4};
use crate::fault::{Exec, vector};
use crate::vector::component;

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General registers: always there.
    General,
    /// General registers with a VEX prefix: not in real mode.
    GeneralVex,
    /// x87, reporting pending exceptions first.
    X87,
    /// x87, not waiting for pending exceptions.
    X87NoWait,
    /// MMX registers.
    Mmx,
    /// XMM registers, legacy encoding.
    Sse,
    /// MMX and XMM registers.
    SseMmx,
    /// VEX encoding.
    Avx,
    /// FXSAVE, FXRSTOR.
    FxState,
    /// XSAVE family.
    Xsave,
}

impl Unit {
    /// What `insn` uses. `mmx`: it names an MMX register.
    pub fn of(insn: &Instruction, mmx: bool) -> Unit {
        let opcode = insn.op_code();
        // Told by the form: a conversion from memory names no XMM register.
        let vector = opcode.op_kinds().iter().any(|&kind| {
            use OpCodeOperandKind as K;
            matches!(
                kind,
                K::xmm_reg
                    | K::xmm_rm
                    | K::xmm_vvvv
                    | K::xmm_or_mem
                    | K::ymm_reg
                    | K::ymm_rm
                    | K::ymm_vvvv
                    | K::ymm_or_mem
            )
        });
        if insn.encoding() == EncodingKind::VEX {
            return if vector { Unit::Avx } else { Unit::GeneralVex };
        }
        if is_x87(insn) {
            return match opcode.mnemonic() {
                Mnemonic::Fnclex
                | Mnemonic::Fnstcw
                | Mnemonic::Fnstsw
                | Mnemonic::Fneni
                | Mnemonic::Fndisi
                | Mnemonic::Fnsetpm => Unit::X87NoWait,
                _ => Unit::X87,
            };
        }
        match (vector, mmx || insn.mnemonic() == Mnemonic::Emms) {
            (true, true) => Unit::SseMmx,
            (true, false) => Unit::Sse,
            (false, true) => Unit::Mmx,
            (false, false) => Unit::General,
        }
    }
}

/// Escape opcodes D8–DF.
pub fn is_x87(insn: &Instruction) -> bool {
    let opcode = insn.op_code();
    let first = match opcode.op_code() {
        // Two bytes where the ModRM byte is part of the opcode.
        long @ 0x100.. => long >> 8,
        short => short,
    };
    opcode.table() == OpCodeTableKind::Normal
        && insn.encoding() == EncodingKind::Legacy
        && (0xD8..=0xDF).contains(&first)
}

impl Cpu {
    /// Raises #UD, #NM or #MF where `unit` cannot be used now.
    #[inline(always)]
    pub fn require_unit(&mut self, unit: Unit) -> Exec {
        let ready = match unit {
            Unit::General => true,
            Unit::Sse => self.cr0 & (cr0::EM | cr0::TS) == 0 && self.cr4 & cr4::OSFXSR != 0,
            _ => false,
        };
        if ready {
            return Ok(());
        }
        self.require_unit_slow(unit)
    }

    #[inline(never)]
    fn require_unit_slow(&mut self, unit: Unit) -> Exec {
        let emulate = self.cr0 & cr0::EM != 0;
        let sse = matches!(unit, Unit::Sse | Unit::SseMmx);
        let undefined = match unit {
            Unit::General | Unit::X87 | Unit::X87NoWait | Unit::FxState => false,
            Unit::GeneralVex => self.real_or_vm86(),
            Unit::Mmx => emulate,
            Unit::Sse | Unit::SseMmx => emulate || self.cr4 & cr4::OSFXSR == 0,
            Unit::Avx => {
                const NEEDED: u64 = component::SSE | component::AVX;
                self.real_or_vm86() || self.cr4 & cr4::OSXSAVE == 0 || self.xcr0 & NEEDED != NEEDED
            }
            Unit::Xsave => self.cr4 & cr4::OSXSAVE == 0,
        };
        if undefined {
            return Err(self.ud());
        }
        let absent = match unit {
            Unit::General | Unit::GeneralVex => false,
            Unit::X87 | Unit::X87NoWait | Unit::FxState => self.cr0 & (cr0::EM | cr0::TS) != 0,
            _ => self.cr0 & cr0::TS != 0,
        };
        if absent {
            return Err(self.nm());
        }
        let waits = matches!(unit, Unit::X87 | Unit::Mmx) || sse && unit == Unit::SseMmx;
        if waits && self.vector.x87_pending() {
            return Err(self.raise(vector::MF));
        }
        Ok(())
    }
}
