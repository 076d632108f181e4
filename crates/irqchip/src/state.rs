//! Saved state of the controllers: apart from the runtime types,
//! engine-neutral, complete.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One 8259A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// Line levels as last driven.
    pub lines: u8,
    /// Vector base (ICW2, multiple of 8).
    pub base: u8,
    /// Edge/level control register (ELCR): 1 = level.
    pub elcr: u8,
    /// Input with the highest priority (rotation).
    pub priority_add: u8,
    /// Initialization step: 0 none, 1 ICW2, 2 ICW3, 3 ICW4 expected.
    pub init_step: u8,
    /// ICW1 said that this chip stands alone (no ICW3 follows).
    pub single: bool,
    /// ICW4 was announced by ICW1.
    pub needs_icw4: bool,
    /// Automatic EOI.
    pub auto_eoi: bool,
    /// Rotate on automatic EOI.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Next read is a poll.
    pub poll: bool,
    /// Reads return ISR rather than IRR.
    pub read_isr: bool,
}

/// The two cascaded 8259As.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicsState {
    /// Ports 0x20, 0x21, 0x4D0.
    pub master: PicState,
    /// Ports 0xA0, 0xA1, 0x4D1.
    pub slave: PicState,
}

/// One counter of the 8254.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannelState {
    /// Reload value, 1–65536 (0x10000 stands for a written 0).
    pub reload: u32,
    /// A reload value that takes effect at the end of the period (modes 2
    /// and 3) or at the next trigger (modes 1 and 5).
    pub next_reload: Option<u32>,
    /// Mode 0–5.
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Gate input.
    pub gate: bool,
    /// Access: 1 low byte, 2 high byte, 3 low then high.
    pub access: u8,
    /// Latched count, if any, and how many of its bytes were read.
    pub latched: Option<u16>,
    /// Latched status byte, if any.
    pub latched_status: Option<u8>,
    /// The next read is the high byte.
    pub read_high: bool,
    /// The low byte already written while the high one is awaited.
    pub write_low: Option<u8>,
    /// Guest time in nanoseconds when the count was loaded, or when counting
    /// went on after the gate had stopped it.
    pub loaded_at: u64,
    /// Ticks counted before [`loaded_at`](Self::loaded_at).
    pub counted: u64,
    /// A count was loaded since the mode was set.
    pub armed: bool,
    /// The gate triggered the count (modes 1 and 5).
    pub triggered: bool,
    /// Rising edges of OUT since the load that were noticed.
    pub edges_seen: u64,
    /// A noticed edge was not reported yet.
    pub edge_due: bool,
}

/// The 8254 and port 0x61.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Counters 0 to 2.
    pub channels: [PitChannelState; 3],
    /// Speaker data bit of port 0x61.
    pub speaker: bool,
    /// Guest time in nanoseconds of the last reported edge of channel 0.
    pub last_edge_at: Option<u64>,
}

/// The I/O APIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// I/O APIC id (bits 27:24 of register 0).
    pub id: u8,
    /// Index register.
    pub select: u8,
    /// 24 redirection entries as the guest reads them, Remote IRR included.
    pub entries: Vec<u64>,
    /// Pin levels as last driven, a bit each.
    pub lines: u32,
    /// Asserted level-triggered pins, a bit each. Derived from `lines`; kept
    /// for engines that want it. An edge is a message at once, never pending.
    pub irr: u32,
}

/// The chips of [`crate::Chips`] together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsState {
    /// PICs.
    pub pics: PicsState,
    /// PIT.
    pub pit: PitState,
    /// I/O APIC.
    pub ioapic: IoApicState,
}

/// One local APIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The register page: 64 registers, one for each 16 bytes from offset 0
    /// (index = offset >> 4), as in xAPIC mode; in x2APIC mode the id and the
    /// upper half of the ICR have 32 bits. The current count is derived and
    /// stands as 0.
    pub registers: Vec<u32>,
    /// Errors noticed since the guest last wrote the ESR.
    pub errors: u32,
    /// IA32_TSC_DEADLINE in guest TSC ticks; 0 when disarmed.
    pub tsc_deadline: u64,
    /// Guest time in nanoseconds when the count reaches zero next; 0 when
    /// the timer is stopped.
    pub timer_expires_at: u64,
    /// Pending NMI.
    pub nmi: bool,
    /// Pending INIT.
    pub init: bool,
    /// Pending start-up vector.
    pub startup: Option<u8>,
    /// Pending ExtINT message.
    pub ext_int: bool,
}

/// Why a controller's saved state was refused. Nothing was changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RestoreError {
    /// A list has the wrong length.
    #[error("{what}: {found} entries saved, {expected} expected; the state is damaged")]
    Length {
        /// Which list.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries expected.
        expected: usize,
    },
    /// A value that the controller cannot have.
    #[error("{what} cannot be {value:#x}; the state is damaged")]
    Value {
        /// Which register or field.
        what: &'static str,
        /// Value found.
        value: u64,
    },
    /// The state belongs to another vCPU.
    #[error("the state is of local APIC {found}, not {expected}; restore it to its own vCPU")]
    WrongApic {
        /// APIC id in the state.
        found: u32,
        /// APIC id of this vCPU.
        expected: u32,
    },
}
