//! The rest of the seam: kicks, the dirty log, the debugger, saved state.

use std::time::{Duration, Instant};

use croft_engine::{Breakpoint, DebugControl, DebugStop, Engine, Stop};
use iced_x86::code_asm::*;

use crate::layout::*;
use crate::machine::{Machine, Mode};
use crate::{Outcome, check, check_eq};

guests! { "seam":
    kick_before_run [],
    kick_out_of_a_loop [],
    kick_out_of_halt [],
    kicks_count_once [],
    dirty_log [],
    breakpoint_and_going_on [],
    single_steps [],
    single_steps_are_hidden [HiddenSteps],
    data_breakpoint [DataBreakpoints],
    saved_in_the_middle [],
    saved_with_a_pending_interrupt [Iret],
    saved_with_a_pending_trap [Iret],
    reset_state [],
    vcpus_are_handed_out_once [],
}

fn counting(engine: &dyn Engine) -> Result<Machine, crate::Failure> {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let mut again = p.create_label();
        p.set_label(&mut again)?;
        p.inc(qword_ptr(SLOTS))?;
        p.jmp(again)
    })?;
    Ok(m)
}

/// Waits until the guest of [`counting`] counts.
fn until_it_counts(m: &Machine) -> Outcome {
    let until = Instant::now() + Duration::from_secs(120);
    while m.slot(0)? == 0 {
        check!(Instant::now() < until, "nothing was executed");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn kick_before_run(engine: &dyn Engine) -> Outcome {
    let mut m = counting(engine)?;
    m.io.kick();
    check_eq!(m.run_once()?, Stop::Kicked, "reason to stop");
    check_eq!(m.slot(0)?, 0, "instructions after an early kick");
    Ok(())
}

fn kick_out_of_a_loop(engine: &dyn Engine) -> Outcome {
    let mut m = counting(engine)?;
    // One that is not kicked in time is a failure of the harness's.
    let stop = m.run_while(|m| {
        until_it_counts(m)?;
        m.io.kick();
        Ok(())
    })?;
    check_eq!(stop, Stop::Kicked, "reason to stop");
    let rip = m.saved()?.rip;
    check!(rip == CODE || rip == CODE + 8, "stopped at {rip:#x}");
    Ok(())
}

fn kick_out_of_halt(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.sti()?;
        p.hlt()?;
        p.done()
    })?;
    for _ in 0..2 {
        let stop = m.run_while(|m| {
            std::thread::sleep(Duration::from_millis(10));
            m.io.kick();
            Ok(())
        })?;
        check_eq!(stop, Stop::Kicked, "reason to stop");
        check!(!m.io.is_done(), "the kick ended HLT for the guest");
    }
    Ok(())
}

fn kicks_count_once(engine: &dyn Engine) -> Outcome {
    let mut m = counting(engine)?;
    m.io.kick();
    m.io.kick();
    m.run_once()?;
    let stop = m.run_while(|m| {
        // Not if the second kick counted too.
        let counts = until_it_counts(m);
        m.io.kick();
        counts
    })?;
    check_eq!(stop, Stop::Kicked, "reason to stop");
    Ok(())
}

fn dirty_pages(m: &Machine) -> Vec<u64> {
    m.ram
        .tables()
        .flat_map(|(range, table)| {
            let words = table.take_dirty();
            words
                .into_iter()
                .enumerate()
                .flat_map(|(n, word)| {
                    (0..64)
                        .filter(move |bit| word >> bit & 1 != 0)
                        .map(move |bit| n as u64 * 64 + bit)
                })
                .map(move |page| range.start / 4096 + page)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Dirty pages without the page tables: to AMD's nested paging each walk of
/// them is a write (APM vol. 2, 15.25.5).
fn stored(m: &Machine) -> Vec<u64> {
    let tables = PML4 >> 12..=PT_ALIAS >> 12;
    let mut pages = dirty_pages(m);
    pages.retain(|page| !tables.contains(page));
    pages
}

fn dirty_log(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    // All of it in the TLB and accessed before, so that only stores count.
    m.program(|p| {
        let mut round = p.create_label();
        p.mov(ecx, 2)?;
        p.set_label(&mut round)?;
        p.mov(dword_ptr(DATA), 1)?;
        p.mov(dword_ptr(DATA + 0x2000), 1)?;
        p.mov(eax, dword_ptr(DATA + 0x3000))?;
        p.mov(qword_ptr(DATA + 0x4FFC), rax)?;
        p.push(rax)?;
        p.pop(rax)?;
        p.out(0x10, al)?;
        p.dec(ecx)?;
        p.jne(round)?;
        p.done()
    })?;
    m.run()?;
    for (_, table) in m.ram.tables() {
        table.start_dirty_log();
    }
    m.rewind()?;
    m.run()?;
    m.ram.write(DATA + 0x7000, &[1])?;
    let page = |address: u64| address >> 12;
    let mut wanted = vec![
        page(STACK - 8),
        page(DATA),
        page(DATA + 0x2000),
        page(DATA + 0x4000),
        page(DATA + 0x5000),
        page(DATA + 0x7000),
    ];
    // The harness empties the guest's log in between.
    wanted.insert(0, page(LOG));
    check_eq!(stored(&m), wanted, "dirty pages");
    // Emptied by the look; the next stores show again.
    check_eq!(dirty_pages(&m), Vec::<u64>::new(), "dirty pages at once");
    m.rewind()?;
    m.run()?;
    wanted.pop();
    check_eq!(stored(&m), wanted, "dirty pages of another round");
    for (_, table) in m.ram.tables() {
        table.stop_dirty_log();
    }
    Ok(())
}

fn breakpoint_and_going_on(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let mut again = p.create_label();
        p.mov(ecx, 2)?;
        p.set_label(&mut again)?;
        p.nop()?;
        p.mark()?;
        p.inc(r8)?;
        p.dec(ecx)?;
        p.jne(again)?;
        p.put(0, r8)?;
        p.done()
    })?;
    let at = Breakpoint::Code(m.mark(0) + 1);
    m.vcpu(0)?.set_debug(&DebugControl {
        single_step: false,
        breakpoints: vec![at],
    })?;
    for round in 0..2 {
        let stop = m.run_once()?;
        let wanted = Stop::Debug(DebugStop::Breakpoint(at));
        check_eq!(stop, wanted, "reason to stop");
        let state = m.saved()?;
        check_eq!(state.rip, m.mark(0) + 1, "RIP");
        check_eq!(state.registers[8], round, "rounds before");
        check_eq!(state.dr7 & 0xFF, 0, "the guest's DR7");
    }
    m.run()?;
    check_eq!(m.slot(0)?, 2, "rounds");
    Ok(())
}

const STEPPING: DebugControl = DebugControl {
    single_step: true,
    breakpoints: Vec::new(),
};

fn single_steps(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.inc(r8)?;
        p.push(r8)?;
        p.pop(r9)?;
        p.in_(al, 0x10)?;
        p.done()
    })?;
    m.vcpu(0)?.set_debug(&STEPPING)?;
    // PUSH and POP of R8 and R9 have a prefix.
    for next in [3, 5, 7, 9] {
        check_eq!(m.run_once()?, Stop::Debug(DebugStop::Step), "reason");
        check_eq!(m.saved()?.rip, CODE + next, "RIP");
    }
    let state = m.saved()?;
    check_eq!(state.registers[9], 1, "R9");
    check_eq!(state.rflags & flag::TF, 0, "TF in the state");
    m.vcpu(0)?.set_debug(&DebugControl::default())?;
    m.run()
}

fn single_steps_are_hidden(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.pushfq()?;
        p.pop(r9)?;
        p.done()
    })?;
    m.vcpu(0)?.set_debug(&STEPPING)?;
    for _ in 0..2 {
        check_eq!(m.run_once()?, Stop::Debug(DebugStop::Step), "reason");
    }
    let state = m.saved()?;
    check_eq!(state.registers[9] & flag::TF, 0, "the guest sees no TF");
    Ok(())
}

fn data_breakpoint(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.mov(eax, dword_ptr(DATA))?;
        p.mov(dword_ptr(DATA + 4), eax)?;
        p.mov(dword_ptr(DATA), 5)?;
        p.mark()?;
        p.done()
    })?;
    let at = Breakpoint::Data {
        address: DATA,
        len: 4,
        reads: false,
    };
    m.vcpu(0)?.set_debug(&DebugControl {
        single_step: false,
        breakpoints: vec![at],
    })?;
    let wanted = Stop::Debug(DebugStop::Breakpoint(at));
    check_eq!(m.run_once()?, wanted, "reason to stop");
    check_eq!(m.saved()?.rip, m.mark(0), "RIP after the store");
    check_eq!(m.get(DATA)? & 0xFFFF_FFFF, 5, "the store happened");
    m.run()
}

/// Continues a machine's state in a fresh one with a copy of its RAM.
fn moved(engine: &dyn Engine, m: &mut Machine) -> Result<Machine, crate::Failure> {
    let state = m.saved()?;
    m.partition.pause_clock();
    let shared = m.partition.save()?;
    let mut bytes = vec![0; RAM as usize];
    m.ram.read(0, &mut bytes)?;
    let mut other = Machine::new(engine, Mode::Long, 1)?;
    other.ram.write(0, &bytes)?;
    other.partition.pause_clock();
    other.partition.restore(&shared)?;
    other.vcpu(0)?.restore(&state)?;
    let again = other.saved()?;
    check_eq!(again, state, "state after it was restored");
    check_eq!(other.partition.save()?, shared, "shared state");
    other.partition.resume_clock();
    Ok(other)
}

fn saved_in_the_middle(engine: &dyn Engine) -> Outcome {
    const ROUNDS: u64 = 3_000_000;
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        let mut again = p.create_label();
        p.fninit()?;
        p.fldpi()?;
        p.mov(ecx, ROUNDS as i32)?;
        p.xor(eax, eax)?;
        p.set_label(&mut again)?;
        p.imul_3(rax, rax, 31)?;
        p.add(rax, rcx)?;
        p.mov(qword_ptr(SLOTS), rax)?;
        p.dec(rcx)?;
        p.jne(again)?;
        p.fstp(qword_ptr(SLOTS + 8))?;
        p.put(2, rax)?;
        p.done()
    })?;
    let mut moves = 0;
    while !m.io.is_done() && moves < 4 {
        m.run_while(|m| {
            std::thread::sleep(Duration::from_millis(3));
            m.io.kick();
            Ok(())
        })?;
        if m.io.is_done() {
            break;
        }
        m = moved(engine, &mut m)?;
        moves += 1;
    }
    if !m.io.is_done() {
        m.run()?;
    }
    let mut sum = 0u64;
    for n in (1..=ROUNDS).rev() {
        sum = sum.wrapping_mul(31).wrapping_add(n);
    }
    check_eq!(m.slot(2)?, sum, "sum after {moves} moves");
    check_eq!(m.slot(1)?, std::f64::consts::PI.to_bits(), "x87 register");
    Ok(())
}

fn saved_with_a_pending_interrupt(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        p.wrmsr_value(0x1B, 0xFEE0_0D00)?;
        p.wrmsr_value(0x80F, 0x1FF)?;
        p.wrmsr_value(0x835, 1 << 16)?;
        p.wrmsr_value(0x83F, 0x51)?;
        p.wrmsr_value(0x808, 0x20)?;
        p.stop()?;
        p.sti()?;
        p.nop()?;
        p.mark()?;
        p.cli()?;
        p.done()
    })?;
    check_eq!(m.run_once()?, Stop::Kicked, "reason to stop");
    let behind = m.mark(0);
    let mut m = moved(engine, &mut m)?;
    m.run_to_end()?;
    let log = m.log()?;
    check_eq!(log.len(), 1, "interrupts");
    check_eq!(log[0].vector, 0x51, "vector");
    check_eq!(log[0].rip, behind, "where it came");
    check_eq!(m.saved()?.cr8, 2, "CR8");
    Ok(())
}

fn saved_with_a_pending_trap(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::long(engine)?;
    m.program(|p| {
        // The guest steps itself: OUT has been executed, its trap is due.
        p.push((flag::FIXED | flag::TF) as i32)?;
        p.popfq()?;
        p.stop()?;
        p.mark()?;
        p.push(2)?;
        p.popfq()?;
        p.done()
    })?;
    check_eq!(m.run_once()?, Stop::Kicked, "reason to stop");
    let behind = m.mark(0);
    let mut m = moved(engine, &mut m)?;
    m.run_to_end()?;
    let log = m.log()?;
    check!(!log.is_empty(), "the trap is lost");
    check_eq!(log[0].vector, u64::from(vector::DB), "vector");
    check_eq!(log[0].rip, behind, "where it came");
    check_eq!(log[0].dr6 >> 14 & 1, 1, "DR6.BS");
    Ok(())
}

fn reset_state(engine: &dyn Engine) -> Outcome {
    let mut m = Machine::new(engine, Mode::Long, 2)?;
    m.vcpu(0)?.reset();
    let state = m.saved()?;
    check_eq!(state.rip, 0xFFF0, "RIP");
    let code = state.segments[1];
    check_eq!(
        (code.selector, code.base, code.limit),
        (0xF000, 0xFFFF_0000, 0xFFFF),
        "CS"
    );
    check_eq!(state.rflags, 2, "flags");
    check_eq!(state.cr0, 0x6000_0010, "CR0");
    check_eq!((state.cr3, state.cr4), (0, 0), "CR3, CR4");
    check_eq!(state.dr6 & 0xFFFF_FFFF, 0xFFFF_0FF0, "DR6");
    check_eq!(state.dr7, 0x400, "DR7");
    check_eq!(state.xcr0, 1, "XCR0");
    check_eq!(state.idtr.limit, 0xFFFF, "IDTR");
    let signature = m.profile.leaf(1, 0).map_or(0, |leaf| leaf.eax);
    check_eq!(state.registers[2], u64::from(signature), "EDX");
    let second = m.vcpu(1)?.save()?;
    check_eq!(
        second.mp_state,
        croft_engine::state::MpState::Uninitialized,
        "the second vCPU waits"
    );
    Ok(())
}

fn vcpus_are_handed_out_once(engine: &dyn Engine) -> Outcome {
    let m = Machine::new(engine, Mode::Long, 2)?;
    check!(m.partition.vcpu(0).is_err(), "vCPU 0 was handed out twice");
    check!(m.partition.vcpu(2).is_err(), "vCPU 2 does not exist");
    Ok(())
}
