//! The XSAVE family (SDM vol. 1, chapter 13).
//!
//! The same routines serve every form. Areas are 64-byte aligned; the
//! standard format has AVX state at 576, and so has the compacted one, where
//! nothing can precede it.

use crate::cpu::Cpu;
use crate::cpu::gpr::{RAX, RDX};
use crate::fault::Exec;
use crate::op::{Flow, Op};
use crate::stub::Unit;
use crate::vector::legacy::registers;
use crate::vector::{
    AVX_OFFSET, AVX_SIZE, LEGACY, MXCSR_DEFAULT, MXCSR_MASK, at, component, get, get32, get64,
};

/// XCOMP_BV bit that says "compacted".
const COMPACTED: u64 = 1 << 63;

/// Bit of [`Op::aux`]: 64-bit pointers (REX.W).
pub(crate) const LONG: u8 = 1;
/// Bits of [`Op::aux`]: which instruction.
pub(crate) const OPTIMISED: u8 = 2;
pub(crate) const COMPACT: u8 = 4;
pub(crate) const SUPERVISOR: u8 = 8;

/// Checks common to the family; the area's linear address and RFBM.
fn area(cpu: &mut Cpu, op: &Op, write: bool) -> Exec<(u64, u64)> {
    cpu.require_unit(Unit::Xsave)?;
    if op.aux & SUPERVISOR != 0 {
        cpu.require_cpl0()?;
    }
    let mask = cpu.r64(RDX) << 32 | cpu.r64(RAX) & 0xFFFF_FFFF;
    let requested = cpu.xcr0 & mask & component::ALL;
    let mut size = AVX_OFFSET;
    if requested & component::AVX != 0 {
        size += AVX_SIZE;
    }
    let linear = cpu.linear(op, size as u64, write)?;
    if linear & 63 != 0 {
        // Where #AC stops and #GP begins is the processor's choice (SDM
        // vol. 2, XSAVE); this is what Intel's do.
        if linear & 3 != 0 {
            cpu.misaligned(linear)?;
        }
        if cpu.code64() && !cpu.canonical(linear) {
            return Err(cpu.non_canonical());
        }
        return Err(cpu.gp(0));
    }
    if write {
        probe(cpu, linear, requested, op.aux & COMPACT != 0, true)?;
    }
    Ok((linear, requested))
}

/// MXCSR goes with AVX too in the standard format.
fn needs_legacy(requested: u64, compact: bool) -> bool {
    requested & (component::X87 | component::SSE) != 0
        || !compact && requested & component::AVX != 0
}

/// Whether the parts that hold `requested` can be accessed: the legacy region
/// only where something of it counts.
fn probe(cpu: &mut Cpu, linear: u64, requested: u64, compact: bool, write: bool) -> Exec {
    let from = if needs_legacy(requested, compact) {
        0
    } else {
        LEGACY
    };
    let to = AVX_OFFSET
        + if requested & component::AVX != 0 {
            AVX_SIZE
        } else {
            0
        };
    cpu.probe(linear + from as u64, (to - from) as u64, write)
}

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
pub fn save(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (linear, requested) = area(cpu, op, true)?;
    let compact = op.aux & COMPACT != 0;
    let in_use = cpu.vector.xinuse();
    let mut saved = requested;
    if op.aux & (OPTIMISED | COMPACT) != 0 {
        saved &= in_use;
    }
    // In the compacted formats MXCSR belongs to the SSE component.
    if compact && requested & component::SSE != 0 && cpu.vector.mxcsr != MXCSR_DEFAULT {
        saved |= component::SSE;
    }
    let count = registers(cpu);
    let head = cpu.vector.legacy_head(op.aux & LONG != 0);
    let mut low = [0; 256];
    let mut high = [0; 256];
    for (n, ymm) in cpu.vector.ymm.iter().enumerate() {
        low[16 * n..][..16].copy_from_slice(&ymm[..16]);
        high[16 * n..][..16].copy_from_slice(&ymm[16..]);
    }
    let header = if compact {
        let mut header = [0; 16];
        header[..8].copy_from_slice(&saved.to_le_bytes());
        header[8..].copy_from_slice(&(requested | COMPACTED).to_le_bytes());
        header
    } else {
        let mut header = [0; 16];
        cpu.read_bytes(linear + LEGACY as u64, &mut header)?;
        let merged = get64(&header, 0) & !requested | in_use & requested;
        header[..8].copy_from_slice(&merged.to_le_bytes());
        header
    };
    if saved & component::X87 != 0 {
        cpu.write_bytes(linear, &head[..at::MXCSR])?;
        cpu.write_bytes(linear + at::ST as u64, &head[at::ST..])?;
    }
    let mxcsr = if compact {
        saved & component::SSE != 0
    } else {
        requested & (component::SSE | component::AVX) != 0
    };
    if mxcsr {
        cpu.write_bytes(linear + at::MXCSR as u64, &head[at::MXCSR..at::ST])?;
    }
    if saved & component::SSE != 0 {
        cpu.write_bytes(linear + at::XMM as u64, &low[..16 * count])?;
    }
    if saved & component::AVX != 0 {
        cpu.write_bytes(linear + AVX_OFFSET as u64, &high[..16 * count])?;
    }
    let header_len = if compact { 16 } else { 8 };
    cpu.write_bytes(linear + LEGACY as u64, &header[..header_len])?;
    Ok(Flow::Next)
}

/// XRSTOR, XRSTORS.
pub fn restore(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (linear, requested) = area(cpu, op, false)?;
    let mut legacy = [0; AVX_OFFSET];
    cpu.read_bytes(linear + LEGACY as u64, &mut legacy[LEGACY..])?;
    let held = get64(&legacy, LEGACY);
    let layout = get64(&legacy, LEGACY + 8);
    let compact = layout & COMPACTED != 0;
    // All of it must be there before any of it is looked at.
    probe(cpu, linear, requested, compact, false)?;
    let reserved = legacy[LEGACY + 16..]
        .iter()
        .take(if compact { 48 } else { 8 })
        .any(|&byte| byte != 0);
    let bad = if compact {
        layout & !COMPACTED & !cpu.xcr0 != 0 || held & !layout != 0
    } else {
        // The supervisor form takes the compacted format only.
        op.aux & SUPERVISOR != 0 || layout != 0 || held & !cpu.xcr0 != 0
    };
    if bad || reserved {
        return Err(cpu.gp(0));
    }
    let load = requested & held;
    if needs_legacy(requested, compact) {
        cpu.read_bytes(linear, &mut legacy[..LEGACY])?;
    }
    let new_mxcsr = if compact {
        if load & component::SSE != 0 {
            Some(get32(&legacy, at::MXCSR))
        } else if requested & component::SSE != 0 {
            Some(MXCSR_DEFAULT)
        } else {
            None
        }
    } else if requested & (component::SSE | component::AVX) != 0 {
        // Loaded even where XSTATE_BV says that SSE state is initial.
        Some(get32(&legacy, at::MXCSR))
    } else {
        None
    };
    if new_mxcsr.is_some_and(|value| value & !MXCSR_MASK != 0) {
        return Err(cpu.gp(0));
    }
    let count = registers(cpu);
    let mut high = [0; AVX_SIZE];
    if load & component::AVX != 0 {
        cpu.read_bytes(linear + AVX_OFFSET as u64, &mut high[..16 * count])?;
    }
    let state = &mut *cpu.vector;
    if load & component::X87 != 0 {
        state.load_x87(&legacy, op.aux & LONG != 0);
    } else if requested & component::X87 != 0 {
        state.init_x87();
    }
    if let Some(value) = new_mxcsr {
        state.mxcsr = value;
    }
    for (n, ymm) in state.ymm.iter_mut().enumerate().take(count) {
        if load & component::SSE != 0 {
            ymm[..16].copy_from_slice(&get::<16>(&legacy, at::XMM + 16 * n));
        } else if requested & component::SSE != 0 {
            ymm[..16].fill(0);
        }
        // Zero where the component is initial: then nothing was read.
        if requested & component::AVX != 0 {
            ymm[16..].copy_from_slice(&high[16 * n..][..16]);
        }
    }
    Ok(Flow::Next)
}
