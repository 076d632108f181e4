//! Exception handlers of guests: each logs what happened and resumes, at the
//! fix-up when the address of the frame has one.
//!
//! A fix-up is three words: the address, where to go on, and whether to leave
//! user mode on the way. The table ends with an address of all ones.

use croft_memory::GuestRam;
use iced_x86::code_asm::*;

use crate::Failure;
use crate::layout::*;
use crate::tables::{INTERRUPT_GATE, USER_GATE, gate32, gate64};

/// Vectors that push an error code (SDM vol. 3, table 6-1).
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Bytes between the entries of two vectors.
const STEP: u64 = 12;
const COMMON: u64 = 256 * STEP;

/// Entry of a vector's handler in 64-bit mode.
pub fn entry(vector: u8) -> u64 {
    HANDLERS + STEP * u64::from(vector)
}

/// Writes handlers and IDTs of both modes.
pub fn write(ram: &GuestRam) -> Result<(), Failure> {
    for vector in 0..=255 {
        let access = match vector {
            ESCAPE | 3 | 4 => USER_GATE,
            _ => INTERRUPT_GATE,
        };
        let ist = u8::from(vector == vector::DF);
        let gate = gate64(KERNEL_CS, entry(vector), access, ist);
        let at = u64::from(vector);
        ram.write(IDT + 16 * at, &gate.to_le_bytes())?;
        let target = HANDLERS32 + STEP * at;
        let gate = gate32(KERNEL_CS32, target as u32, access, 0);
        ram.write(IDT32 + 8 * at, &gate.to_le_bytes())?;
    }
    for (bits, base) in [(64, HANDLERS), (32, HANDLERS32)] {
        for vector in 0..=255 {
            let at = base + STEP * u64::from(vector);
            let mut a = CodeAssembler::new(bits)?;
            if !has_error_code(vector) {
                a.push(0)?;
            }
            a.push(i32::from(vector))?;
            a.jmp(base + COMMON)?;
            ram.write(at, &a.assemble(at)?)?;
        }
    }
    ram.write(HANDLERS + COMMON, &common64()?.assemble(HANDLERS + COMMON)?)?;
    ram.write(
        HANDLERS32 + COMMON,
        &common32()?.assemble(HANDLERS32 + COMMON)?,
    )?;
    Ok(())
}

/// On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
fn common64() -> Result<CodeAssembler, Failure> {
    let mut a = CodeAssembler::new(64)?;
    let (mut search, mut next, mut found) = (a.create_label(), a.create_label(), a.create_label());
    let (mut alias, mut resume, mut escape) =
        (a.create_label(), a.create_label(), a.create_label());
    let mut full = a.create_label();
    for register in [rax, rbx, rcx, rdx] {
        a.push(register)?;
    }
    a.cmp(qword_ptr(rsp + 32), i32::from(ESCAPE))?;
    a.je(search)?;
    a.mov(rax, qword_ptr(LOG))?;
    a.cmp(rax, MAX_RECORDS as i32)?;
    a.jae(full)?;
    a.shl(rax, 7)?;
    a.lea(rbx, ptr(rax + RECORDS as i32))?;
    for n in 0..7 {
        a.mov(rcx, qword_ptr(rsp + 32 + 8 * n))?;
        a.mov(qword_ptr(rbx + 8 * n), rcx)?;
    }
    a.mov(rcx, cr2)?;
    a.mov(qword_ptr(rbx + 56), rcx)?;
    a.mov(rcx, dr6)?;
    a.mov(qword_ptr(rbx + 64), rcx)?;
    a.inc(qword_ptr(LOG))?;

    a.set_label(&mut search)?;
    a.mov(rcx, qword_ptr(rsp + 48))?;
    a.mov(ebx, FIXUPS as u32)?;
    a.set_label(&mut next)?;
    a.mov(rax, qword_ptr(rbx))?;
    a.cmp(rax, -1)?;
    a.je(resume)?;
    a.cmp(rax, rcx)?;
    a.je(found)?;
    a.add(rax, ALIAS as i32)?;
    a.cmp(rax, rcx)?;
    a.je(alias)?;
    a.add(rbx, 24)?;
    a.jmp(next)?;

    a.set_label(&mut alias)?;
    a.mov(rax, qword_ptr(rbx + 8))?;
    a.add(rax, ALIAS as i32)?;
    a.cmp(qword_ptr(rbx + 16), 0)?;
    a.mov(qword_ptr(rsp + 48), rax)?;
    a.je(resume)?;
    a.set_label(&mut found)?;
    a.mov(rax, qword_ptr(rbx + 8))?;
    a.cmp(qword_ptr(rbx + 16), 0)?;
    a.jne(escape)?;
    a.mov(qword_ptr(rsp + 48), rax)?;

    a.set_label(&mut resume)?;
    for register in [rdx, rcx, rbx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()?;

    a.set_label(&mut escape)?;
    a.mov(qword_ptr(ESCAPE_TO), rax)?;
    for register in [rdx, rcx, rbx, rax] {
        a.pop(register)?;
    }
    a.mov(rsp, qword_ptr(KERNEL_RSP))?;
    a.jmp(qword_ptr(ESCAPE_TO))?;

    a.set_label(&mut full)?;
    a.out(i32::from(PORT_FULL), al)?;
    a.hlt()?;
    Ok(a)
}

/// As [`common64`], in words of 32 bits. The log has the same form, its upper
/// halves zero.
fn common32() -> Result<CodeAssembler, Failure> {
    let mut a = CodeAssembler::new(32)?;
    let (mut search, mut next, mut found) = (a.create_label(), a.create_label(), a.create_label());
    let (mut alias, mut resume, mut escape) =
        (a.create_label(), a.create_label(), a.create_label());
    let (mut full, mut kernel) = (a.create_label(), a.create_label());
    for register in [eax, ebx, ecx, edx] {
        a.push(register)?;
    }
    a.mov(eax, dword_ptr(esp + 16))?;
    a.cmp(eax, i32::from(ESCAPE))?;
    a.je(search)?;
    a.mov(eax, dword_ptr(LOG as i32).cs())?;
    a.cmp(eax, MAX_RECORDS as i32)?;
    a.jae(full)?;
    // Only CS and SS are certain to be flat here.
    a.push(ds)?;
    a.mov(ecx, i32::from(KERNEL_DS))?;
    a.mov(ds, ecx)?;
    a.shl(eax, 7)?;
    a.lea(ebx, ptr(eax + RECORDS as i32))?;
    for n in 0..5 {
        a.mov(ecx, dword_ptr(esp + 20 + 4 * n))?;
        a.mov(dword_ptr(ebx + 8 * n), ecx)?;
    }
    a.test(dword_ptr(esp + 32), 3)?;
    a.je(kernel)?;
    for n in 5..7 {
        a.mov(ecx, dword_ptr(esp + 20 + 4 * n))?;
        a.mov(dword_ptr(ebx + 8 * n), ecx)?;
    }
    a.set_label(&mut kernel)?;
    a.mov(ecx, cr2)?;
    a.mov(dword_ptr(ebx + 56), ecx)?;
    a.mov(ecx, dr6)?;
    a.mov(dword_ptr(ebx + 64), ecx)?;
    a.inc(dword_ptr(LOG))?;
    a.pop(ds)?;

    a.set_label(&mut search)?;
    a.mov(ecx, dword_ptr(esp + 24))?;
    a.mov(ebx, FIXUPS as i32)?;
    a.set_label(&mut next)?;
    a.mov(eax, dword_ptr(ebx).cs())?;
    a.cmp(eax, -1)?;
    a.je(resume)?;
    a.cmp(eax, ecx)?;
    a.je(found)?;
    a.add(eax, ALIAS as i32)?;
    a.cmp(eax, ecx)?;
    a.je(alias)?;
    a.add(ebx, 24)?;
    a.jmp(next)?;

    a.set_label(&mut alias)?;
    a.mov(eax, dword_ptr(ebx + 8).cs())?;
    a.add(eax, ALIAS as i32)?;
    a.mov(dword_ptr(esp + 24), eax)?;
    a.cmp(dword_ptr(ebx + 16).cs(), 0)?;
    a.je(resume)?;
    a.set_label(&mut found)?;
    a.mov(eax, dword_ptr(ebx + 8).cs())?;
    a.cmp(dword_ptr(ebx + 16).cs(), 0)?;
    a.jne(escape)?;
    a.mov(dword_ptr(esp + 24), eax)?;

    a.set_label(&mut resume)?;
    for register in [edx, ecx, ebx, eax] {
        a.pop(register)?;
    }
    a.add(esp, 8)?;
    a.iretd()?;

    a.set_label(&mut escape)?;
    a.mov(ecx, i32::from(KERNEL_DS))?;
    a.mov(ds, ecx)?;
    a.mov(es, ecx)?;
    a.mov(dword_ptr(ESCAPE_TO), eax)?;
    for register in [edx, ecx, ebx, eax] {
        a.pop(register)?;
    }
    a.mov(esp, dword_ptr(KERNEL_RSP))?;
    a.jmp(dword_ptr(ESCAPE_TO))?;

    a.set_label(&mut full)?;
    a.out(i32::from(PORT_FULL), al)?;
    a.hlt()?;
    Ok(a)
}
