//! Whether a `/dev/kvm` runs kernels: one vCPU executes a few instructions.
//!
//! Capabilities do not tell. A host without hardware virtualization may have
//! a KVM (PVM) that reports the same ones, makes machines, and then emulates
//! what runs in kernel mode until it meets an instruction that it cannot.
//! The guest is in 64-bit mode at privilege level 0 and does, in this order,
//!
//! ```text
//! xorps xmm0, xmm0        a vector instruction
//! lock cmpxchg16b [rsi]   a 16-byte exchange
//! int3 ─► handler: inc qword [rsi + 16]; iretq
//! hlt                     the way out
//! ```
//!
//! No time is measured: a real KVM that is just warming up can be as slow.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use croft_memory::{GuestRam, Range};
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::kick::{self, KvmKick};
use crate::slots::Slots;
use croft_engine::Kick;

/// How long the guest may take. It needs microseconds; nested twice under an
/// emulator still far less than a second.
const LIMIT: Duration = Duration::from_secs(30);

const RAM: u64 = 0x1_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const HANDLER: u64 = 0x6100;
const STACK: u64 = 0x8000;
const DATA: u64 = 0x9000;

/// Code segment's selector.
const CS: u16 = 8;
/// Vector of INT3.
const BREAKPOINT: u64 = 3;

const PROGRAM: [u8; 11] = [
    0x0F, 0x57, 0xC0, // xorps xmm0, xmm0
    0xF0, 0x48, 0x0F, 0xC7, 0x0E, // lock cmpxchg16b [rsi]
    0xCC, // int3
    0xF4, // hlt
    0x90, // nop
];
const AFTER_HLT: u64 = CODE + 10;
const HANDLER_CODE: [u8; 6] = [
    0x48, 0xFF, 0x46, 0x10, // inc qword [rsi + 16]
    0x48, 0xCF, // iretq
];

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn memory() -> Option<GuestRam> {
    let ram = GuestRam::new(&[Range { start: 0, len: RAM }]).ok()?;
    // Present, writable; the last one also large.
    let tables = [
        (PML4, vec![PDPT | 3]),
        (PDPT, vec![DIRECTORY | 3]),
        (DIRECTORY, vec![0x83]),
        // Null, 64-bit code, data.
        (GDT, vec![0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]),
        // 64-bit interrupt gate (SDM vol. 3, 6.14.1): offset, selector, type.
        (
            IDT + 16 * BREAKPOINT,
            vec![
                HANDLER & 0xFFFF | u64::from(CS) << 16 | 0x8E00 << 32 | (HANDLER >> 16) << 48,
                0,
            ],
        ),
        // The exchange finds what RDX:RAX hold and stores RCX:RBX.
        (DATA, vec![1, 2, 0]),
    ];
    for (at, table) in tables {
        ram.write(at, &words(&table)).ok()?;
    }
    ram.write(CODE, &PROGRAM).ok()?;
    ram.write(HANDLER, &HANDLER_CODE).ok()?;
    Some(ram)
}

fn enter(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut s = vcpu.get_sregs()?;
    let flat = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    s.cs = flat(CS, 11, 1, 0);
    let data = flat(16, 3, 0, 1);
    (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
    s.gdt.base = GDT;
    s.gdt.limit = 23;
    s.idt.base = IDT;
    s.idt.limit = 0xFFF;
    // PE, MP, ET, NE, WP, PG.
    s.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    s.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT.
    s.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    // LME, LMA.
    s.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&s)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rflags: 2,
        rsp: STACK,
        rsi: DATA,
        rax: 1,
        rdx: 2,
        rbx: 3,
        rcx: 4,
        ..Default::default()
    })
}

/// How the guest ended.
enum End {
    Exit(u32),
    Refused(kvm_ioctls::Error),
    TookTooLong,
}

/// Runs the vCPU under a guard.
fn run(vcpu: &mut VcpuFd) -> End {
    let kick = Arc::new(KvmKick::default());
    let byte = std::ptr::addr_of_mut!(vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>();
    // SAFETY: the page is mapped as long as `vcpu` lives, which is longer.
    let running = unsafe { kick.running(byte) };
    let (done, waiting) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let waiting = waiting;
            if waiting.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                kick.kick();
            }
        });
        let end = loop {
            match vcpu.run() {
                Ok(_) => break End::Exit(vcpu.get_kvm_run().exit_reason),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    if kick.is_requested() {
                        break End::TookTooLong;
                    }
                }
                Err(error) => break End::Refused(error),
            }
        };
        drop(running);
        drop(done);
        end
    })
}

/// Runs the guest; tells why this KVM is unfit, if it is.
pub fn probe(kvm: &Kvm) -> Result<(), String> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        format!("/dev/kvm is there, but {what} was refused: {error}")
    };
    let fail = |what: &'static str| move |error: kvm_ioctls::Error| refused(what, &error);
    kick::install().map_err(|error| refused("a signal handler", &error))?;
    let ram = memory().ok_or("64 KiB of memory for a probe cannot be had")?;
    let vm = Arc::new(kvm.create_vm().map_err(fail("making a machine"))?);
    let _slots =
        Slots::new(&vm, &ram).map_err(|error| refused("giving a machine memory", &error))?;
    let mut vcpu = vm.create_vcpu(0).map_err(fail("making a vCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(fail("asking for CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(fail("setting CPUID"))?;
    enter(&vcpu).map_err(fail("64-bit mode"))?;
    let end = run(&mut vcpu);
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    match end {
        End::Exit(KVM_EXIT_HLT) if rip == AFTER_HLT && is_right(&ram) => Ok(()),
        End::Exit(KVM_EXIT_HLT) => Err(format!(
            "/dev/kvm is there, but a probe guest computed wrongly (halted at {rip:#x})"
        )),
        End::Exit(KVM_EXIT_INTERNAL_ERROR) => Err(format!(
            "/dev/kvm is there, but it emulates kernel code instead of running it, and could not \
             execute {} (KVM_EXIT_INTERNAL_ERROR): a paravirtual KVM (PVM), as on cloud hosts \
             without nested virtualization; use the software engine, or a host type with nested \
             virtualization",
            instruction(rip)
        )),
        End::Exit(reason) => Err(format!(
            "/dev/kvm is there, but a probe guest ended by {} at {} instead of halting",
            crate::exits::name(reason),
            instruction(rip)
        )),
        End::Refused(error) => Err(refused("running a vCPU", &error)),
        End::TookTooLong => Err(format!(
            "/dev/kvm is there, but a probe guest of ten instructions did not end within {} s \
             (at {})",
            LIMIT.as_secs(),
            instruction(rip)
        )),
    }
}

fn instruction(rip: u64) -> String {
    match rip.wrapping_sub(CODE) {
        0 => "xorps".to_owned(),
        3 => "cmpxchg16b".to_owned(),
        8 => "int3".to_owned(),
        9 => "hlt".to_owned(),
        0x100 => "inc".to_owned(),
        0x104 => "iretq".to_owned(),
        _ => format!("{rip:#x}"),
    }
}

/// Whether the exchange and the handler did what they must.
fn is_right(ram: &GuestRam) -> bool {
    let mut data = [0; 24];
    ram.read(DATA, &mut data).is_ok() && data.to_vec() == words(&[3, 4, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_where_its_addresses_say() {
        let ram = memory().unwrap();
        let mut byte = [0];
        for (offset, expected) in [(0, 0x0F), (3, 0xF0), (8, 0xCC), (9, 0xF4)] {
            ram.read(CODE + offset, &mut byte).unwrap();
            assert_eq!(byte[0], expected);
        }
        assert_eq!(AFTER_HLT, CODE + PROGRAM.len() as u64 - 1);
        assert_eq!(instruction(CODE + 8), "int3");
        assert!(!is_right(&ram));
    }
}
