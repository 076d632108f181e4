//! The KVM engine: machines by hardware virtualization, through `/dev/kvm`.
//!
//! ```text
//! KvmEngine ── probe ──► host (what is there, what to do) ─► probe guest
//!    │ profile: what KVM supports ∩ the model
//!    ▼
//! KvmPartition: memory slots, in-kernel PIC, PIT, I/O APIC and local APICs,
//!    │          lines and messages (irqfd), doorbells (ioeventfd), clock
//!    ▼
//! KvmVcpu: run loop ── exits ──► CpuIo;  kick = immediate exit + signal
//! ```
//!
//! # Interrupt controllers
//! All of them are KVM's own: an interrupt then needs no return to this
//! process, `irqfd` reaches every line, and level-triggered lines are
//! resampled in the kernel. The alternative, KVM's split mode with the chips
//! of `croft-irqchip`, would make the chips' code the same on both engines at
//! the cost of an exit for each access to them (`docs/architecture.md` has
//! numbers). The saved forms are those of `croft-irqchip`.
//!
//! # What differs from the software engine
//! * Timers of KVM (PIT, local APIC) go on while the machine is paused: one
//!   that expires then is due at once when the machine goes on.
//! * After a restore the PIT starts its current period anew, and a one-shot
//!   APIC timer that has expired shows an initial count of zero.
//! * A vCPU that runs while time is paused finds the TSC where it was paused
//!   at each entry, but sees it count from there.
//! * A single step shows the guest its trap flag where it stores RFLAGS.
//! * While the debugger has breakpoints, the guest's own do not work. Those on
//!   ports never do, as KVM does not look at them for ports that it serves or
//!   passes on.
//! * KVM lets reserved bits be written to the local APIC's EOI and TPR.
//! * On AMD processors a vCPU that triple-faults is reset: the state reported
//!   with it is then the one after INIT. PAE paging reads its four pointers from
//!   memory, not when CR3 is loaded. SYSENTER works from 32-bit code only.
#![allow(unsafe_code)]

mod chips;
mod clock;
mod cpuid;
mod debug;
mod doorbell;
mod engine;
mod error;
mod events;
mod exits;
mod host;
mod kick;
mod lapic;
mod lines;
mod msr;
mod partition;
mod pit;
mod probe;
mod regs;
mod slots;
mod state;
mod sys;
mod vcpu;
mod walk;

pub use engine::KvmEngine;
