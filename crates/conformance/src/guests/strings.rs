//! Repeated string instructions and bit strings, in a page and over its end.

use croft_engine::Engine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::program::Program;
use crate::{Outcome, check, check_eq};

guests! { "strings":
    fills [],
    copies [],
    absent_pages [Iret],
    pages_of_the_kernel [Iret],
    bit_strings [],
}

/// Four pages to copy from, and four to store to.
const SOURCE: u64 = 0x10_0000;
const TARGET: u64 = 0x10_8000;
const PAGES: usize = 4 * 0x1000;

/// A repetition.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Bytes of an element.
    size: u64,
    /// Offset in the source.
    from: u64,
    /// Offset in the target.
    to: u64,
    count: u64,
    down: bool,
}

/// Elements of each size: inside a page, to its end, beyond, none, downwards.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [1, 2, 4, 8] {
        let all = 0x1000 / size;
        for (from, to, count, down) in [
            (0, 0, 1, false),
            (0x123, 0x321, 5, false),
            (0x1000, 0x2000, all, false),
            (0x1000, 0x1FF0 - size, 16 / size, false),
            (0x1FF1, 0x1FF0, 16 / size, false),
            (0x1FF0, 0x1FF1, 16 / size, false),
            (0x1008, 0x1000, all + 1, false),
            (0x1800, 0x1808, 3 * all / 2, false),
            (0x1800, 0x1807, 0, false),
            (0x1800, 0x1807, 7, true),
            (0x2000, 0x1000, 9, true),
        ] {
            cases.push(Case {
                size,
                from,
                to,
                count,
                down,
            });
        }
    }
    cases
}

impl Case {
    /// How far an element is from the one before.
    fn step(self) -> u64 {
        match self.down {
            true => self.size.wrapping_neg(),
            false => self.size,
        }
    }

    /// The offset of element `n` from `start` on.
    fn at(self, start: u64, n: u64) -> usize {
        start.wrapping_add(self.step().wrapping_mul(n)) as usize
    }

    /// A register that was at offset `start` of `base`, after it.
    fn after(self, base: u64, start: u64) -> u64 {
        base.wrapping_add(self.at(start, self.count) as u64)
    }

    /// Runs it, and puts the registers away.
    fn emit(self, p: &mut Program, n: u64, copies: bool, source: u64) -> Result<(), IcedError> {
        p.mov(rsi, source + self.from)?;
        p.mov(rdi, TARGET + self.to)?;
        p.mov(rcx, self.count)?;
        p.mov(rax, filling(n))?;
        if self.down {
            p.std()?;
        }
        match (copies, self.size) {
            (false, 1) => p.rep().stosb()?,
            (false, 2) => p.rep().stosw()?,
            (false, 4) => p.rep().stosd()?,
            (false, _) => p.rep().stosq()?,
            (true, 1) => p.rep().movsb()?,
            (true, 2) => p.rep().movsw()?,
            (true, 4) => p.rep().movsd()?,
            (true, _) => p.rep().movsq()?,
        }
        p.cld()?;
        p.put(3 * n, rsi)?;
        p.put(3 * n + 1, rdi)?;
        p.put(3 * n + 2, rcx)
    }
}

/// What the `n`th repetition fills with.
fn filling(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x0123_4567_89AB_CDEF)
}

/// A byte that differs from its neighbours.
fn pattern(n: usize) -> u8 {
    (n.wrapping_mul(0x9E37_79B1) >> 13) as u8
}

/// Each case twice, so that the pages are known the second time.
fn run(engine: &dyn Engine, copies: bool, source: u64) -> Outcome {
    let mut m = Machine::long(engine)?;
    let mut memory: Vec<u8> = (0..PAGES).map(pattern).collect();
    m.ram.write(SOURCE, &memory)?;
    m.ram.write(TARGET, &memory)?;
    let from = memory.clone();
    let cases = [cases(), cases()].concat();
    m.program(|p| {
        for (n, case) in (0..).zip(&cases) {
            case.emit(p, n, copies, source)?;
        }
        p.done()
    })?;
    m.run()?;
    for (n, case) in (0..).zip(&cases) {
        for element in 0..case.count {
            let (to, size) = (case.at(case.to, element), case.size as usize);
            let at = case.at(case.from, element);
            // An element is loaded as a whole.
            let value = match copies {
                false => filling(n).to_le_bytes()[..size].to_vec(),
                true if source == TARGET => memory[at..at + size].to_vec(),
                true => from[at..at + size].to_vec(),
            };
            memory[to..to + size].copy_from_slice(&value);
        }
        let left_at = if copies {
            case.after(source, case.from)
        } else {
            source + case.from
        };
        check_eq!(m.slot(3 * n)?, left_at, "RSI after {case:x?}");
        check_eq!(
            m.slot(3 * n + 1)?,
            case.after(TARGET, case.to),
            "RDI after {case:x?}"
        );
        check_eq!(m.slot(3 * n + 2)?, 0, "RCX after {case:x?}");
    }
    let mut found = vec![0; PAGES];
    m.ram.read(TARGET, &mut found)?;
    let wrong = found.iter().zip(&memory).position(|(a, b)| a != b);
    check!(wrong.is_none(), "byte {wrong:x?} of the target");
    Ok(())
}

fn fills(engine: &dyn Engine) -> Outcome {
    run(engine, false, SOURCE)
}

/// From elsewhere, and from memory that is overwritten meanwhile.
fn copies(engine: &dyn Engine) -> Outcome {
    run(engine, true, SOURCE)?;
    run(engine, true, TARGET)
}

/// A fault leaves the registers at the element that made it.
fn absent_pages(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let absent = TARGET + 0x1000;
    m.map(absent, 0)?;
    m.program(|p| {
        p.mov(rax, qword_ptr(TARGET))?;
        p.mov(qword_ptr(TARGET), rax)?;
        p.mov(rdi, absent - 16)?;
        p.mov(ecx, 5)?;
        p.pf(2, absent, |a| a.rep().stosq())?;
        p.put(0, rdi)?;
        p.put(1, rcx)?;
        p.mov(rsi, absent - 8)?;
        p.mov(rdi, SOURCE)?;
        p.mov(ecx, 3)?;
        p.pf(0, absent, |a| a.rep().movsq())?;
        p.put(2, rsi)?;
        p.put(3, rdi)?;
        p.put(4, rcx)?;
        p.done()
    })?;
    m.run()?;
    let slots = [absent, 3, absent, SOURCE + 8, 2];
    for (n, expected) in (0..).zip(slots) {
        check_eq!(m.slot(n)?, expected, "slot {n}");
    }
    Ok(())
}

/// The kernel may store to a page, and has: a program may not.
fn pages_of_the_kernel(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.put(TARGET, 7)?;
    m.put(SOURCE, 8)?;
    let fill = |p: &mut Program, address: u64| {
        p.mov(rdi, address)?;
        p.mov(ecx, 8)?;
        p.xor(eax, eax)
    };
    m.program(|p| {
        fill(p, TARGET + 0x100)?;
        p.rep().stosb()?;
        p.user(|p| {
            fill(p, TARGET)?;
            p.pf(7, TARGET, |a| a.rep().stosb())?;
            p.mov(rsi, TARGET)?;
            p.mov(rdi, ALIAS + DATA)?;
            p.pf(5, TARGET, |a| a.rep().movsb())?;
            // Its own memory it may fill and copy.
            fill(p, ALIAS + SOURCE)?;
            p.rep().stosb()?;
            p.put_user(0, rcx)
        })?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.get(TARGET)?, 7, "a page of the kernel's");
    check_eq!(m.get(SOURCE)?, 0, "the program's page");
    check_eq!(m.slot(0)?, 0, "RCX");
    Ok(())
}

/// Bits that are far from the operand, before and behind it.
fn bit_strings(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let memory: Vec<u8> = (0..PAGES).map(pattern).collect();
    m.ram.write(TARGET, &memory)?;
    let middle = TARGET + 0x2000;
    let numbers: [i32; 12] = [0, 1, 31, 32, 63, 64, -1, -32, -33, -64, 0x7FFF, -0x8000];
    m.program(|p| {
        p.mov(rbx, middle)?;
        for (n, &number) in (0..).zip(&numbers) {
            // The upper half is no part of a number of 32 bits.
            p.mov(rdx, 0x5555_5555_0000_0000 | u64::from(number as u32))?;
            p.xor(eax, eax)?;
            p.bt(dword_ptr(rbx), edx)?;
            p.adc(rax, rax)?;
            p.mov(r10, i64::from(number))?;
            // ZF stays as it was: set by the comparison.
            p.cmp(rbx, rbx)?;
            p.bt(qword_ptr(rbx + 4), r10)?;
            p.setc(cl)?;
            p.setz(ch)?;
            p.movzx(ecx, cx)?;
            p.shl(rcx, 8)?;
            p.or(rax, rcx)?;
            p.put(n, rax)?;
        }
        p.done()
    })?;
    m.run()?;
    let bit = |from: i64, number: i32| {
        let at = from + i64::from(number).div_euclid(8);
        u64::from(memory[at as usize] >> number.rem_euclid(8) & 1)
    };
    for (n, &number) in (0..).zip(&numbers) {
        let expected = bit(0x2000, number) | bit(0x2004, number) << 8 | 1 << 16;
        check_eq!(m.slot(n)?, expected, "bit {number}");
    }
    Ok(())
}
