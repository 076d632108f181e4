//! Instructions executed by the host processor itself.
//!
//! x87, MMX, SSE, AVX, AES, SHA, BMI and their like are not emulated: the
//! same instruction is run on the guest's registers by a small generated
//! function, a [`Stub`], so that results, flags and SIMD exceptions are those
//! of a real processor. What remains to be done here is to check that the
//! guest may use the instruction now ([`Unit`]), to translate its memory
//! operand, and to hand over traps.
//!
//! [`build`] generates code, [`arena`] keeps it, [`signal`] catches traps,
//! [`run`] executes. [`moves`] has the commonest moves in Rust, which is
//! faster, [`masked`] those whose memory accesses depend on a mask, [`misc`]
//! those on the state as a whole.

#![allow(unsafe_code)]

mod arena;
mod build;
mod masked;
mod misc;
mod moves;
mod planted;
mod run;
mod signal;
mod unit;

use std::sync::Arc;

use croft_engine::CpuProfile;
use iced_x86::{CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind};

use crate::cpu::{CodeSize, Cpu};
use crate::op::{Op, Side};
use crate::vector::VectorState;

pub(crate) use build::{alignment, plain};
#[cfg(any(test, feature = "planted"))]
pub use planted::{Planted, plant};
pub use unit::Unit;

/// A stub's signature; see [`build`].
type Entry = unsafe extern "sysv64" fn(*mut Cpu, *mut VectorState, *mut u8) -> u32;

/// Where a stub's code is.
enum Place {
    /// In a slot of its own.
    Slot {
        entry: Entry,
        /// Keeps the slot.
        _slot: Arc<arena::Slot>,
    },
    /// Nowhere: the arena is full of stubs in use.
    OneShot(Box<[u8]>),
}

/// A host function that executes one instruction.
pub struct Stub {
    place: Place,
    unit: Unit,
    writes: bool,
    align: u8,
    /// Never #AC, though the operand is no wider than 8 bytes (exception
    /// class 11, SDM vol. 2A, 2.4.9).
    misalignable: bool,
    size: u32,
    x87: X87Pointers,
}

/// What an instruction does to the x87 instruction and data pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct X87Pointers {
    /// Sets them: x87, and not a control instruction.
    sets: bool,
    /// The data pointer changes with every memory operand, not only when an
    /// unmasked exception is raised (CPUID.7.EBX bit 6 clear).
    data_always: bool,
    /// Its opcode, as FOP has it.
    opcode: u16,
}

impl Stub {
    /// Runs the stub; 0, or [`signal::TRAPPED`] with a vector.
    ///
    /// # Safety
    /// `memory` must point to the operand's bytes (`size`, writable if the
    /// stub `writes`); it is not used by stubs without memory operand.
    #[inline(always)]
    unsafe fn call(&self, cpu: &mut Cpu, memory: *mut u8) -> u32 {
        let vector = &raw mut *cpu.vector;
        let cpu: *mut Cpu = cpu;
        match &self.place {
            // SAFETY: the slot is kept and holds code with this signature,
            // which accesses `regs`, `rflags`, the vector state and the
            // operand only, and restores host state (see `build`).
            Place::Slot { entry, .. } => unsafe { entry(cpu, vector, memory) },
            Place::OneShot(code) => match arena::arena() {
                Ok(arena) => arena.run_once(code, |at| {
                    // SAFETY: as above; `run_once` has placed the code.
                    unsafe {
                        let entry: Entry = std::mem::transmute(at);
                        entry(cpu, vector, memory)
                    }
                }),
                Err(_) => unreachable!("stubs exist only where the arena does"),
            },
        }
    }
}

/// Prepares the arena and the signal handlers. An engine calls this when it
/// starts, so that a host that refuses is found out then.
///
/// # Errors
/// The host refuses executable memory or signal handlers.
pub fn init() -> std::io::Result<()> {
    arena::arena().map(|_| ())
}

/// Forgets stubs that no decoded instruction has.
pub fn forget_unused() {
    if let Ok(arena) = arena::arena() {
        arena.forget_unused();
    }
}

/// Features whose instructions run on registers and at most one plain memory
/// operand: safe to run on the host.
pub(crate) fn is_data_processing(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::FPU
            | F::FPU287
            | F::FPU387
            | F::CMOV
            | F::MMX
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
    )
}

/// Lowers an instruction that is executed here. `op` and `side` are filled
/// in but for the handler and the stub.
pub fn lower(
    insn: &Instruction,
    op: &mut Op,
    side: &mut Side,
    _size: CodeSize,
    profile: &CpuProfile,
) -> bool {
    misc::lower(insn, op)
        || masked::lower(insn, op)
        || moves::lower(insn, op)
        || lower_to_stub(insn, op, side, profile)
}

fn lower_to_stub(insn: &Instruction, op: &mut Op, side: &mut Side, profile: &CpuProfile) -> bool {
    let plain = insn.cpuid_features().iter().all(|&f| is_data_processing(f))
        && matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && insn.flow_control() == FlowControl::Next
        && !insn.is_privileged()
        && !insn.is_stack_instruction()
        && !insn.is_vsib()
        && insn.op_kinds().all(|kind| {
            matches!(
                kind,
                OpKind::Register | OpKind::Memory | OpKind::Immediate8 | OpKind::Immediate8_2nd
            )
        });
    if !plain {
        return false;
    }
    let (Some(built), Ok(arena)) = (build::build(insn), arena::arena()) else {
        return false;
    };
    let place = match arena.place(&built.code) {
        Some(slot) => Place::Slot {
            // SAFETY: the slot holds code of this signature.
            entry: unsafe { std::mem::transmute::<usize, Entry>(arena.entry(&slot)) },
            _slot: slot,
        },
        None => Place::OneShot(built.code.into()),
    };
    op.run = match (built.size > 0, built.x87, built.writes) {
        (_, true, _) => run::x87,
        (false, ..) => run::registers,
        (true, _, false) => run::load,
        (true, _, true) => run::store,
    };
    let always = profile.leaf(7, 0).is_none_or(|leaf| leaf.ebx & 1 << 6 == 0);
    let opcode = &side.bytes[..insn.len().min(side.bytes.len())];
    side.stub = Some(Box::new(Stub {
        place,
        unit: built.unit,
        writes: built.writes,
        align: built.align,
        misalignable: matches!(insn.mnemonic(), Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph),
        size: built.size,
        x87: X87Pointers {
            sets: unit::is_x87(insn) && !run::is_x87_control(insn),
            data_always: always,
            opcode: run::x87_opcode(opcode),
        },
    }));
    true
}

#[cfg(test)]
pub(crate) mod tests;
