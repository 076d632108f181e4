//! Accesses one behind the other by the same register, in a page and over its
//! end, with faults among them.

use croft_engine::Engine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::program::Program;
use crate::{Failure, Outcome, check_eq};

guests! { "accesses":
    saved_registers [],
    fields [],
    calls_and_returns [],
    faults_between [Iret],
    return_to_nowhere [Iret],
    moved_bases [],
}

/// A page, and the one behind it.
const PAGE: u64 = 0x10_8000;
const NEXT: u64 = PAGE + 0x1000;

/// Where a row of accesses begins: in the page, at its end, over it.
const PLACES: [u64; 9] = [
    PAGE + 0x800,
    NEXT - 0x100,
    NEXT - 64,
    NEXT - 31,
    NEXT - 16,
    NEXT - 8,
    NEXT - 4,
    NEXT,
    NEXT + 24,
];

/// A number for each place and register.
fn number(place: u64, n: u64) -> u64 {
    (place ^ n << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Runs `body` at each place, twice, so that the pages are known the second
/// time; it has so many `slots`, from the number that it is given on.
fn at_places(
    m: &mut Machine,
    slots: u64,
    mut body: impl FnMut(&mut Program, u64, u64) -> Result<(), IcedError>,
) -> Result<Vec<(u64, u64)>, Failure> {
    let places: Vec<_> = PLACES.iter().chain(&PLACES).copied().collect();
    let numbers = (0..).step_by(slots as usize);
    let numbered: Vec<_> = places.into_iter().zip(numbers).collect();
    m.program(|p| {
        for &(place, slot) in &numbered {
            body(p, place, slot)?;
        }
        p.done()
    })?;
    m.run()?;
    Ok(numbered)
}

/// What is pushed comes back, is where it belongs, and flags pass by.
fn saved_registers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let places = at_places(&mut m, 9, |p, place, slot| {
        for (n, register) in (0..).zip([rbx, r9, r12, r15]) {
            p.mov(register, number(place, n))?;
        }
        p.mov(r8, rsp)?;
        p.mov(rsp, place)?;
        p.stc()?;
        p.push(rbx)?;
        p.mov(rbx, r12)?;
        p.push(r9)?;
        p.push(-5)?;
        p.push(r15)?;
        p.setc(cl)?;
        p.sub(rsp, 0x18)?;
        p.mov(qword_ptr(rsp + 8), rbx)?;
        p.add(dword_ptr(rsp + 12), 1)?;
        p.mov(rsi, rsp)?;
        p.lea(rdi, qword_ptr(rsp + 3))?;
        p.mov(rdx, qword_ptr(rsp + 8))?;
        p.add(rsp, 0x18)?;
        p.pop(rax)?;
        p.pop(r10)?;
        p.lea(rbp, qword_ptr(rsp + rax * 2 + 1))?;
        p.pop(r11)?;
        p.pop(rbx)?;
        p.mov(r14, rsp)?;
        p.mov(rsp, r8)?;
        p.movzx(ecx, cl)?;
        for (n, register) in (slot..).zip([rax, r10, r11, rbx, rdx, rsi, rdi, rbp, r14]) {
            p.put(n, register)?;
        }
        p.mov(qword_ptr(place - 0x40), rcx)
    })?;
    for (place, slot) in places {
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|n| number(place, n));
        let expected = [
            fourth,
            -5i64 as u64,
            second,
            first,
            third.wrapping_add(1 << 32),
            place - 0x38,
            place - 0x35,
            (place - 15).wrapping_add(fourth.wrapping_mul(2)),
            place,
        ];
        for (n, expected) in (slot..).zip(expected) {
            check_eq!(m.slot(n)?, expected, "slot {} at {place:#x}", n - slot);
        }
    }
    // Where none overlaps another.
    let place = PLACES[0];
    for (n, expected) in [(1, 0), (2, 1), (4, 3)] {
        let at = place - 8 * n;
        check_eq!(
            m.get(at)?,
            number(place, expected),
            "what is pushed at {at:#x}"
        );
    }
    check_eq!(m.get(place - 0x40)?, 1, "CF");
    Ok(())
}

/// Loads and stores of all sizes, one of which needs the flags of one before.
fn fields(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let places = at_places(&mut m, 8, |p, place, slot| {
        p.mov(rbx, place)?;
        for (n, register) in (0..).zip([rax, rcx, r10, r15]) {
            p.mov(register, number(place, n))?;
        }
        p.mov(qword_ptr(rbx), rax)?;
        p.mov(dword_ptr(rbx + 8), ecx)?;
        p.mov(word_ptr(rbx + 12), ax)?;
        p.mov(byte_ptr(rbx + 14), cl)?;
        p.mov(byte_ptr(rbx + 15), 0x5A)?;
        p.mov(qword_ptr(rbx + 16), r10)?;
        p.mov(qword_ptr(rbx - 8), r15)?;
        p.mov(rdx, qword_ptr(rbx + 8))?;
        p.stc()?;
        p.mov(r11, qword_ptr(rbx + 1))?;
        p.adc(qword_ptr(rbx + 16), rax)?;
        p.movzx(edi, word_ptr(rbx - 1))?;
        p.lea(rsi, qword_ptr(rbx + rdi * 4 - 7))?;
        p.adc(rsi, 0)?;
        p.xchg(qword_ptr(rbx + 24), r15)?;
        p.inc(dword_ptr(rbx + 28))?;
        p.mov(r9, qword_ptr(rbx + 16))?;
        p.mov(r12, qword_ptr(rbx + 24))?;
        p.put(slot, rdx)?;
        p.put(slot + 1, r11)?;
        p.put(slot + 2, r9)?;
        p.put(slot + 3, rdi)?;
        p.put(slot + 4, rsi)?;
        p.put(slot + 5, r12)?;
        p.mov(r12, qword_ptr(rbx - 8))?;
        p.put(slot + 6, r12)?;
        // By a register that what it leads to replaces.
        p.mov(qword_ptr(rbx + 24), rbx)?;
        p.mov(rax, qword_ptr(rbx))?;
        p.mov(rbx, qword_ptr(rbx + 24))?;
        p.add(rax, qword_ptr(rbx))?;
        p.put(slot + 7, rax)
    })?;
    for (place, slot) in places {
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|n| number(place, n));
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&fourth.to_le_bytes());
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..20].copy_from_slice(&second.to_le_bytes()[..4]);
        bytes[20..22].copy_from_slice(&first.to_le_bytes()[..2]);
        bytes[22] = second as u8;
        bytes[23] = 0x5A;
        bytes[24..].copy_from_slice(&third.to_le_bytes());
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        // CF was set before the addition.
        let sum = u128::from(first) + u128::from(third) + 1;
        let scaled = (word(7) & 0xFFFF) * 4;
        let last = fourth.wrapping_add(1 << 32);
        let expected = [
            word(16),
            word(9),
            sum as u64,
            scaled / 4,
            place + scaled - 7 + (sum >> 64) as u64,
            last,
            fourth,
            first.wrapping_mul(2),
        ];
        for (n, expected) in (slot..).zip(expected) {
            check_eq!(m.slot(n)?, expected, "slot {} at {place:#x}", n - slot);
        }
    }
    Ok(())
}

/// A function that saves registers, calls another, and returns, also with
/// arguments dropped.
fn calls_and_returns(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let places = at_places(&mut m, 4, |p, place, slot| {
        let [mut outer, mut inner, mut over] = [(); 3].map(|()| p.create_label());
        p.jmp(over)?;
        p.set_label(&mut outer)?;
        p.push(rbx)?;
        p.push(r12)?;
        p.mov(rbx, rdi)?;
        p.mov(r12d, 3)?;
        p.push(rdi)?;
        p.call(inner)?;
        p.add(rax, rbx)?;
        p.add(rax, r12)?;
        p.pop(r12)?;
        p.pop(rbx)?;
        p.ret()?;
        p.set_label(&mut inner)?;
        p.push(rbx)?;
        p.mov(rax, qword_ptr(rsp + 16))?;
        p.xor(ebx, ebx)?;
        p.pop(rbx)?;
        p.ret_1(8)?;
        p.set_label(&mut over)?;
        p.mov(rbx, number(place, 0))?;
        p.mov(r12, number(place, 1))?;
        p.mov(rdi, number(place, 2))?;
        p.mov(r8, rsp)?;
        p.mov(rsp, place)?;
        p.call(outer)?;
        p.mov(rsi, rsp)?;
        p.mov(rsp, r8)?;
        for (n, register) in (slot..).zip([rax, rbx, r12, rsi]) {
            p.put(n, register)?;
        }
        Ok(())
    })?;
    for (place, slot) in places {
        let [first, second, third] = [0, 1, 2].map(|n| number(place, n));
        let sum = third.wrapping_mul(2).wrapping_add(3);
        let expected = [sum, first, second, place];
        for (n, expected) in (slot..).zip(expected) {
            check_eq!(m.slot(n)?, expected, "slot {} at {place:#x}", n - slot);
        }
    }
    Ok(())
}

/// What stands before an access that faults is done, and nothing behind it.
fn faults_between(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.map(NEXT, 0)?;
    let fixed = NEXT + 0x1000;
    m.map(fixed, fixed | page::P)?;
    for n in 0..4 {
        m.put(NEXT - 32 + 8 * n, number(NEXT, n))?;
        m.put(fixed + 8 * n, number(fixed, n))?;
    }
    m.program(|p| {
        // The second time both pages are known, as far as they can be.
        for slot in [0, 9] {
            p.mov(rbx, NEXT - 16)?;
            p.stc()?;
            p.mov(rax, qword_ptr(rbx))?;
            p.mov(rcx, qword_ptr(rbx + 8))?;
            p.pf(0, NEXT, |a| a.mov(rdx, qword_ptr(rbx + 16)))?;
            p.setc(dl)?;
            p.movzx(edx, dl)?;
            p.put(slot, rax)?;
            p.put(slot + 1, rcx)?;
            p.put(slot + 2, rdx)?;
            p.mov(rcx, number(PAGE, slot))?;
            p.mov(qword_ptr(rbx - 8), rcx)?;
            p.pf(2, NEXT, |a| a.mov(qword_ptr(rbx + 16), rcx))?;
            p.mov(rdx, qword_ptr(rbx - 8))?;
            p.put(slot + 3, rdx)?;
            // One of them lies in both pages.
            p.mov(rdx, rbx)?;
            p.pf(0, NEXT, |a| a.mov(rdx, qword_ptr(rbx + 12)))?;
            p.put(slot + 4, rdx)?;
            // A page that may not be stored to, loaded from first.
            p.mov(rbx, fixed)?;
            p.mov(rax, qword_ptr(rbx + 8))?;
            p.pf(3, fixed + 16, |a| a.mov(qword_ptr(rbx + 16), rax))?;
            p.mov(rdx, qword_ptr(rbx + 16))?;
            p.put(slot + 5, rax)?;
            p.put(slot + 6, rdx)?;
            // Where POP faults RSP stays, and what is popped before is popped.
            p.mov(r8, rsp)?;
            p.mov(rsp, NEXT - 8)?;
            p.mov(rdx, rbx)?;
            p.pop(rax)?;
            p.pf(0, NEXT, |a| a.pop(rdx))?;
            p.mov(rcx, rsp)?;
            p.mov(rsp, r8)?;
            p.put(slot + 7, rdx)?;
            p.put(slot + 8, rcx)?;
        }
        p.done()
    })?;
    m.run()?;
    for slot in [0, 9] {
        let before = match slot {
            0 => [number(NEXT, 2), number(NEXT, 3)],
            // By then the frame of an exception in POP has been there.
            _ => [m.slot(9)?, m.slot(10)?],
        };
        let expected = [
            before[0],
            before[1],
            1,
            number(PAGE, slot),
            NEXT - 16,
            number(fixed, 1),
            number(fixed, 2),
            fixed,
            NEXT,
        ];
        for (n, expected) in (slot..).zip(expected) {
            check_eq!(m.slot(n)?, expected, "slot {n}");
        }
    }
    Ok(())
}

/// RET, after a load by the same register, to what is no address.
fn return_to_nowhere(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(PAGE + 0x800, 7)?;
    m.put(PAGE + 0x808, 1 << 63)?;
    m.program(|p| {
        // The second time the page is known.
        for slot in [0, 2] {
            p.mov(r8, rsp)?;
            p.mov(rsp, PAGE + 0x800)?;
            p.pop(rax)?;
            p.gp(0, |a| a.ret())?;
            p.mov(rcx, rsp)?;
            p.mov(rsp, r8)?;
            p.put(slot, rax)?;
            p.put(slot + 1, rcx)?;
        }
        p.done()
    })?;
    m.run()?;
    for slot in [0, 2] {
        check_eq!(m.slot(slot)?, 7, "what was popped");
        check_eq!(m.slot(slot + 1)?, PAGE + 0x808, "RSP after a failed return");
    }
    Ok(())
}

/// Between accesses by one register another that only looks like it moves.
fn moved_bases(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let places = at_places(&mut m, 4, |p, place, slot| {
        p.mov(rbp, place + 0x40)?;
        for (n, register) in (0..).zip([rax, rcx]) {
            p.mov(register, number(place, n))?;
        }
        p.mov(r8, rsp)?;
        p.sub(rsp, 0x28)?;
        p.mov(qword_ptr(rbp - 0x40), rax)?;
        p.add(rsp, 0x10)?;
        p.mov(qword_ptr(rbp - 0x38), rcx)?;
        p.add(rsp, 0x18)?;
        p.mov(rdx, qword_ptr(rbp - 0x40))?;
        p.mov(rsi, rsp)?;
        p.sub(rsi, r8)?;
        p.mov(rdi, qword_ptr(rbp - 0x38))?;
        p.add(rbp, 8)?;
        p.mov(rbx, qword_ptr(rbp - 0x40))?;
        for (n, register) in (slot..).zip([rdx, rsi, rdi, rbx]) {
            p.put(n, register)?;
        }
        Ok(())
    })?;
    for (place, slot) in places {
        let [first, second] = [0, 1].map(|n| number(place, n));
        for (n, expected) in (slot..).zip([first, 0, second, second]) {
            check_eq!(m.slot(n)?, expected, "slot {} at {place:#x}", n - slot);
        }
    }
    Ok(())
}
