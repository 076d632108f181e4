//! The local APIC of one vCPU (Intel SDM vol. 3, chapter 11).
//!
//! Modes, as IA32_APIC_BASE switches them (11.12.5); any other switch is #GP:
//!
//! ```text
//!            EN=1                EN=1 EXTD=1
//! Disabled ────────▶ XApic ────────────────▶ X2Apic
//!    ▲  ▲    EN=0     │                        │
//!    │  └─────────────┘        EN=0 EXTD=0     │
//!    └─────────────────────────────────────────┘
//! ```
//!
//! The life of a vector: `accept` or the timer puts it into IRR; `pending`
//! names the highest one above the processor priority; `acknowledge` moves it
//! to ISR; the guest's EOI ends it, and for a level-triggered one (TMR) the
//! owner passes the vector on to the I/O APIC.

mod delivery;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use crate::Message;
use timer::Timer;
use vectors::VectorSet;

pub use timer::{MIN_PERIOD_NS, TIMER_HZ};

/// Physical address of the register page at reset.
pub const DEFAULT_BASE: u64 = 0xFEE0_0000;
/// MSR number of IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// First x2APIC MSR; the last is 0x83F.
pub const MSR_X2APIC_FIRST: u32 = 0x800;

/// IA32_APIC_BASE: bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
const BASE_EN: u64 = 1 << 11;
/// IA32_APIC_BASE: bits 7:0 and 9 are reserved.
const BASE_RESERVED: u64 = 0x2FF;

/// SVR: the APIC is enabled by software.
const SVR_ENABLED: u32 = 1 << 8;
/// SVR: vector, enable and focus-check bits; EOI-broadcast suppression
/// (bit 12) is not announced.
const SVR_WRITABLE: u32 = 0x3FF;
/// SVR at reset.
const SVR_RESET: u32 = 0xFF;
/// DFR: model in bits 31:28, the rest reads as ones.
const DFR_FIXED: u32 = 0x0FFF_FFFF;

/// LVT: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT, ICR: delivery mode.
const DELIVERY_MODE: u32 = 7 << 8;
/// Number of LVT entries, in register order from offset 0x320: timer,
/// thermal, performance, LINT0, LINT1, error.
const LVT_COUNT: usize = 6;
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_ERROR: usize = 5;
/// Bits of each LVT entry that a guest may change.
const LVT_WRITABLE: [u32; LVT_COUNT] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];

/// ESR: an attempt to send a reserved vector.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
/// ESR: a reserved vector was received.
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
/// ESR: access to a register that does not exist.
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
const ESR_ALL: u32 = ESR_SEND_ILLEGAL | ESR_RECEIVE_ILLEGAL | ESR_ILLEGAL_REGISTER;

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection fault")]
pub struct GpFault;

/// How the guest reaches the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Not at all: the processor behaves as if it had no APIC.
    Disabled,
    /// Through the memory page at IA32_APIC_BASE.
    XApic,
    /// Through MSRs 0x800–0x83F.
    X2Apic,
}

/// What the owner has to do after a register write.
#[must_use = "interrupts are lost when an action is dropped"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// Offer this to every local APIC, the sender's included.
    pub ipi: Option<Message>,
    /// Tell the I/O APIC that this level-triggered vector ended.
    pub eoi: Option<u8>,
    /// The timer may be due at another time than before.
    pub timer: bool,
}

/// One vCPU's local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    bsp: bool,
    physical_bits: u8,
    base: u64,
    tpr: u8,
    /// Follows from TPR and ISR.
    ppr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    /// As the guest reads it.
    esr: u32,
    /// Noticed since the guest last wrote the ESR.
    errors: u32,
    icr_low: u32,
    icr_high: u32,
    lvt: [u32; LVT_COUNT],
    timer: Timer,
    /// NMIs that arrived: up to two, since a processor would already be
    /// handling the first.
    nmis: u8,
    init: bool,
    startup: Option<u8>,
    ext_int: bool,
}

impl Lapic {
    /// A local APIC as after power-on, in xAPIC mode.
    pub fn new(apic_id: u32, is_bsp: bool) -> Self {
        let mut lapic = Lapic {
            id: apic_id,
            bsp: is_bsp,
            physical_bits: 52,
            base: 0,
            tpr: 0,
            ppr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            errors: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [0; LVT_COUNT],
            timer: Timer::default(),
            nmis: 0,
            init: false,
            startup: None,
            ext_int: false,
        };
        lapic.reset();
        lapic
    }

    /// Sets the guest-physical address bits (CPUID 0x8000_0008) against which
    /// IA32_APIC_BASE is checked; 52 unless told.
    pub fn set_physical_bits(&mut self, bits: u8) {
        self.physical_bits = bits.clamp(32, 52);
    }

    /// Power-on reset (SDM vol. 3, 11.4.7.1).
    pub fn reset(&mut self) {
        self.base = DEFAULT_BASE | BASE_EN | if self.bsp { BASE_BSP } else { 0 };
        self.clear_registers();
        self.startup = None;
        self.init = false;
    }

    /// What INIT does (SDM vol. 3, 11.4.7.3): as power-on, but the mode and
    /// the id stay. A start-up message that came after the INIT stays too.
    pub fn init_reset(&mut self) {
        self.clear_registers();
    }

    fn clear_registers(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.svr = SVR_RESET;
        self.isr = VectorSet::default();
        self.tmr = VectorSet::default();
        self.irr = VectorSet::default();
        self.esr = 0;
        self.errors = 0;
        self.icr_low = 0;
        self.icr_high = 0;
        self.lvt = [LVT_MASKED; LVT_COUNT];
        if self.bsp {
            // Virtual wire mode, as firmware leaves it and as KVM starts: a
            // guest that boots without firmware may rely on the PIC.
            self.lvt[LVT_LINT0] = DELIVERY_MODE;
        }
        self.timer = Timer::default();
        self.nmis = 0;
        self.ext_int = false;
        self.update_ppr();
    }

    /// The id given at creation. In xAPIC mode the guest sees its low 8 bits.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How the guest reaches the registers now.
    pub fn mode(&self) -> ApicMode {
        mode_of(self.base)
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// Physical address of the register page, when it is there.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == ApicMode::XApic).then_some(self.base & !0xFFF)
    }

    /// Writes IA32_APIC_BASE. #GP for reserved bits and for a switch that the
    /// diagram above does not have. Disabling loses all other state.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GpFault> {
        if value & BASE_RESERVED != 0 || value >> self.physical_bits != 0 {
            return Err(GpFault);
        }
        if value & (BASE_EN | BASE_EXTD) == BASE_EXTD {
            return Err(GpFault);
        }
        match (self.mode(), mode_of(value)) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => {
                return Err(GpFault);
            }
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => self.clear_registers(),
            (ApicMode::XApic, ApicMode::X2Apic) => self.icr_high = 0,
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// Task priority class as CR8 shows it, 0–15.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8; only bits 3:0 of `value` count (the owner raises #GP for
    /// others).
    pub fn set_cr8(&mut self, value: u8) {
        self.set_tpr(value << 4);
    }

    /// Task priority register.
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Writes the task priority register.
    pub fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
        self.update_ppr();
    }

    /// Processor priority register; the owner may choose the lowest one for a
    /// [`LowestPriority`](crate::Delivery::LowestPriority) message.
    pub fn ppr(&self) -> u8 {
        self.ppr
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    /// SDM vol. 3, 11.8.3.1.
    fn update_ppr(&mut self) {
        let in_service = self.isr.highest() & 0xF0;
        self.ppr = if self.tpr & 0xF0 >= in_service {
            self.tpr
        } else {
            in_service
        };
    }
}

fn mode_of(base: u64) -> ApicMode {
    if base & BASE_EN == 0 {
        ApicMode::Disabled
    } else if base & BASE_EXTD == 0 {
        ApicMode::XApic
    } else {
        ApicMode::X2Apic
    }
}
