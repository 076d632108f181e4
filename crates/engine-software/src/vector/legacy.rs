//! FXSAVE, FXRSTOR, MXCSR and the x87 environment instructions.

use crate::cpu::Cpu;
use crate::fault::{Exec, vector};
use crate::op::{Flow, Op};
use crate::stub::Unit;
use crate::vector::{MXCSR_MASK, VectorState, at, get, get16, get32};

/// Bytes of the FXSAVE image that instructions write in 64-bit mode, and in
/// the others, where XMM8–15 do not exist.
const FX_LONG: usize = at::XMM + 256;
const FX_SHORT: usize = at::XMM + 128;

/// XMM and YMM registers that the running code can name.
pub(crate) fn registers(cpu: &Cpu) -> usize {
    if cpu.code64() { 16 } else { 8 }
}

/// FXSAVE, FXSAVE64 (`op.aux` set).
pub fn fxsave(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::FxState)?;
    let linear = cpu.linear(op, 512, true)?;
    if linear & 15 != 0 {
        cpu.misaligned(linear)?;
        return Err(cpu.gp(0));
    }
    let mut image = [0; FX_LONG];
    image[..at::XMM].copy_from_slice(&cpu.vector.legacy_head(op.aux != 0));
    for (n, ymm) in cpu.vector.ymm.iter().enumerate() {
        image[at::XMM + 16 * n..][..16].copy_from_slice(&ymm[..16]);
    }
    let len = if cpu.code64() { FX_LONG } else { FX_SHORT };
    cpu.probe(linear, 512, true)?;
    cpu.write_bytes(linear, &image[..len])?;
    Ok(Flow::Next)
}

/// FXRSTOR, FXRSTOR64 (`op.aux` set).
pub fn fxrstor(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::FxState)?;
    let linear = cpu.linear(op, 512, false)?;
    if linear & 15 != 0 {
        cpu.misaligned(linear)?;
        return Err(cpu.gp(0));
    }
    let mut image = [0; 512];
    cpu.read_bytes(linear, &mut image)?;
    let mxcsr = get32(&image, at::MXCSR);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    let count = registers(cpu);
    cpu.vector.load_x87(&image, op.aux != 0);
    cpu.vector.mxcsr = mxcsr;
    for (n, ymm) in cpu.vector.ymm.iter_mut().enumerate().take(count) {
        ymm[..16].copy_from_slice(&get::<16>(&image, at::XMM + 16 * n));
    }
    Ok(Flow::Next)
}

/// LDMXCSR, VLDMXCSR; `op.aux` is the unit.
pub fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(mxcsr_unit(op))?;
    let linear = cpu.linear(op, 4, false)?;
    let value: u32 = cpu.read(linear)?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.vector.mxcsr = value;
    Ok(Flow::Next)
}

/// STMXCSR, VSTMXCSR; `op.aux` is the unit.
pub fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(mxcsr_unit(op))?;
    let linear = cpu.linear(op, 4, true)?;
    let value = cpu.vector.mxcsr;
    cpu.write(linear, value)?;
    Ok(Flow::Next)
}

fn mxcsr_unit(op: &Op) -> Unit {
    if op.aux != 0 { Unit::Avx } else { Unit::Sse }
}

/// FNINIT.
pub fn fninit(cpu: &mut Cpu, _op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::X87NoWait)?;
    cpu.vector.fninit();
    Ok(Flow::Next)
}

/// FWAIT.
pub fn fwait(cpu: &mut Cpu, _op: &Op) -> Exec<Flow> {
    use crate::cpu::cr0;
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.nm());
    }
    if cpu.vector.x87_pending() {
        return Err(cpu.raise(vector::MF));
    }
    Ok(Flow::Next)
}

/// How the environment lies in memory (SDM vol. 1, 8.1.10).
#[derive(Clone, Copy)]
struct Layout {
    /// 32-bit fields (28 bytes), else 16-bit ones (14 bytes).
    wide: bool,
    /// Real-address or virtual-8086 mode: linear addresses, not selectors.
    real: bool,
}

impl Layout {
    fn of(cpu: &Cpu, op: &Op) -> Self {
        Layout {
            wide: op.aux != 0,
            real: cpu.real_or_vm86(),
        }
    }

    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// Linear address of an operand of `len` bytes, aligned as its fields.
    fn linear(self, cpu: &mut Cpu, op: &Op, len: usize, write: bool) -> Exec<u64> {
        let linear = cpu.linear(op, len as u64, write)?;
        let field = if self.wide { 4 } else { 2 };
        if linear & (field - 1) != 0 {
            cpu.misaligned(linear)?;
        }
        Ok(linear)
    }

    fn store(self, state: &VectorState, out: &mut [u8]) {
        let (fip, fdp, fop) = (state.fip as u32, state.fdp as u32, u32::from(state.fop));
        let words: [u32; 7] = if self.wide {
            let high = |value: u16| 0xFFFF_0000 | u32::from(value);
            let (ip, data) = if self.real {
                // Bits 15:0 in one field, 31:16 in bits 27:12 of the next.
                let (low, high_ip) = (fip & 0xFFFF, fip >> 16 << 12 | fop);
                (
                    (low | 0xFFFF_0000, high_ip),
                    (fdp & 0xFFFF | 0xFFFF_0000, fdp >> 16 << 12),
                )
            } else {
                ((fip, fop << 16), (fdp, 0xFFFF_0000))
            };
            [
                high(state.fcw()),
                high(state.fsw()),
                high(state.full_tags()),
                ip.0,
                ip.1,
                data.0,
                data.1,
            ]
        } else {
            let (ip, data) = if self.real {
                (fip >> 16 << 12 | fop, fdp >> 16 << 12)
            } else {
                (0, 0)
            };
            [
                state.fcw().into(),
                state.fsw().into(),
                state.full_tags().into(),
                fip,
                ip,
                fdp,
                data,
            ]
        };
        let width = self.len() / 7;
        for (field, word) in out.chunks_mut(width).zip(words) {
            field.copy_from_slice(&word.to_le_bytes()[..field.len()]);
        }
    }

    /// Loads an environment and, when `registers` are given (FRSTOR), the
    /// stack's contents.
    fn load(self, state: &mut VectorState, from: &[u8], registers: Option<&[u8]>) {
        let field = |n: usize| {
            if self.wide {
                get32(from, 4 * n)
            } else {
                u32::from(get16(from, 2 * n))
            }
        };
        let (fcw, fsw, tags) = (field(0) as u16, field(1) as u16, field(2) as u16);
        let (ip_low, ip_high, data_low, data_high) = (field(3), field(4), field(5), field(6));
        // The image keeps registers relative to TOP: take them in physical
        // order first.
        let old_top = state.top();
        let mut physical = [[0u8; 10]; 8];
        for (n, register) in physical.iter_mut().enumerate() {
            *register = get(&state.x87, at::ST + 16 * ((n + 8 - old_top) & 7));
        }
        let top = usize::from(fsw >> 11 & 7);
        if let Some(bytes) = registers {
            for n in 0..8 {
                physical[(n + top) & 7] = get(bytes, 10 * n);
            }
        }
        for n in 0..8 {
            let st = at::ST + 16 * n;
            state.x87[st..st + 10].copy_from_slice(&physical[(n + top) & 7]);
        }
        let mut abridged = 0;
        for n in 0..8 {
            if tags >> (2 * n) & 3 != 3 {
                abridged |= 1 << n;
            }
        }
        state.x87[at::FCW..at::FCW + 2].copy_from_slice(&fcw.to_le_bytes());
        state.x87[at::FSW..at::FSW + 2].copy_from_slice(&fsw.to_le_bytes());
        state.x87[at::FTW] = abridged;
        let (fip, fdp, fop) = match (self.wide, self.real) {
            (true, false) => (ip_low, data_low, ip_high >> 16),
            (false, false) => (ip_low, data_low, 0),
            (_, true) => (
                ip_low & 0xFFFF | ip_high >> 12 << 16,
                data_low & 0xFFFF | data_high >> 12 << 16,
                ip_high,
            ),
        };
        state.fip = fip.into();
        state.fdp = fdp.into();
        state.fop = (fop & 0x7FF) as u16;
        state.normalise();
    }
}

impl VectorState {
    /// The tag word with two bits a register, worked out from the contents
    /// as FNSTENV does (SDM vol. 1, 8.1.7): valid, zero, special, empty.
    pub(crate) fn full_tags(&self) -> u16 {
        let top = self.top();
        let mut tags = 0;
        for n in 0..8usize {
            let tag = if self.x87[at::FTW] >> n & 1 == 0 {
                3
            } else {
                let st = at::ST + 16 * ((n + 8 - top) & 7);
                let exponent = get16(&self.x87, st + 8) & 0x7FFF;
                let mantissa = u64::from_le_bytes(get(&self.x87, st));
                match (exponent, mantissa) {
                    (0, 0) => 1,
                    (0x7FFF, _) | (0, _) => 2,
                    (_, mantissa) if mantissa >> 63 == 0 => 2,
                    _ => 0,
                }
            };
            tags |= tag << (2 * n);
        }
        tags
    }

    /// Masks every x87 exception, as FNSTENV does after storing.
    fn mask_x87(&mut self) {
        self.x87[at::FCW] |= 0x3F;
        self.normalise();
    }
}

/// FNSTENV; `op.aux` set for the 28-byte form.
pub fn fnstenv(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::X87NoWait)?;
    let layout = Layout::of(cpu, op);
    let mut image = [0; 28];
    let image = &mut image[..layout.len()];
    layout.store(&cpu.vector, image);
    let linear = layout.linear(cpu, op, image.len(), true)?;
    cpu.write_bytes(linear, image)?;
    cpu.vector.mask_x87();
    Ok(Flow::Next)
}

/// FLDENV; `op.aux` set for the 28-byte form.
pub fn fldenv(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::X87)?;
    let layout = Layout::of(cpu, op);
    let mut image = [0; 28];
    let image = &mut image[..layout.len()];
    let linear = layout.linear(cpu, op, image.len(), false)?;
    cpu.read_bytes(linear, image)?;
    layout.load(&mut cpu.vector, image, None);
    Ok(Flow::Next)
}

/// FNSAVE; `op.aux` set for the 108-byte form.
pub fn fnsave(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::X87NoWait)?;
    let layout = Layout::of(cpu, op);
    let mut image = [0; 108];
    let len = layout.len();
    let (environment, registers) = image.split_at_mut(len);
    layout.store(&cpu.vector, environment);
    for n in 0..8 {
        registers[10 * n..10 * n + 10].copy_from_slice(&cpu.vector.x87[at::ST + 16 * n..][..10]);
    }
    let linear = layout.linear(cpu, op, len + 80, true)?;
    cpu.write_bytes(linear, &image[..len + 80])?;
    cpu.vector.fninit();
    Ok(Flow::Next)
}

/// FRSTOR; `op.aux` set for the 108-byte form.
pub fn frstor(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.require_unit(Unit::X87)?;
    let layout = Layout::of(cpu, op);
    let mut image = [0; 108];
    let len = layout.len();
    let linear = layout.linear(cpu, op, len + 80, false)?;
    cpu.read_bytes(linear, &mut image[..len + 80])?;
    let (environment, registers) = image.split_at(len);
    layout.load(&mut cpu.vector, environment, Some(registers));
    Ok(Flow::Next)
}
