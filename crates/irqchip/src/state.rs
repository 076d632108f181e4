//! Saved state of the controllers: apart from the runtime types,
//! engine-neutral, complete.

use serde::{Deserialize, Serialize};

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
    /// Guest time in nanoseconds when the current count was loaded.
    pub loaded_at: u64,
    /// A count was loaded since the mode was set.
    pub armed: bool,
}

/// The 8254 and port 0x61.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Counters 0 to 2.
    pub channels: [PitChannelState; 3],
    /// Speaker data bit of port 0x61.
    pub speaker: bool,
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
    /// Pending edges and asserted levels, a bit each.
    pub irr: u32,
}

/// One local APIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The register page: 64 registers, one for each 16 bytes from offset 0
    /// (index = offset >> 4), as in xAPIC mode.
    pub registers: Vec<u32>,
    /// IA32_TSC_DEADLINE in guest TSC ticks; 0 when disarmed.
    pub tsc_deadline: u64,
    /// Guest time in nanoseconds when the current count was loaded; 0 when
    /// the timer is stopped.
    pub timer_started_at: u64,
    /// Pending NMI.
    pub nmi: bool,
    /// Pending INIT.
    pub init: bool,
    /// Pending start-up vector.
    pub startup: Option<u8>,
}
