//! Save and restore.

use super::registers::{ICR_WRITABLE, VERSION, reg};
use super::timer::{DIVIDE_WRITABLE, Timer};
use super::vectors::VectorSet;
use super::{
    ApicMode, BASE_EN, BASE_EXTD, BASE_RESERVED, DFR_FIXED, ESR_ALL, LVT_COUNT, LVT_WRITABLE,
    Lapic, SVR_WRITABLE, mode_of,
};
use crate::{LapicState, RestoreError};

/// Registers of a page.
const PAGE_REGISTERS: usize = 64;

impl Lapic {
    /// Complete state.
    pub fn save(&self) -> LapicState {
        LapicState {
            apic_base: self.base,
            registers: (0..PAGE_REGISTERS as u32)
                .map(|index| self.register(index))
                .collect(),
            errors: self.errors,
            tsc_deadline: self.timer.deadline,
            timer_expires_at: self.timer.expires_at,
            nmi: self.nmis != 0,
            init: self.init,
            startup: self.startup,
            ext_int: self.ext_int,
        }
    }

    /// Counterpart of [`save`](Self::save). Checks everything before it
    /// changes anything.
    pub fn restore(&mut self, state: &LapicState) -> Result<(), RestoreError> {
        let registers: &[u32; PAGE_REGISTERS] =
            state
                .registers
                .as_slice()
                .try_into()
                .map_err(|_| RestoreError::Length {
                    what: "local APIC registers",
                    found: state.registers.len(),
                    expected: PAGE_REGISTERS,
                })?;
        let get = |register: u32| registers[register as usize % PAGE_REGISTERS];

        let base = state.apic_base;
        let extended_only = base & (BASE_EN | BASE_EXTD) == BASE_EXTD;
        if base & BASE_RESERVED != 0 || base >> self.physical_bits != 0 || extended_only {
            return Err(RestoreError::Value {
                what: "IA32_APIC_BASE",
                value: base,
            });
        }
        let mode = mode_of(base);
        let (found, expected) = match mode {
            ApicMode::X2Apic => (get(reg::ID), self.id),
            _ => (get(reg::ID) >> 24, self.id & 0xFF),
        };
        if found != expected {
            return Err(RestoreError::WrongApic { found, expected });
        }
        let check = |register, what, allowed: u32| {
            let value = get(register);
            if value & !allowed != 0 {
                return Err(RestoreError::Value {
                    what,
                    value: value.into(),
                });
            }
            Ok(value)
        };
        if get(reg::VERSION) != VERSION {
            let value = get(reg::VERSION).into();
            return Err(RestoreError::Value {
                what: "local APIC version",
                value,
            });
        }
        let tpr = check(reg::TPR, "TPR", 0xFF)? as u8;
        let svr = check(reg::SVR, "SVR", SVR_WRITABLE)?;
        let esr = check(reg::ESR, "ESR", ESR_ALL)?;
        let icr_low = check(reg::ICR_LOW, "ICR", ICR_WRITABLE)?;
        let divide = check(reg::DIVIDE, "timer divide configuration", DIVIDE_WRITABLE)?;
        if state.errors & !ESR_ALL != 0 {
            return Err(RestoreError::Value {
                what: "ESR",
                value: state.errors.into(),
            });
        }
        let mut lvt = [0; LVT_COUNT];
        for (entry, lvt) in lvt.iter_mut().enumerate() {
            *lvt = check(reg::LVT + entry as u32, "LVT entry", LVT_WRITABLE[entry])?;
        }
        let vectors = |first: u32, what| {
            let first = first as usize;
            let bad = RestoreError::Value {
                what,
                value: u64::from(registers[first]),
            };
            VectorSet::from_registers(&registers[first..first + 8]).ok_or(bad)
        };
        let (isr, tmr, irr) = (
            vectors(reg::ISR, "ISR")?,
            vectors(reg::TMR, "TMR")?,
            vectors(reg::IRR, "IRR")?,
        );

        self.base = base;
        self.tpr = tpr;
        self.svr = svr;
        self.esr = esr;
        self.errors = state.errors;
        self.isr = isr;
        self.tmr = tmr;
        self.irr = irr;
        self.icr_low = icr_low;
        self.icr_high = get(reg::ICR_HIGH);
        // In x2APIC mode the LDR shown follows from the id.
        self.ldr = if mode == ApicMode::X2Apic {
            0
        } else {
            get(reg::LDR) & 0xFF00_0000
        };
        self.dfr = get(reg::DFR) | DFR_FIXED;
        self.lvt = lvt;
        self.timer = Timer {
            initial: get(reg::INITIAL_COUNT),
            divide,
            expires_at: state.timer_expires_at,
            deadline: state.tsc_deadline,
        };
        self.nmis = state.nmi.into();
        self.init = state.init;
        self.startup = state.startup;
        self.ext_int = state.ext_int;
        self.update_ppr();
        Ok(())
    }
}
