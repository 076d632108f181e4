//! CPUID, MSRs, XSAVE, the TSC and KVM's paravirtual interface.

use croft_engine::Engine;
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::Machine;
use crate::{Outcome, check, check_eq};

guests! { "features":
    cpuid_is_the_profile [],
    cpuid_follows_state [],
    model_specific_registers [Iret],
    unknown_registers_fault [Iret],
    extended_state [Iret, Vector],
    extended_state_faults [Iret, Vector],
    time_stamp_counter [],
    paused_clock_stands_still [],
    clock_page [],
    end_of_interrupt_by_memory [Iret],
}

fn cpuid_is_the_profile(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let leaves: Vec<_> = m.profile.leaves.clone();
    for (n, leaf) in leaves.iter().enumerate() {
        let at = DATA + 8 * n as u64;
        let input = u64::from(leaf.function) | u64::from(leaf.index.unwrap_or(0)) << 32;
        m.put(at, input)?;
    }
    m.program(|p| {
        let mut again = p.create_label();
        p.mov(esi, DATA as i32)?;
        p.mov(edi, DATA as i32 + 0x4000)?;
        p.mov(ebp, leaves.len() as i32)?;
        p.set_label(&mut again)?;
        p.mov(eax, dword_ptr(rsi))?;
        p.mov(ecx, dword_ptr(rsi + 4))?;
        p.cpuid()?;
        p.mov(dword_ptr(rdi), eax)?;
        p.mov(dword_ptr(rdi + 4), ebx)?;
        p.mov(dword_ptr(rdi + 8), ecx)?;
        p.mov(dword_ptr(rdi + 12), edx)?;
        p.add(esi, 8)?;
        p.add(edi, 16)?;
        p.dec(ebp)?;
        p.jne(again)?;
        p.done()
    })?;
    m.run()?;
    for (n, leaf) in leaves.iter().enumerate() {
        let at = DATA + 0x4000 + 16 * n as u64;
        let (low, high) = (m.get(at)?, m.get(at + 8)?);
        let found = [
            low as u32,
            (low >> 32) as u32,
            high as u32,
            (high >> 32) as u32,
        ];
        let mut wanted = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
        // The engine's own: APIC id, OSXSAVE, topology id, XSAVE size.
        match (leaf.function, leaf.index.unwrap_or(0)) {
            (1, _) => {
                wanted[1] = wanted[1] & 0xFF_FFFF | found[1] & 0xFF00_0000;
                wanted[2] = wanted[2] & !(1 << 27) | found[2] & 1 << 27;
            }
            (0xB | 0x1F, _) => wanted[3] = found[3],
            (0xD, 0 | 1) => wanted[1] = found[1],
            _ => {}
        }
        check_eq!(found, wanted, "leaf {:#x}.{:?}", leaf.function, leaf.index);
    }
    Ok(())
}

fn cpuid_follows_state(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(eax, 1)?;
        p.cpuid()?;
        p.put(0, rcx)?;
        p.mov(rax, cr4)?;
        p.bts(rax, 18)?;
        p.mov(cr4, rax)?;
        p.mov(eax, 1)?;
        p.cpuid()?;
        p.put(1, rcx)?;
        for (slot, xcr0) in [(2, 1), (3, 7)] {
            p.xor(ecx, ecx)?;
            p.xor(edx, edx)?;
            p.mov(eax, xcr0)?;
            p.xsetbv()?;
            p.mov(eax, 0xD)?;
            p.xor(ecx, ecx)?;
            p.cpuid()?;
            p.put(slot, rbx)?;
        }
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)? >> 27 & 1, 0, "OSXSAVE before");
    check_eq!(m.slot(1)? >> 27 & 1, 1, "OSXSAVE after");
    check_eq!(m.slot(2)?, 576, "XSAVE area of x87");
    check_eq!(m.slot(3)?, 832, "XSAVE area of AVX");
    Ok(())
}

fn model_specific_registers(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    let registers: [(u32, u64); 9] = [
        (0x174, 0x1234),
        (0x175, 0xFFFF_8000_0000_1000),
        (0x176, 0xFFFF_8000_0000_2000),
        (0xC000_0081, 0x0023_0010_0000_0000),
        (0xC000_0082, 0xFFFF_8000_0000_3000),
        (0xC000_0083, 0xFFFF_8000_0000_4000),
        (0xC000_0084, 0x4_7700),
        (0xC000_0102, 0xFFFF_8000_0000_5000),
        (0x277, 0x0007_0406_0007_0406),
    ];
    m.program(|p| {
        for (n, (index, value)) in registers.iter().enumerate() {
            p.wrmsr_value(*index, *value)?;
            p.xor(eax, eax)?;
            p.rdmsr_value(*index)?;
            p.put(n as u64, rax)?;
        }
        // Values that these registers refuse.
        for (index, value) in [
            (0xC000_0082u32, 0x8000_0000_0000u64),
            (0x176, 0x8000_0000_0000),
            (0xC000_0102, 0x8000_0000_0000),
            (0x277, 2),
            (crate::machine::EFER, 1 << 63),
            // LME cannot change while paging is on.
            (crate::machine::EFER, 1 | 1 << 11),
        ] {
            p.mov(ecx, index as i32)?;
            p.mov(eax, value as u32 as i32)?;
            p.mov(edx, (value >> 32) as i32)?;
            p.gp(0, |a| a.wrmsr())?;
        }
        p.done()
    })?;
    m.run()?;
    for (n, (index, value)) in registers.iter().enumerate() {
        check_eq!(m.slot(n as u64)?, *value, "MSR {index:#x}");
    }
    Ok(())
}

fn unknown_registers_fault(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        for index in [0x3u32, 0x1234_5678, 0xC000_1234, 0x4B56_4DFF, 0xFFFF_FFFF] {
            p.mov(ecx, index as i32)?;
            p.gp(0, |a| a.rdmsr())?;
            p.gp(0, |a| a.wrmsr())?;
        }
        p.done()
    })?;
    m.run()
}

fn extended_state(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if m.profile
        .leaf(1, 0)
        .is_none_or(|leaf| leaf.ecx & 1 << 28 == 0)
    {
        return Ok(());
    }
    m.state(|state| state.cr4 |= creg::OSXSAVE)?;
    m.ram.write(DATA, &[0x11; 32])?;
    m.ram.write(DATA + 32, &[0x22; 32])?;
    m.program(|p| {
        p.ud(|a| a.vmovdqu(ymm0, ymmword_ptr(DATA)))?;
        p.xor(ecx, ecx)?;
        p.xor(edx, edx)?;
        p.mov(eax, 7)?;
        p.xsetbv()?;
        p.xgetbv()?;
        p.put(0, rax)?;
        p.vmovdqu(ymm0, ymmword_ptr(DATA))?;
        p.vmovdqu(ymm1, ymmword_ptr(DATA + 32))?;
        p.mov(eax, 7)?;
        p.xsave(ptr(DATA + 0x1000))?;
        p.vzeroall()?;
        // The upper halves alone, then the rest.
        p.mov(eax, 4)?;
        p.xrstor(ptr(DATA + 0x1000))?;
        p.vmovdqu(ymmword_ptr(DATA + 64), ymm0)?;
        p.mov(eax, 2)?;
        p.xrstor(ptr(DATA + 0x1000))?;
        p.vmovdqu(ymmword_ptr(DATA + 96), ymm1)?;
        // A component whose bit the header lacks is initialised.
        p.mov(qword_ptr(DATA + 0x1000 + 512), 0)?;
        p.mov(eax, 7)?;
        p.xrstor(ptr(DATA + 0x1000))?;
        p.vmovdqu(ymmword_ptr(DATA + 128), ymm1)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 7, "XCR0");
    check_eq!(m.get(DATA + 0x1000 + 512)?, 0, "XSTATE_BV");
    check_eq!(m.get(DATA + 0x1000 + 160)?, 0x1111_1111_1111_1111, "XMM0");
    check_eq!(m.get(DATA + 0x1000 + 576)?, 0x1111_1111_1111_1111, "YMM0");
    check_eq!(m.get(DATA + 64)?, 0, "lower half, not restored");
    check_eq!(m.get(DATA + 80)?, 0x1111_1111_1111_1111, "upper half");
    check_eq!(m.get(DATA + 96)?, 0x2222_2222_2222_2222, "lower half");
    check_eq!(m.get(DATA + 136)?, 0, "an initialised register");
    Ok(())
}

fn extended_state_faults(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.xor(ecx, ecx)?;
        p.ud(|a| a.xgetbv())?;
        p.ud(|a| a.xsave(ptr(DATA)))?;
        p.mov(rax, cr4)?;
        p.bts(rax, 18)?;
        p.mov(cr4, rax)?;
        p.xor(edx, edx)?;
        // x87 off, AVX without SSE, unknown components, an unknown register.
        for value in [0, 5, 0x4000_0007] {
            p.mov(eax, value)?;
            p.gp(0, |a| a.xsetbv())?;
        }
        p.mov(ecx, 5)?;
        p.gp(0, |a| a.xgetbv())?;
        p.xor(ecx, ecx)?;
        p.mov(eax, 3)?;
        p.xsetbv()?;
        // Misaligned areas, and reserved bits in the header.
        p.gp(0, |a| a.xsave(ptr(DATA + 8)))?;
        p.mov(qword_ptr(DATA + 512), 4)?;
        p.gp(0, |a| a.xrstor(ptr(DATA)))?;
        p.mov(qword_ptr(DATA + 512), 0)?;
        p.mov(qword_ptr(DATA + 520), 1)?;
        p.gp(0, |a| a.xrstor(ptr(DATA)))?;
        p.gp(0, |a| a.fxsave(ptr(DATA + 8)))?;
        p.user(|p| p.gp(0, |a| a.xsetbv()))?;
        p.done()
    })?;
    m.run()
}

fn time_stamp_counter(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let (mut again, mut bad) = (p.create_label(), p.create_label());
        p.xor(ebx, ebx)?;
        p.mov(esi, 10_000)?;
        p.set_label(&mut again)?;
        p.rdtsc()?;
        p.shl(rdx, 32)?;
        p.or(rax, rdx)?;
        p.cmp(rax, rbx)?;
        p.jb(bad)?;
        p.mov(rbx, rax)?;
        p.dec(esi)?;
        p.jne(again)?;
        p.mov(eax, 1)?;
        p.put(0, rax)?;
        // A write moves it, and IA32_TSC_ADJUST tells by how much.
        p.wrmsr_value(0x10, 0x1000_0000_0000)?;
        p.rdmsr_value(0x10)?;
        p.put(1, rax)?;
        p.rdmsr_value(0x3B)?;
        p.put(2, rax)?;
        p.wrmsr_value(0x3B, 0)?;
        p.rdmsr_value(0x10)?;
        p.put(3, rax)?;
        p.set_label(&mut bad)?;
        p.done()
    })?;
    m.run()?;
    check_eq!(m.slot(0)?, 1, "the TSC went back");
    let second = u64::from(m.profile.tsc_khz) * 1000;
    check_eq!(
        m.slot(1)? >> 36,
        0x1000_0000_0000 >> 36,
        "TSC after a write"
    );
    check!(
        m.slot(2)? > 0x0FFF_0000_0000,
        "IA32_TSC_ADJUST {:#x}",
        m.slot(2)?
    );
    check!(m.slot(3)? < 20 * second, "TSC after the adjustment went");
    Ok(())
}

fn paused_clock_stands_still(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.rdtsc()?;
        p.shl(rdx, 32)?;
        p.or(rax, rdx)?;
        p.put(0, rax)?;
        p.done()
    })?;
    let pause = std::time::Duration::from_secs(1);
    let khz = m.profile.tsc_khz;
    let limit = u64::from(khz) * 900;
    let ticks = |time: std::time::Duration| {
        let ticks = u128::from(khz) * time.as_nanos() / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    m.partition.pause_clock();
    let before = m.partition.clock_ns();
    let mut running = std::time::Duration::ZERO;
    let began = std::time::Instant::now();
    m.run()?;
    running += began.elapsed();
    let first = m.slot(0)?;
    std::thread::sleep(pause);
    m.rewind()?;
    let began = std::time::Instant::now();
    m.run()?;
    running += began.elapsed();
    // Each entry finds it where it was paused; on hardware it counts from
    // there until RDTSC is reached.
    let apart = m.slot(0)?.abs_diff(first);
    check!(
        apart < limit + ticks(running),
        "{apart} ticks while paused, of which it ran {running:?}"
    );
    check_eq!(m.partition.clock_ns(), before, "clock while paused");
    let began = std::time::Instant::now();
    m.partition.resume_clock();
    std::thread::sleep(pause);
    m.rewind()?;
    m.run()?;
    // One pause counts, the other does not.
    let gone = m.slot(0)?.wrapping_sub(first);
    let on = began.elapsed();
    check!(
        gone > 0 && gone < limit + ticks(on),
        "{gone} ticks, {on:?} after going on"
    );
    Ok(())
}

/// True when KVM's leaf announces feature `bit`.
fn kvm_feature(m: &Machine, bit: u32) -> bool {
    let leaf = m.profile.leaf(0x4000_0001, 0);
    leaf.is_some_and(|leaf| leaf.eax >> bit & 1 != 0)
}

fn clock_page(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if !kvm_feature(&m, 3) {
        return Ok(());
    }
    m.program(|p| {
        p.wrmsr_value(0x4B56_4D01, DATA | 1)?;
        p.rdtsc()?;
        p.shl(rdx, 32)?;
        p.or(rax, rdx)?;
        p.put(0, rax)?;
        p.done()
    })?;
    let before = m.partition.clock_ns();
    m.run()?;
    let after = m.partition.clock_ns();
    check_eq!(m.get(DATA)? as u32 & 1, 0, "version");
    check!(m.get(DATA)? as u32 != 0, "the page was not written");
    let (tsc, base) = (m.get(DATA + 8)?, m.get(DATA + 16)?);
    let word = m.get(DATA + 24)?;
    let (mul, shift) = (word as u32, (word >> 32) as i8);
    let ticks = u128::from(m.slot(0)?.wrapping_sub(tsc));
    let ticks = if shift < 0 {
        ticks >> -shift
    } else {
        ticks << shift
    };
    let now = base + ((ticks * u128::from(mul)) >> 32) as u64;
    check!(
        (before..=after).contains(&now),
        "the page says {now} ns, the partition {before} to {after}"
    );
    Ok(())
}

fn end_of_interrupt_by_memory(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    if !kvm_feature(&m, 6) {
        return Ok(());
    }
    m.program(|p| {
        p.wrmsr_value(0x1B, 0xFEE0_0D00)?;
        p.wrmsr_value(0x80F, 0x1FF)?;
        p.wrmsr_value(0x4B56_4D04, DATA | 1)?;
        for slot in 0..2 {
            p.wrmsr_value(0x83F, 0x51)?;
            p.sti()?;
            p.nop()?;
            p.cli()?;
            p.event(0x51);
            // What Linux does: take the offer, else write the register.
            let mut taken = p.create_label();
            p.btr(dword_ptr(DATA), 0)?;
            p.jb(taken)?;
            p.wrmsr_value(0x80B, 0)?;
            p.inc(r8)?;
            p.set_label(&mut taken)?;
            // Not in service any more, whichever way.
            p.rdmsr_value(0x812)?;
            p.put(slot, rax)?;
        }
        p.done()
    })?;
    m.run()?;
    check_eq!((m.slot(0)?, m.slot(1)?), (0, 0), "vector 0x51 in service");
    Ok(())
}
