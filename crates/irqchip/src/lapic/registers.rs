//! Register access: the xAPIC memory page and the x2APIC MSRs (SDM vol. 3,
//! 11.4.1 and 11.12.1).

use super::vectors::FIRST_LEGAL;
use super::{
    Action, ApicMode, DFR_FIXED, ESR_ILLEGAL_REGISTER, ESR_SEND_ILLEGAL, GpFault, LVT_MASKED,
    LVT_TIMER, LVT_WRITABLE, Lapic, MSR_X2APIC_FIRST, SVR_WRITABLE, timer,
};
use crate::{Delivery, Destination, Message};

/// Version 0x14 (integrated xAPIC), highest LVT entry 5, no suppression of
/// EOI broadcasts.
pub(super) const VERSION: u32 = 0x0005_0014;

/// Register numbers: page offset / 16, MSR number − 0x800.
pub(super) mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const RRD: u32 = 0x0C;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1F;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// ICR: delivery status, always idle.
const ICR_BUSY: u32 = 1 << 12;
/// ICR: bits that hold something.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;
/// LVT: delivery status and remote IRR are read-only.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

impl Lapic {
    /// Reads the 32-bit register at `offset` of the page. All ones when the
    /// page is not there, 0 between registers.
    pub fn read(&mut self, offset: u64, now: u64, tsc: u64) -> u32 {
        if self.mode() != ApicMode::XApic {
            return u32::MAX;
        }
        if offset & 0xF != 0 {
            return 0;
        }
        match self.xapic_register(offset) {
            Some(register) => self.read_register(register, now, tsc),
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes the 32-bit register at `offset` of the page. Ignored when the
    /// page is not there, between registers and for read-only ones.
    pub fn write(&mut self, offset: u64, value: u32, now: u64, tsc: u64) -> Action {
        if self.mode() != ApicMode::XApic || offset & 0xF != 0 {
            return Action::default();
        }
        match self.xapic_register(offset) {
            Some(register) => self.write_register(register, value, now, tsc),
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                Action::default()
            }
        }
    }

    /// Reads MSR `msr`, 0x800–0x83F. #GP outside x2APIC mode and for
    /// registers that are absent or write-only.
    pub fn read_msr(&mut self, msr: u32, now: u64, tsc: u64) -> Result<u64, GpFault> {
        match self.x2apic_register(msr)? {
            reg::EOI | reg::SELF_IPI => Err(GpFault),
            reg::ICR_LOW => Ok(u64::from(self.icr_high) << 32 | u64::from(self.icr_low)),
            register => Ok(self.read_register(register, now, tsc).into()),
        }
    }

    /// Writes MSR `msr`, 0x800–0x83F. #GP outside x2APIC mode, for registers
    /// that are absent or read-only, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
        tsc: u64,
    ) -> Result<Action, GpFault> {
        let register = self.x2apic_register(msr)?;
        let allowed = match register {
            reg::TPR | reg::SELF_IPI => 0xFF,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_WRITABLE,
            reg::ICR_LOW => ICR_WRITABLE | ICR_BUSY,
            reg::LVT..=reg::LVT_LAST => {
                let writable = LVT_WRITABLE.get((register - reg::LVT) as usize);
                writable.ok_or(GpFault)? | LVT_READ_ONLY
            }
            reg::INITIAL_COUNT => u32::MAX,
            reg::DIVIDE => timer::DIVIDE_WRITABLE,
            _ => return Err(GpFault),
        };
        if value as u32 & !allowed != 0 || (register != reg::ICR_LOW && value >> 32 != 0) {
            return Err(GpFault);
        }
        Ok(match register {
            reg::ICR_LOW => {
                self.icr_high = (value >> 32) as u32;
                self.write_register(register, value as u32, now, tsc)
            }
            reg::SELF_IPI => {
                self.icr_low = SHORTHAND_SELF << 18 | value as u32;
                self.send_ipi()
            }
            _ => self.write_register(register, value as u32, now, tsc),
        })
    }

    fn xapic_register(&self, offset: u64) -> Option<u32> {
        let register = u32::try_from(offset >> 4).ok()?;
        (exists(register) && register != reg::SELF_IPI).then_some(register)
    }

    fn x2apic_register(&self, msr: u32) -> Result<u32, GpFault> {
        let register = msr.checked_sub(MSR_X2APIC_FIRST).ok_or(GpFault)?;
        let absent = matches!(register, reg::APR | reg::RRD | reg::DFR | reg::ICR_HIGH);
        if self.mode() != ApicMode::X2Apic || absent || !exists(register) {
            return Err(GpFault);
        }
        Ok(register)
    }

    fn read_register(&mut self, register: u32, now: u64, tsc: u64) -> u32 {
        if register == reg::CURRENT_COUNT {
            return self.timer_count(now, tsc);
        }
        if (reg::IRR..=reg::IRR_LAST).contains(&register) {
            self.poll_timer(now, tsc);
        }
        self.register(register)
    }

    /// A register's value as saved and, but for the current count, as read.
    pub(super) fn register(&self, register: u32) -> u32 {
        match register {
            reg::ID if self.mode() == ApicMode::X2Apic => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::APR => self.arbitration_priority().into(),
            reg::PPR => self.ppr.into(),
            reg::LDR => self.logical_id(),
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=reg::ISR_LAST => self.isr.register((register - reg::ISR) as usize),
            reg::TMR..=reg::TMR_LAST => self.tmr.register((register - reg::TMR) as usize),
            reg::IRR..=reg::IRR_LAST => self.irr.register((register - reg::IRR) as usize),
            reg::ESR => self.esr,
            reg::ICR_LOW => self.icr_low,
            reg::ICR_HIGH => self.icr_high,
            reg::LVT..=reg::LVT_LAST => self.lvt[(register - reg::LVT) as usize],
            reg::INITIAL_COUNT => self.timer.initial,
            reg::DIVIDE => self.timer.divide,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32, now: u64, tsc: u64) -> Action {
        let mut action = Action::default();
        match register {
            reg::TPR => self.set_tpr(value as u8),
            reg::EOI => action.eoi = self.eoi(),
            reg::LDR => self.ldr = value & 0xFF00_0000,
            reg::DFR => self.dfr = value | DFR_FIXED,
            reg::SVR => {
                self.poll_timer(now, tsc);
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
                action.timer = true;
            }
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::ICR_LOW => {
                self.icr_low = value & ICR_WRITABLE;
                action = self.send_ipi();
            }
            reg::ICR_HIGH => self.icr_high = value & 0xFF00_0000,
            reg::LVT..=reg::LVT_LAST => {
                let entry = (register - reg::LVT) as usize;
                let forced = if self.software_enabled() {
                    0
                } else {
                    LVT_MASKED
                };
                let value = value & LVT_WRITABLE[entry] | forced;
                if entry == LVT_TIMER {
                    self.write_timer_lvt(value, now, tsc);
                    action.timer = true;
                } else {
                    self.lvt[entry] = value;
                }
            }
            reg::INITIAL_COUNT => {
                self.write_timer_initial(value, now, tsc);
                action.timer = true;
            }
            reg::DIVIDE => {
                self.write_timer_divide(value, now, tsc);
                action.timer = true;
            }
            // ID is fixed as on recent processors, the others are read-only.
            _ => {}
        }
        action
    }

    /// SDM vol. 3, 11.6.2.4.
    fn arbitration_priority(&self) -> u8 {
        let (task, request, service) = (
            self.tpr >> 4,
            self.irr.highest() >> 4,
            self.isr.highest() >> 4,
        );
        if task >= request && task > service {
            self.tpr
        } else {
            (task & service).max(request) << 4
        }
    }

    /// Sends what the ICR says (SDM vol. 3, 11.6.1).
    fn send_ipi(&mut self) -> Action {
        let icr = self.icr_low;
        let vector = icr as u8;
        let (level, assert) = (icr & 1 << 15 != 0, icr & 1 << 14 != 0);
        let Some(delivery) = Delivery::from_bits(icr >> 8) else {
            return Action::default();
        };
        match delivery {
            // "INIT level de-assert" only synchronized arbitration ids.
            Delivery::Init if level && !assert => return Action::default(),
            Delivery::ExtInt => return Action::default(),
            Delivery::Fixed | Delivery::LowestPriority if vector < FIRST_LEGAL => {
                self.error(ESR_SEND_ILLEGAL);
                return Action::default();
            }
            _ => {}
        }
        let logical = icr & 1 << 11 != 0;
        let destination = match icr >> 18 & 3 {
            SHORTHAND_SELF => Destination::Physical(self.id),
            SHORTHAND_ALL => Destination::All,
            SHORTHAND_ALL_BUT_SELF => Destination::AllBut(self.id),
            _ if self.mode() == ApicMode::XApic => {
                Destination::from_xapic((self.icr_high >> 24) as u8, logical)
            }
            _ if logical => Destination::Logical(self.icr_high),
            _ => Destination::Physical(self.icr_high),
        };
        let message = Message {
            destination,
            delivery,
            vector,
            level: false,
        };
        if icr >> 18 & 3 == SHORTHAND_SELF {
            // A processor cannot reset or start itself this way.
            if !matches!(delivery, Delivery::Init | Delivery::Startup) {
                self.accept(&message);
            }
            return Action::default();
        }
        Action {
            ipi: Some(message),
            ..Action::default()
        }
    }
}

const SHORTHAND_SELF: u32 = 1;
const SHORTHAND_ALL: u32 = 2;
const SHORTHAND_ALL_BUT_SELF: u32 = 3;

/// Registers of either mode.
fn exists(register: u32) -> bool {
    matches!(
        register,
        reg::ID | reg::VERSION | reg::TPR..=reg::ESR | reg::ICR_LOW..=reg::CURRENT_COUNT
            | reg::DIVIDE | reg::SELF_IPI
    )
}
