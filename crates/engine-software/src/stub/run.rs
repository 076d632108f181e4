//! Handlers of ops that have a stub.

use std::mem::MaybeUninit;
use std::ptr;

use iced_x86::{Instruction, Mnemonic};

use super::planted::{Planted, planted};
use super::{Stub, Unit, signal};
use crate::cpu::{Cpu, cr4, flag, seg};
use crate::fault::{Exec, Fault, vector};
use crate::mem::Direct;
use crate::op::{Flow, Op};
use crate::vector::at;

/// Room for an operand that is not in one page of RAM. It is put at the
/// guest address's place in a cache line, so that alignment stays.
#[repr(align(64))]
struct Bounce([MaybeUninit<u8>; 128]);

impl Bounce {
    fn new() -> Self {
        Bounce([MaybeUninit::zeroed(); 128])
    }

    fn at(&mut self, linear: u64) -> *mut u8 {
        // Operands have at most 32 bytes: 63 + 32 fits.
        self.0[(linear & 63) as usize..].as_mut_ptr().cast()
    }
}

/// The operand of `size` bytes at `at`, in a bounce buffer.
///
/// # Safety
/// `at` must be [`Bounce::at`], and `size` at most 64.
unsafe fn bytes<'a>(at: *mut u8, size: u64) -> &'a mut [u8] {
    // SAFETY: the buffer is initialised (zeroed) and 64 bytes are left at any
    // `at`; the caller keeps it alive.
    unsafe { std::slice::from_raw_parts_mut(at, size.min(64) as usize) }
}

#[inline(always)]
fn stub(op: &Op) -> Exec<&Stub> {
    op.side().stub.as_deref().ok_or(crate::fault::Fault)
}

/// Raises the exception that a stub's instruction raised on the host.
#[cold]
#[inline(never)]
fn trapped(cpu: &mut Cpu, code: u32) -> crate::fault::Fault {
    match (code & !signal::TRAPPED) as u8 {
        vector::XM if cpu.cr4 & cr4::OSXMMEXCPT != 0 => cpu.raise(vector::XM),
        vector::MF => cpu.raise(vector::MF),
        vector::GP => cpu.gp(0),
        vector::AC => cpu.raise_code(vector::AC, 0),
        vector::DE => cpu.raise(vector::DE),
        // #XM without CR4.OSXMMEXCPT is #UD.
        _ => cpu.ud(),
    }
}

#[inline(always)]
fn check(cpu: &mut Cpu, code: u32) -> Exec {
    if code != 0 {
        return Err(trapped(cpu, code));
    }
    Ok(())
}

#[inline(always)]
fn operand(cpu: &mut Cpu, op: &Op, stub: &Stub) -> Exec<u64> {
    let linear = cpu.linear(op, u64::from(stub.size), stub.writes)?;
    if linear & u64::from(stub.align) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(linear)
}

/// Registers only.
pub fn registers(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let stub = stub(op)?;
    cpu.require_unit(stub.unit)?;
    // SAFETY: the stub has no memory operand.
    let code = unsafe { stub.call(cpu, ptr::null_mut()) };
    check(cpu, code)?;
    Ok(Flow::Next)
}

/// Reads memory.
pub fn load(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let stub = stub(op)?;
    cpu.require_unit(stub.unit)?;
    let linear = operand(cpu, op, stub)?;
    let code = execute_load(cpu, stub, linear)?;
    check(cpu, code)?;
    Ok(Flow::Next)
}

/// The operand on the host, if it is in one page of RAM.
#[inline(always)]
fn direct(cpu: &mut Cpu, stub: &Stub, linear: u64, write: bool) -> Exec<Option<Direct>> {
    if stub.misalignable && cpu.rflags & flag::AC != 0 {
        return Ok(None);
    }
    cpu.direct(linear, u64::from(stub.size), write)
}

#[inline(always)]
fn execute_load(cpu: &mut Cpu, stub: &Stub, linear: u64) -> Exec<u32> {
    let size = u64::from(stub.size);
    match direct(cpu, stub, linear, false)? {
        Some(direct) if planted() != Planted::OperandFetch => {
            // SAFETY: `direct` says that `size` bytes are there.
            Ok(unsafe { stub.call(cpu, direct.host) })
        }
        direct => {
            let mut bounce = Bounce::new();
            let at = bounce.at(linear);
            if direct.is_none() {
                // SAFETY: `at` is in the bounce buffer; operands of loads
                // have at most 32 bytes.
                cpu.read_bytes(linear, unsafe { bytes(at, size) })?;
            }
            // SAFETY: `at` has room for the operand.
            Ok(unsafe { stub.call(cpu, at) })
        }
    }
}

/// Writes memory.
pub fn store(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    let stub = stub(op)?;
    cpu.require_unit(stub.unit)?;
    let linear = operand(cpu, op, stub)?;
    execute_store(cpu, stub, linear, |_| true)?;
    Ok(Flow::Next)
}

/// `complete` says, after the stub has run, whether the instruction has
/// stored its operand: x87 instructions with an unmasked exception may not.
#[inline(always)]
fn execute_store(
    cpu: &mut Cpu,
    stub: &Stub,
    linear: u64,
    complete: impl FnOnce(&Cpu) -> bool,
) -> Exec {
    let size = u64::from(stub.size);
    match direct(cpu, stub, linear, true) {
        Ok(Some(direct)) => {
            // SAFETY: `direct` says that `size` bytes are there, writable.
            let code = unsafe { stub.call(cpu, direct.host) };
            check(cpu, code)?;
            cpu.stored(&direct, size);
            return Ok(());
        }
        Ok(None) => {
            if let Err(fault) = cpu.probe_misaligned(linear, size, true) {
                return without_memory(cpu, stub, linear, fault, complete);
            }
        }
        Err(fault) => return without_memory(cpu, stub, linear, fault, complete),
    }
    let mut bounce = Bounce::new();
    let at = bounce.at(linear);
    // SAFETY: `at` has room for the operand.
    let code = unsafe { stub.call(cpu, at) };
    check(cpu, code)?;
    if complete(cpu) {
        // SAFETY: `at` is in the bounce buffer, which the stub has filled.
        cpu.write_bytes(linear, unsafe { bytes(at, size) })?;
    }
    Ok(())
}

/// A store whose memory faults. The instruction has computed before it
/// stores: its own exceptions go before `fault`, and MXCSR and the change
/// from x87 to MMX stay as they have become.
#[cold]
#[inline(never)]
fn without_memory(
    cpu: &mut Cpu,
    stub: &Stub,
    linear: u64,
    fault: Fault,
    complete: impl FnOnce(&Cpu) -> bool,
) -> Exec {
    let x87 = match stub.unit {
        Unit::X87 | Unit::X87NoWait => Some(cpu.vector.x87),
        Unit::Mmx | Unit::SseMmx | Unit::Avx => None,
        _ => return Err(fault),
    };
    let tags = matches!(stub.unit, Unit::Mmx).then_some(cpu.vector.x87[at::FTW]);
    let mut bounce = Bounce::new();
    let place = bounce.at(linear);
    // SAFETY: `place` has room for the operand.
    let code = unsafe { stub.call(cpu, place) };
    check(cpu, code)?;
    if let Some(before) = x87 {
        if !complete(cpu) {
            return Ok(());
        }
        cpu.vector.x87 = before;
    } else if let Some(tags) = tags {
        // TOP has become 0, but the tags follow with the store.
        cpu.vector.x87[at::FTW] = tags;
    }
    Err(fault)
}

/// x87 and MMX, with or without memory operand.
pub fn x87(cpu: &mut Cpu, op: &Op) -> Exec<Flow> {
    const INVALID_OVERFLOW_UNDERFLOW: u16 = 1 << 0 | 1 << 3 | 1 << 4;
    let stub = stub(op)?;
    cpu.require_unit(stub.unit)?;
    let pending = cpu.vector.x87_pending();
    if stub.size == 0 {
        // SAFETY: the stub has no memory operand.
        let code = unsafe { stub.call(cpu, ptr::null_mut()) };
        check(cpu, code)?;
    } else {
        let linear = operand(cpu, op, stub)?;
        if stub.writes {
            // None were unmasked before (or this is a control instruction,
            // which always stores): those now unmasked are this
            // instruction's. Inexact results are stored, the others not.
            execute_store(cpu, stub, linear, |cpu| {
                pending || cpu.vector.x87_unmasked() & INVALID_OVERFLOW_UNDERFLOW == 0
            })?;
        } else {
            let code = execute_load(cpu, stub, linear)?;
            check(cpu, code)?;
        }
    }
    if stub.x87.sets {
        set_pointers(cpu, op, stub);
    }
    Ok(Flow::Next)
}

/// FIP, FDP and FOP (SDM vol. 1, 8.1.8 and 8.1.9): the opcode is kept for
/// unmasked exceptions only, as since the Pentium 4.
fn set_pointers(cpu: &mut Cpu, op: &Op, stub: &Stub) {
    let unmasked = cpu.vector.x87_pending();
    let real = cpu.real_or_vm86();
    let base = |cpu: &Cpu, segment: u8| {
        if real {
            cpu.segs[usize::from(segment)].base
        } else {
            0
        }
    };
    cpu.vector.fip = op.rip(cpu).wrapping_add(base(cpu, seg::CS));
    if stub.size > 0 && (stub.x87.data_always || unmasked) {
        cpu.vector.fdp = cpu.ea(op).wrapping_add(base(cpu, op.seg));
    }
    if unmasked {
        cpu.vector.fop = stub.x87.opcode;
    }
}

/// Control instructions leave the pointers alone (SDM vol. 1, 8.1.8).
pub fn is_x87_control(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Fnclex
            | Mnemonic::Fldcw
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
    )
}

/// FOP of an x87 instruction: low three bits of the escape byte, ModRM byte.
pub fn x87_opcode(bytes: &[u8]) -> u16 {
    let at = bytes.iter().position(|byte| (0xD8..=0xDF).contains(byte));
    match at.map(|n| (bytes.get(n), bytes.get(n + 1))) {
        Some((Some(&escape), Some(&modrm))) => u16::from(escape & 7) << 8 | u16::from(modrm),
        _ => 0,
    }
}
