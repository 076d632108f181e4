//! The test being put together, and its memory operand.

use iced_x86::{Instruction, OpCodeOperandKind as Kind, OpKind, Register};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::layout::GS_BASE;
use crate::state::Xsave;

const RSP: usize = 4;

/// The test being put together.
pub struct Draft {
    /// As in [`Input`](crate::state::Input).
    pub regs: [u64; 16],
    /// Registers whose values addresses depend on.
    pub pinned: [bool; 16],
    /// As in [`Input`](crate::state::Input).
    pub xsave: Xsave,
    /// As in [`Input`](crate::state::Input).
    pub flags: u64,
    /// As in [`Input`](crate::state::Input).
    pub memory: Vec<(u64, Vec<u8>)>,
    /// The instruction so far.
    pub insn: Instruction,
    /// String operands are addressed by 32-bit registers.
    pub narrow: bool,
}

impl Draft {
    /// Gives a register a value that an address depends on.
    pub fn pin(&mut self, n: usize, value: u64) {
        self.regs[n] = value;
        self.pinned[n] = true;
    }

    /// A register that no address depends on yet.
    pub fn free(&self, rng: &mut SmallRng) -> usize {
        loop {
            let n = rng.random_range(0..16);
            if !self.pinned[n] {
                return n;
            }
        }
    }
}

/// Fills in memory operand `n` so that it is at `address`.
pub fn explicit(
    rng: &mut SmallRng,
    draft: &mut Draft,
    n: u32,
    kind: Kind,
    address: u64,
) -> Option<()> {
    draft.insn.set_op_kind(n, OpKind::Memory);
    draft.insn.set_memory_index_scale(1);
    let reachable = address < 1 << 31;
    // GS sometimes; offsets wrap around in 64-bit addressing.
    let gs = rng.random_bool(0.12);
    let base = if gs { GS_BASE } else { 0 };
    if gs {
        draft.insn.set_segment_prefix(Register::GS);
    }
    let offset = address.wrapping_sub(base);
    let fits = offset < 1 << 31;
    if kind == Kind::mem_offs {
        let narrow = fits && rng.random_bool(0.3);
        draft.insn.set_memory_displ_size(if narrow { 4 } else { 8 });
        draft.insn.set_memory_displacement64(offset);
        return Some(());
    }
    let vector = match kind {
        Kind::mem_vsib32x => Some((Register::XMM0, 4)),
        Kind::mem_vsib64x => Some((Register::XMM0, 8)),
        Kind::mem_vsib32y => Some((Register::YMM0, 4)),
        Kind::mem_vsib64y => Some((Register::YMM0, 8)),
        _ => None,
    };
    if let Some((first, width)) = vector {
        return gather(rng, draft, first, width, offset);
    }
    let narrow = fits && reachable && rng.random_bool(0.2);
    let scale = 1u64 << rng.random_range(0..4);
    let shape = rng.random_range(0..10);
    let (displacement, displacement_size) = match rng.random_range(0..3) {
        0 => (0i64, 0),
        1 => (i64::from(rng.random::<i8>()), 1),
        _ => (i64::from(rng.random::<i32>() >> 4), 8),
    };
    let size = |bits: u32| match bits {
        0 => 0,
        1 => 1,
        _ if narrow => 4,
        _ => 8,
    };
    let register = |index: usize| {
        let first = if narrow { Register::EAX } else { Register::RAX };
        first + index as u32
    };
    // In 32-bit addressing, registers' upper halves do not count.
    let value = |rng: &mut SmallRng, value: u64| {
        if narrow {
            rng.random::<u64>() << 32 | value & 0xFFFF_FFFF
        } else {
            value
        }
    };
    match shape {
        // RIP-relative.
        0 if reachable && !gs => {
            draft
                .insn
                .set_memory_base(if narrow { Register::EIP } else { Register::RIP });
            draft.insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            draft.insn.set_memory_displacement64(address);
        }
        // Absolute.
        1 if fits => {
            draft.insn.set_memory_displ_size(size(8));
            draft.insn.set_memory_displacement64(offset);
        }
        // Index without base.
        2 if fits => {
            let index = draft.free(rng);
            let displacement = offset % scale + scale * rng.random_range(0..1000);
            let quotient = offset.wrapping_sub(displacement) / scale;
            if displacement > offset {
                return None;
            }
            let quotient = value(rng, quotient);
            draft.pin(index, quotient);
            draft.insn.set_memory_index(register(index));
            draft.insn.set_memory_index_scale(scale as u32);
            draft.insn.set_memory_displ_size(size(8));
            draft.insn.set_memory_displacement64(displacement);
        }
        // Base and index.
        3..6 => {
            let index = draft.free(rng);
            let scaled = draft.regs[index].wrapping_mul(scale);
            draft.pinned[index] = true;
            let base = draft.free(rng);
            let sum = offset
                .wrapping_sub(displacement as u64)
                .wrapping_sub(scaled);
            let sum = value(rng, sum);
            draft.pin(base, sum);
            draft.insn.set_memory_base(register(base));
            draft.insn.set_memory_index(register(index));
            draft.insn.set_memory_index_scale(scale as u32);
            draft.insn.set_memory_displ_size(size(displacement_size));
            draft.insn.set_memory_displacement64(displacement as u64);
        }
        // Relative to the stack pointer, where nothing else uses it.
        6 if !draft.insn.is_stack_instruction() && !narrow => {
            draft.pin(RSP, offset.wrapping_sub(displacement as u64));
            draft.insn.set_memory_base(Register::RSP);
            draft.insn.set_memory_displ_size(size(displacement_size));
            draft.insn.set_memory_displacement64(displacement as u64);
        }
        _ => {
            let base = draft.free(rng);
            let sum = value(rng, offset.wrapping_sub(displacement as u64));
            draft.pin(base, sum);
            draft.insn.set_memory_base(register(base));
            draft.insn.set_memory_displ_size(size(displacement_size));
            draft.insn.set_memory_displacement64(displacement as u64);
        }
    }
    if narrow {
        let displacement = draft.insn.memory_displacement64() & 0xFFFF_FFFF;
        draft.insn.set_memory_displacement64(displacement);
    }
    Some(())
}

/// A vector of indices, each near the base.
fn gather(
    rng: &mut SmallRng,
    draft: &mut Draft,
    first: Register,
    width: usize,
    offset: u64,
) -> Option<()> {
    let index = rng.random_range(0..16u32);
    let scale = 1u64 << rng.random_range(0..4);
    let displacement = rng.random_range(-100i64..100);
    let mut lanes = [0u8; 32];
    let spread = if rng.random() { 3i64 } else { 300 };
    for lane in lanes.chunks_mut(width) {
        let near = rng.random_range(-spread..=spread);
        lane.copy_from_slice(&near.to_le_bytes()[..width]);
    }
    draft.xsave.set_ymm(index as usize, &lanes);
    let base = draft.free(rng);
    draft.pin(base, offset.wrapping_sub(displacement as u64));
    draft.insn.set_memory_base(Register::RAX + base as u32);
    draft.insn.set_memory_index(first + index);
    draft.insn.set_memory_index_scale(scale as u32);
    draft.insn.set_memory_displ_size(1);
    draft.insn.set_memory_displacement64(displacement as u64);
    Some(())
}
