//! A machine saved on one engine continues on the other, both ways. The guest
//! computes in every general register, a vector register, x87 and memory; the
//! result is what it would be had it never moved. On a KVM that only emulates
//! (PVM) the guest does without the vector register and x87.

mod common;

use std::sync::Arc;

use croft_conformance::layout::{DATA, SLOTS};
use croft_conformance::{Failure, Machine, machine::Mode};
use croft_engine::{
    Capabilities, CpuModel, CpuProfile, Engine, EngineError, Fitness, Missing, Partition,
    PartitionConfig, Topology,
};
use croft_engine_software::SoftwareEngine;
use croft_memory::{GuestRam, Range};
use iced_x86::code_asm::*;

/// An engine that makes machines of one profile, whatever is asked for: a
/// machine that moves takes its profile along.
struct Movable<'a>(&'a dyn Engine, &'a CpuProfile);

impl Engine for Movable<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn probe(&self) -> Fitness {
        self.0.probe()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn profile(&self, _: CpuModel, _: Topology) -> Result<CpuProfile, Vec<Missing>> {
        Ok(self.1.clone())
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        self.0.partition(config)
    }
}

/// Words of memory that the guest works on.
const WORDS: u64 = 1024;
/// Knuth's multiplier for 64-bit linear congruences (MMIX).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
/// What each register that only waits holds, times its number.
const PATTERN: u64 = 0x0101_0101_0101_0101;
/// MSRs with a 64-bit value that nothing else uses: FS base, LSTAR.
const FS_BASE: u32 = 0xC000_0100;
const LSTAR: u32 = 0xC000_0082;
/// The slot that says how many rounds are left.
const LEFT: u64 = 13;
/// What LSTAR holds: it must be canonical.
const TARGET: u64 = 0xFFFF_8000_1234_5678;

/// Assembles the guest: `rounds` rounds of
/// `x = x * MULTIPLIER + n; words[x >> 54] ^= x`, then everything to SLOTS.
fn guest(m: &mut Machine, rounds: u64, vectors: bool) -> Result<(), Failure> {
    m.program(|p| {
        let mut again = p.create_label();
        p.wrmsr_value(FS_BASE, DATA)?;
        p.wrmsr_value(LSTAR, TARGET)?;
        if vectors {
            p.fninit()?;
            p.fldpi()?;
            p.pxor(xmm7, xmm7)?;
        }
        for (n, register) in [r8, r9, r10, r11, r12, r13, r14, r15].iter().enumerate() {
            p.mov(*register, PATTERN * (n as u64 + 1))?;
        }
        p.mov(rbx, MULTIPLIER)?;
        p.mov(rbp, DATA)?;
        p.mov(rcx, rounds)?;
        p.xor(eax, eax)?;
        p.set_label(&mut again)?;
        p.put(LEFT, rcx)?;
        p.imul_2(rax, rbx)?;
        p.add(rax, rcx)?;
        p.mov(rdx, rax)?;
        p.shr(rdx, 54)?;
        p.xor(qword_ptr(rbp + rdx * 8), rax)?;
        if vectors {
            p.movq(xmm6, rax)?;
            p.paddq(xmm7, xmm6)?;
        }
        p.dec(rcx)?;
        p.jne(again)?;
        p.put(0, rax)?;
        // Through the FS base, which shows that it came along.
        p.mov(rdx, qword_ptr(0).fs())?;
        p.put(1, rdx)?;
        for (n, register) in [r8, r9, r10, r11, r12, r13, r14, r15].iter().enumerate() {
            p.put(2 + n as u64, *register)?;
        }
        p.rdmsr_value(LSTAR)?;
        p.put(10, rax)?;
        if vectors {
            p.movq(rdx, xmm7)?;
            p.put(11, rdx)?;
            p.fstp(qword_ptr(SLOTS + 8 * 12))?;
        }
        p.done()
    })
}

/// What the guest computes.
fn expected(rounds: u64) -> (u64, u64, Vec<u64>) {
    let (mut x, mut sum) = (0u64, 0u64);
    let mut words = vec![0; WORDS as usize];
    for n in (1..=rounds).rev() {
        x = x.wrapping_mul(MULTIPLIER).wrapping_add(n);
        words[(x >> 54) as usize] ^= x;
        sum = sum.wrapping_add(x);
    }
    (x, sum, words)
}

/// A machine on `to` that has everything that `from` has, and nothing else in
/// common with it.
fn carried(from: &mut Machine, to: &dyn Engine) -> Result<Machine, Failure> {
    let len = croft_conformance::layout::RAM;
    let mut contents = vec![0; len as usize];
    from.ram.read(0, &mut contents)?;
    let ram = GuestRam::new(&[Range { start: 0, len }])?;
    ram.write(0, &contents)?;
    let (partition, vcpu) = (from.partition.save()?, from.saved()?);
    let mut machine = Machine::with_ram(to, Mode::Long, 1, ram)?;
    machine.partition.restore(&partition)?;
    machine.vcpu(0)?.restore(&vcpu)?;
    Ok(machine)
}

/// Starts on the first engine and changes to the next at every stop.
fn run_on(engines: &[&dyn Engine], rounds: u64, vectors: bool) -> Result<u32, Failure> {
    let (first, others) = engines.split_first().expect("an engine");
    let mut m = Machine::long(*first)?;
    guest(&mut m, rounds, vectors)?;
    let mut moves = 0;
    for (n, engine) in others.iter().enumerate() {
        // Engines differ in speed by more than a thousand times, so the
        // guest's own progress tells when.
        let limit = rounds * (2 - n as u64) / 3;
        m.run_while(|m| {
            while !m.io.is_done() && !(1..=limit).contains(&m.slot(LEFT)?) {
                std::thread::yield_now();
            }
            m.io.kick();
            Ok(())
        })?;
        if m.io.is_done() {
            break;
        }
        m = carried(&mut m, *engine)?;
        moves += 1;
    }
    if !m.io.is_done() {
        m.run()?;
    }
    let (x, sum, words) = expected(rounds);
    assert_eq!(m.slot(0)?, x, "RAX after {moves} moves");
    assert_eq!(m.slot(1)?, words[0], "memory by FS");
    for n in 0..8 {
        assert_eq!(m.slot(2 + n)?, PATTERN * (n + 1), "R{}", n + 8);
    }
    assert_eq!(m.slot(10)?, TARGET, "LSTAR");
    if vectors {
        assert_eq!(m.slot(11)?, sum, "XMM7");
        assert_eq!(m.slot(12)?, std::f64::consts::PI.to_bits(), "ST0");
    }
    for (n, word) in words.iter().enumerate() {
        assert_eq!(m.get(DATA + 8 * n as u64)?, *word, "word {n}");
    }
    Ok(moves)
}

/// Enough rounds that `path` is walked to its end; machines differ in speed
/// by more than a hundred times.
fn walk(path: impl Fn(usize) -> bool) {
    let Some(kvm) = common::engine() else {
        return;
    };
    let vectors = !common::is_emulating(&kvm.probe());
    // Of KVM, which may not be able to scale the TSC.
    let profile = kvm
        .profile(CpuModel::PortableV1, Topology { vcpus: 1 })
        .expect("a profile");
    let software = SoftwareEngine::new();
    let (kvm, software) = (Movable(&kvm, &profile), Movable(&software, &profile));
    let engines: Vec<&dyn Engine> = (0..3)
        .map(|n| {
            if path(n) {
                &kvm as &dyn Engine
            } else {
                &software
            }
        })
        .collect();
    let mut rounds = 100_000;
    loop {
        let moves = run_on(&engines, rounds, vectors).unwrap_or_else(|error| panic!("{error}"));
        if moves == 2 {
            println!("{rounds} rounds, saved and continued {moves} times");
            return;
        }
        rounds *= 4;
        assert!(rounds < 1 << 32, "the guest is never caught in the middle");
    }
}

#[test]
fn from_kvm_to_software_and_back() {
    walk(|n| n % 2 == 0);
}

#[test]
fn from_software_to_kvm_and_back() {
    walk(|n| n % 2 == 1);
}
