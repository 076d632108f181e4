//! MUL IMUL DIV IDIV.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::host;
use super::operand::{NEXT, offset, single};
use crate::cpu::{Cpu, gpr};
use crate::fault::{Exec, vector};
use crate::op::{Flow, Op};

const RAX: u8 = gpr::RAX as u8 * 8;
const RDX: u8 = gpr::RDX as u8 * 8;

/// The one operand: a register, or memory where `src` is 0xFF. `dst` is the
/// size in bytes.
#[inline(always)]
fn operand(cpu: &mut Cpu, op: &Op) -> Exec<u64> {
    if op.src == 0xFF {
        return Ok(match op.dst {
            1 => cpu.load::<u8>(op)?.into(),
            2 => cpu.load::<u16>(op)?.into(),
            4 => cpu.load::<u32>(op)?.into(),
            _ => cpu.load::<u64>(op)?,
        });
    }
    Ok(match op.dst {
        1 => cpu.get::<u8>(op.src).into(),
        2 => cpu.get::<u16>(op.src).into(),
        4 => cpu.get::<u32>(op.src).into(),
        _ => cpu.get::<u64>(op.src),
    })
}

/// MUL and one-operand IMUL.
fn multiply<const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let b = operand(cpu, op)?;
    let a = cpu.r64(gpr::RAX);
    let mut flags = cpu.rflags;
    macro_rules! wide {
        ($type:ty, $mul:ident, $imul:ident) => {{
            let run = if SIGNED { host::$imul } else { host::$mul };
            let (low, high) = run(a as $type, b as $type, &mut flags);
            cpu.put(RAX, low);
            cpu.put(RDX, high);
        }};
    }
    match op.dst {
        1 => {
            let run = if SIGNED { host::imul8 } else { host::mul8 };
            let product = run(a as u8, b as u8, &mut flags);
            cpu.put(RAX, product);
        }
        2 => wide!(u16, mul16, imul16),
        4 => wide!(u32, mul32, imul32),
        _ => wide!(u64, mul64, imul64),
    }
    cpu.rflags = flags;
    NEXT
}

/// Two- and three-operand IMUL: `src` or memory, times `dst` or (`aux` = 1)
/// the immediate. `seg` is not free for the size, so each has its function.
macro_rules! imul {
    ($name:ident, $type:ty, $host:ident) => {
        fn $name(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
            let a = if op.src == 0xFF {
                cpu.load::<$type>(op)?
            } else {
                cpu.get::<$type>(op.src)
            };
            let b = if op.aux != 0 {
                op.imm as $type
            } else {
                cpu.get::<$type>(op.dst)
            };
            let result = host::$host(a, b, &mut cpu.rflags);
            cpu.put(op.dst, result);
            NEXT
        }
    };
}

imul!(imul_16, u16, imul_16);
imul!(imul_32, u32, imul_32);
imul!(imul_64, u64, imul_64);

/// DIV: #DE for a zero divisor or a quotient that does not fit. The flags,
/// undefined by the manual, stay.
fn divide(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let divisor = operand(cpu, op)?;
    let (rax, rdx) = (cpu.r64(gpr::RAX), cpu.r64(gpr::RDX));
    let bits = u32::from(op.dst) * 8;
    let mask = u64::MAX >> (64 - bits);
    let dividend = if op.dst == 1 {
        u128::from(rax & 0xFFFF)
    } else {
        u128::from(rdx & mask) << bits | u128::from(rax & mask)
    };
    // The quotient fits exactly when the upper half is below the divisor.
    if dividend >> bits >= u128::from(divisor) {
        return Err(cpu.raise(vector::DE));
    }
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(small) => (small / divisor, small % divisor),
        Err(_) => (
            (dividend / u128::from(divisor)) as u64,
            (dividend % u128::from(divisor)) as u64,
        ),
    };
    put_results(cpu, op.dst, quotient, remainder);
    NEXT
}

/// IDIV: as DIV, signed, rounding towards zero.
fn divide_signed(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let raw = operand(cpu, op)?;
    let (rax, rdx) = (cpu.r64(gpr::RAX), cpu.r64(gpr::RDX));
    let bits = u32::from(op.dst) * 8;
    let signed = |value: u64| ((value << (64 - bits)) as i64 >> (64 - bits)) as i128;
    let divisor = signed(raw);
    let mask = u64::MAX >> (64 - bits);
    let dividend = if op.dst == 1 {
        i128::from(rax as i16)
    } else {
        signed(rdx) << bits | i128::from(rax & mask)
    };
    let (Some(quotient), Some(remainder)) =
        (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return Err(cpu.raise(vector::DE));
    };
    if signed(quotient as u64) != quotient {
        return Err(cpu.raise(vector::DE));
    }
    put_results(cpu, op.dst, quotient as u64, remainder as u64);
    NEXT
}

fn put_results(cpu: &mut Cpu, size: u8, quotient: u64, remainder: u64) {
    match size {
        1 => {
            cpu.put(RAX, quotient as u8);
            cpu.put(RAX + 1, remainder as u8);
        }
        2 => {
            cpu.put(RAX, quotient as u16);
            cpu.put(RDX, remainder as u16);
        }
        4 => {
            cpu.put(RAX, quotient as u32);
            cpu.put(RDX, remainder as u32);
        }
        _ => {
            cpu.put(RAX, quotient);
            cpu.put(RDX, remainder);
        }
    }
}

fn lower_single(insn: &Instruction, op: &mut Op) -> bool {
    let Some((memory, size)) = single(insn, op) else {
        return false;
    };
    op.src = if memory { 0xFF } else { op.dst };
    op.dst = size as u8;
    true
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    match insn.mnemonic() {
        Mnemonic::Mul => op.run = multiply::<false>,
        Mnemonic::Imul if insn.op_count() == 1 => op.run = multiply::<true>,
        Mnemonic::Div => op.run = divide,
        Mnemonic::Idiv => op.run = divide_signed,
        Mnemonic::Imul => {
            op.dst = offset(insn.op0_register());
            op.src = if insn.op1_kind() == OpKind::Memory {
                0xFF
            } else {
                offset(insn.op1_register())
            };
            if insn.op_count() == 3 {
                op.aux = 1;
                op.imm = insn.immediate(2);
            }
            op.run = match insn.op0_register().size() {
                2 => imul_16,
                4 => imul_32,
                _ => imul_64,
            };
            return true;
        }
        _ => return false,
    }
    lower_single(insn, op)
}
