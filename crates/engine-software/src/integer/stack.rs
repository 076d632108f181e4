//! PUSH POP PUSHA POPA ENTER LEAVE (flags and segment registers apart).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::operand::{NEXT, is_gpr, is_immediate, offset};
use crate::cpu::{CodeSize, Cpu, gpr, seg};
use crate::fault::Exec;
use crate::op::{Flow, Handler, Op};
use crate::word::Word;

fn push_reg<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.get::<T>(op.src);
    cpu.push(value)?;
    NEXT
}

fn push_imm<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    cpu.push(T::from_u64(op.imm))?;
    NEXT
}

fn push_mem<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.load::<T>(op)?;
    cpu.push(value)?;
    NEXT
}

fn pop_reg<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let value = cpu.pop::<T>()?;
    cpu.put(op.dst, value);
    NEXT
}

/// The destination's address is computed with RSP already incremented
/// (SDM vol. 2, POP); nothing changes if storing faults.
fn pop_mem<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    let value = cpu.pop::<T>()?;
    if let Err(fault) = cpu.store(op, value) {
        cpu.set_r64(gpr::RSP, rsp);
        return Err(fault);
    }
    NEXT
}

fn pusha<T: Word>(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    for index in 0..8 {
        let value = if index == gpr::RSP {
            rsp
        } else {
            cpu.r64(index)
        };
        if let Err(fault) = cpu.push(T::from_u64(value)) {
            cpu.set_r64(gpr::RSP, rsp);
            return Err(fault);
        }
    }
    NEXT
}

fn popa<T: Word>(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    let mut values = [T::default(); 8];
    for value in values.iter_mut().rev() {
        match cpu.pop::<T>() {
            Ok(popped) => *value = popped,
            Err(fault) => {
                cpu.set_r64(gpr::RSP, rsp);
                return Err(fault);
            }
        }
    }
    for (index, value) in values.into_iter().enumerate() {
        if index != gpr::RSP {
            cpu.put(index as u8 * 8, value);
        }
    }
    NEXT
}

fn leave<T: Word>(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    let frame = cpu.r64(gpr::RBP);
    cpu.set_rsp(frame);
    match cpu.pop::<T>() {
        Ok(value) => cpu.put(gpr::RBP as u8 * 8, value),
        Err(fault) => {
            cpu.set_r64(gpr::RSP, rsp);
            return Err(fault);
        }
    }
    NEXT
}

/// ENTER: `imm` is the frame size, `aux` the nesting level (0–31).
fn enter<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let rsp = cpu.r64(gpr::RSP);
    match enter_parts::<T>(cpu, op) {
        Ok(frame) => {
            cpu.put(gpr::RBP as u8 * 8, T::from_u64(frame));
            NEXT
        }
        Err(fault) => {
            cpu.set_r64(gpr::RSP, rsp);
            Err(cpu.on_stack(fault))
        }
    }
}

fn enter_parts<T: Word>(cpu: &mut Cpu, op: &Op) -> Exec<u64> {
    let mut rbp = cpu.r64(gpr::RBP);
    cpu.push(T::from_u64(rbp))?;
    let frame = cpu.r64(gpr::RSP);
    for _ in 1..op.aux {
        rbp = rbp.wrapping_sub(T::SIZE);
        let at = cpu.linear_at(seg::SS, rbp & cpu.stack_mask, T::SIZE, false)?;
        let display = cpu.read::<T>(at)?;
        cpu.push(display)?;
    }
    if op.aux != 0 {
        cpu.push(T::from_u64(frame))?;
    }
    let rsp = cpu.r64(gpr::RSP).wrapping_sub(op.imm);
    // The new top of the stack must be writable (SDM vol. 2, ENTER).
    let at = cpu.linear_at(seg::SS, rsp & cpu.stack_mask, T::SIZE, true)?;
    cpu.probe(at, T::SIZE, true)?;
    cpu.set_rsp(rsp);
    Ok(frame)
}

fn pick(size: usize, two: Handler, four: Handler, eight: Handler) -> Handler {
    match size {
        2 => two,
        4 => four,
        _ => eight,
    }
}

macro_rules! pick {
    ($size:expr, $handler:ident) => {
        pick($size, $handler::<u16>, $handler::<u32>, $handler::<u64>)
    };
}

pub fn lower(insn: &Instruction, op: &mut Op, _: CodeSize) -> bool {
    let moved = insn.stack_pointer_increment().unsigned_abs() as usize;
    match insn.mnemonic() {
        Mnemonic::Push if is_gpr(insn, 0) => {
            op.src = offset(insn.op0_register());
            op.run = pick!(moved, push_reg);
        }
        Mnemonic::Push if insn.op0_kind() == OpKind::Memory => {
            op.run = pick!(moved, push_mem);
        }
        Mnemonic::Push if is_immediate(insn.op0_kind()) => {
            op.imm = insn.immediate(0);
            op.run = pick!(moved, push_imm);
        }
        Mnemonic::Pop if is_gpr(insn, 0) => {
            op.dst = offset(insn.op0_register());
            op.run = pick!(moved, pop_reg);
        }
        Mnemonic::Pop if insn.op0_kind() == OpKind::Memory => {
            op.run = pick!(moved, pop_mem);
        }
        Mnemonic::Pusha => op.run = pusha::<u16>,
        Mnemonic::Pushad => op.run = pusha::<u32>,
        Mnemonic::Popa => op.run = popa::<u16>,
        Mnemonic::Popad => op.run = popa::<u32>,
        Mnemonic::Leave => {
            op.run = match insn.code() {
                Code::Leavew => leave::<u16>,
                Code::Leaved => leave::<u32>,
                _ => leave::<u64>,
            };
        }
        Mnemonic::Enter => {
            op.imm = u64::from(insn.immediate16());
            op.aux = insn.immediate8_2nd() & 31;
            op.run = match insn.code() {
                Code::Enterw_imm16_imm8 => enter::<u16>,
                Code::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            };
        }
        _ => return false,
    }
    true
}
