//! MOV MOVZX MOVSX MOVSXD LEA XCHG CMOVcc SETcc BSWAP CBW…CQO XLAT NOP.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::host::Int;
use super::operand::{Form, NEXT, form, modify, offset, single, sized};
use crate::cpu::{Cpu, gpr};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};

fn mov_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<T>(op.src);
    cpu.put(op.dst, value);
    NEXT
}

fn mov_ri<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.put(op.dst, T::from_u64(op.imm));
    NEXT
}

fn mov_rm<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.load::<T>(op)?;
    cpu.put(op.dst, value);
    NEXT
}

fn mov_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<T>(op.src);
    cpu.store(op, value)?;
    NEXT
}

fn mov_mi<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.store(op, T::from_u64(op.imm))?;
    NEXT
}

fn mov<T: Int>(form: Form) -> Handler {
    match form {
        Form::RegReg => mov_rr::<T>,
        Form::RegImm => mov_ri::<T>,
        Form::RegMem => mov_rm::<T>,
        Form::MemReg => mov_mr::<T>,
        Form::MemImm => mov_mi::<T>,
    }
}

/// From `S` to `D`, zero- or sign-extended.
#[inline(always)]
fn extend<S: Int, D: Int, const SIGNED: bool>(value: S) -> D {
    if SIGNED {
        D::from_u64(value.to_i64() as u64)
    } else {
        D::from_u64(value.to_u64())
    }
}

fn extend_reg<S: Int, D: Int, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<S>(op.src);
    cpu.put(op.dst, extend::<S, D, SIGNED>(value));
    NEXT
}

fn extend_mem<S: Int, D: Int, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.load::<S>(op)?;
    cpu.put(op.dst, extend::<S, D, SIGNED>(value));
    NEXT
}

fn extending<S: Int, const SIGNED: bool>(memory: bool, size: usize) -> Option<Handler> {
    fn pick<S: Int, D: Int, const SIGNED: bool>(memory: bool) -> Handler {
        if memory {
            extend_mem::<S, D, SIGNED>
        } else {
            extend_reg::<S, D, SIGNED>
        }
    }
    Some(match size {
        2 => pick::<S, u16, SIGNED>(memory),
        4 => pick::<S, u32, SIGNED>(memory),
        8 => pick::<S, u64, SIGNED>(memory),
        _ => return None,
    })
}

fn lower_extend<const SIGNED: bool>(insn: &Instruction, op: &mut Op) -> bool {
    let memory = insn.op_kind(1) == OpKind::Memory;
    let source = if memory {
        insn.memory_size().size()
    } else {
        op.src = offset(insn.op1_register());
        insn.op1_register().size()
    };
    op.dst = offset(insn.op0_register());
    let size = insn.op0_register().size();
    let handler = match source {
        1 => extending::<u8, SIGNED>(memory, size),
        2 => extending::<u16, SIGNED>(memory, size),
        4 => extending::<u32, SIGNED>(memory, size),
        _ => None,
    };
    match handler {
        Some(handler) => op.run = handler,
        None => return false,
    }
    true
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let address = cpu.ea(op);
    cpu.put(op.dst, T::from_u64(address));
    NEXT
}

fn xchg_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    cpu.put(op.dst, b);
    cpu.put(op.src, a);
    NEXT
}

/// XCHG with memory is locked, prefix or not.
fn xchg_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<T>(op.src);
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = match cpu.direct(linear, T::SIZE, true)? {
        Some(direct) => {
            // SAFETY: `direct` covers `T::SIZE` bytes of guest RAM.
            let old = unsafe { T::atomic_swap(direct.host, value) };
            cpu.stored(&direct, T::SIZE);
            old
        }
        None => modify::<T>(cpu, op, |_, _| value)?,
    };
    cpu.put(op.src, old);
    NEXT
}

/// Evaluates condition `cc` (encoding order: O NO B AE E NE BE A S NS P NP L
/// GE LE G).
#[inline(always)]
pub fn condition(rflags: u64, cc: u8) -> bool {
    use crate::cpu::flag::{CF, OF, PF, SF, ZF};
    let less = (rflags >> 7 ^ rflags >> 11) & 1 != 0;
    let base = match cc >> 1 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less,
        _ => less || rflags & ZF != 0,
    };
    base != (cc & 1 != 0)
}

fn cmov_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = if condition(cpu.rflags, op.aux) {
        cpu.get::<T>(op.src)
    } else {
        cpu.get::<T>(op.dst)
    };
    cpu.put(op.dst, value);
    NEXT
}

fn cmov_rm<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    // The operand is read, and may fault, whatever the condition.
    let loaded = cpu.load::<T>(op)?;
    let value = if condition(cpu.rflags, op.aux) {
        loaded
    } else {
        cpu.get::<T>(op.dst)
    };
    cpu.put(op.dst, value);
    NEXT
}

fn setcc_reg(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.put(op.dst, u8::from(condition(cpu.rflags, op.aux)));
    NEXT
}

fn setcc_mem(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.store(op, u8::from(condition(cpu.rflags, op.aux)))?;
    NEXT
}

fn bswap32(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<u32>(op.dst).swap_bytes();
    cpu.put(op.dst, value);
    NEXT
}

fn bswap64(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<u64>(op.dst).swap_bytes();
    cpu.put(op.dst, value);
    NEXT
}

/// BSWAP of a 16-bit register is undefined; processors clear it.
fn bswap16(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.put(op.dst, 0u16);
    NEXT
}

/// CBW CWDE CDQE CWD CDQ CQO.
fn sign_extend(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let rax = cpu.r64(gpr::RAX);
    match op.aux {
        0 => cpu.set_r16(gpr::RAX, i16::from(rax as i8) as u16),
        1 => cpu.set_r32(gpr::RAX, i32::from(rax as i16) as u32),
        2 => cpu.set_r64(gpr::RAX, i64::from(rax as i32) as u64),
        3 => cpu.set_r16(gpr::RDX, (rax as i16 >> 15) as u16),
        4 => cpu.set_r32(gpr::RDX, (rax as i32 >> 31) as u32),
        _ => cpu.set_r64(gpr::RDX, (rax as i64 >> 63) as u64),
    }
    NEXT
}

/// XLATB: the memory operand is seg:[rBX + AL].
fn xlat(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let mut op = op.clone();
    op.index = crate::cpu::ZERO;
    op.disp = cpu.r64(gpr::RAX) as u8 as i64;
    let value = cpu.load::<u8>(&op)?;
    cpu.put(gpr::RAX as u8 * 8, value);
    NEXT
}

fn nop(_: &mut Cpu, _: &Op) -> Exec<Flow> {
    NEXT
}

pub fn lower(insn: &Instruction, op: &mut Op) -> bool {
    match insn.mnemonic() {
        Mnemonic::Mov => {
            let Some((form, size)) = form(insn, op) else {
                return false;
            };
            op.run = sized!(size, T => mov::<T>(form));
        }
        Mnemonic::Movzx => return lower_extend::<false>(insn, op),
        Mnemonic::Movsx => return lower_extend::<true>(insn, op),
        Mnemonic::Movsxd => {
            // MOVSXD r16/r32 is a plain move.
            if insn.op0_register().size() == 8 {
                return lower_extend::<true>(insn, op);
            }
            op.dst = offset(insn.op0_register());
            let memory = insn.op_kind(1) == OpKind::Memory;
            if !memory {
                op.src = offset(insn.op1_register());
            }
            op.run = match (insn.op0_register().size(), memory) {
                (2, false) => mov_rr::<u16>,
                (2, true) => mov_rm::<u16>,
                (_, false) => mov_rr::<u32>,
                (_, true) => mov_rm::<u32>,
            };
        }
        Mnemonic::Lea => {
            op.dst = offset(insn.op0_register());
            op.run = sized!(insn.op0_register().size(), T => lea::<T>);
        }
        Mnemonic::Xchg => {
            let Some((form, size)) = form(insn, op) else {
                return false;
            };
            match form {
                Form::RegReg => op.run = sized!(size, T => xchg_rr::<T>),
                Form::MemReg => op.run = sized!(size, T => xchg_mr::<T>),
                Form::RegMem => {
                    op.src = op.dst;
                    op.run = sized!(size, T => xchg_mr::<T>);
                }
                Form::RegImm | Form::MemImm => return false,
            }
            op.flags |= crate::op::op_flag::LOCK;
        }
        Mnemonic::Bswap => {
            op.dst = offset(insn.op0_register());
            op.run = match insn.op0_register().size() {
                2 => bswap16,
                4 => bswap32,
                _ => bswap64,
            };
        }
        Mnemonic::Cbw => (op.run, op.aux) = (sign_extend, 0),
        Mnemonic::Cwde => (op.run, op.aux) = (sign_extend, 1),
        Mnemonic::Cdqe => (op.run, op.aux) = (sign_extend, 2),
        Mnemonic::Cwd => (op.run, op.aux) = (sign_extend, 3),
        Mnemonic::Cdq => (op.run, op.aux) = (sign_extend, 4),
        Mnemonic::Cqo => (op.run, op.aux) = (sign_extend, 5),
        Mnemonic::Xlatb => op.run = xlat,
        Mnemonic::Nop | Mnemonic::Pause => op.run = nop,
        _ => return lower_conditional(insn, op),
    }
    true
}

/// SETcc and CMOVcc.
fn lower_conditional(insn: &Instruction, op: &mut Op) -> bool {
    use Mnemonic::*;
    let Some(condition) = (insn.condition_code() as u8).checked_sub(1) else {
        return false;
    };
    // iced counts from 1, in encoding order.
    op.aux = condition;
    match insn.mnemonic() {
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp
        | Setl | Setge | Setle | Setg => {
            let Some((memory, _)) = single(insn, op) else {
                return false;
            };
            op.run = if memory { setcc_mem } else { setcc_reg };
        }
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns
        | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => {
            let Some((form, size)) = form(insn, op) else {
                return false;
            };
            op.run = match form {
                Form::RegReg => sized!(size, T => cmov_rr::<T>),
                _ => sized!(size, T => cmov_rm::<T>),
            };
        }
        _ => return false,
    }
    true
}
