//! Engine-neutral saved state, complete and versioned.
//!
//! Saved only while every vCPU is stopped; the engine owns the order in which
//! the parts are restored.

use croft_irqchip::{IoApicState, LapicState, PicsState, PitState};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of [`CpuState`] and [`PartitionState`] that this build writes.
pub const STATE_VERSION: u32 = 1;

/// Why a state cannot be restored.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// Written by a newer Croft.
    #[error("saved state has version {found}, this Croft reads up to {STATE_VERSION}; upgrade it")]
    Version {
        /// Version found.
        found: u32,
    },
    /// A value that no processor can have.
    #[error("saved state is damaged: {0}")]
    Damaged(String),
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Descriptor bits 55:40 as in VMX access rights: type 3:0, S 4, DPL 6:5,
    /// P 7, AVL 12, L 13, D/B 14, G 15; bit 16 = unusable.
    pub attributes: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// An MSR and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrState {
    /// MSR index (ECX).
    pub index: u32,
    /// Value (EDX:EAX).
    pub value: u64,
}

/// An event that was being delivered or is waiting for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// Exception to deliver at the next instruction boundary: vector and
    /// error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// External interrupt already acknowledged at the local APIC.
    pub interrupt: Option<u8>,
    /// An NMI is waiting.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Interrupts are held back for one instruction after STI or MOV SS.
    pub interrupt_shadow: bool,
    /// Debug exceptions are held back for one instruction after MOV SS.
    pub debug_shadow: bool,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executing.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// An application processor before its first INIT.
    Uninitialized,
    /// After INIT, before start-up.
    WaitForStartup,
}

/// Index of a segment in [`CpuState::segments`], in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentIndex {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// One vCPU, complete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15 (encoding order).
    pub registers: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentState; 6],
    /// Task register.
    pub tr: SegmentState,
    /// Local descriptor table register.
    pub ldtr: SegmentState,
    /// Global descriptor table.
    pub gdtr: TableState,
    /// Interrupt descriptor table.
    pub idtr: TableState,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// PAE page-directory pointers as loaded by the last write to CR3, while
    /// PAE paging is on. Without them the restoring engine loads them anew.
    #[serde(default)]
    pub pdptes: Option<[u64; 4]>,
    /// CR8 (task priority, 0–15).
    pub cr8: u64,
    /// DR0–DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// XCR0.
    pub xcr0: u64,
    /// XSAVE area, standard (non-compacted) format: legacy region, header,
    /// then each component at its CPUID offset.
    pub xsave: Vec<u8>,
    /// MSRs: EFER, STAR…, PV MSRs. Ordered by index.
    pub msrs: Vec<MsrState>,
    /// Local APIC.
    pub lapic: LapicState,
    /// Pending and blocked events.
    pub events: PendingEvents,
    /// What it is doing.
    pub mp_state: MpState,
}

/// What all vCPUs of a machine share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u32,
    /// PICs.
    pub pics: PicsState,
    /// PIT.
    pub pit: PitState,
    /// I/O APIC.
    pub ioapic: IoApicState,
    /// Guest time in nanoseconds.
    pub clock_ns: u64,
    /// Guest TSC at [`clock_ns`](PartitionState::clock_ns).
    pub tsc: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
}

/// Refuses states that this build cannot read.
pub fn check_version(found: u32) -> Result<(), StateError> {
    if found == 0 || found > STATE_VERSION {
        return Err(StateError::Version { found });
    }
    Ok(())
}
