//! ACPI fixed hardware. (ACPI 6.5, section 4.8 "ACPI Register Model".)
//!
//! | port          | bytes | register                                       |
//! |---------------|-------|------------------------------------------------|
//! | 0x600         | 2     | PM1 status; writing a one clears               |
//! | 0x602         | 2     | PM1 enable                                     |
//! | 0x604         | 2     | PM1 control: SCI_EN 0, SLP_TYP 12:10, SLP_EN 13 |
//! | 0x608         | 4     | PM timer, 3.579545 MHz, 32 bits, read-only     |
//! | 0x620         | 2     | GPE0 status; writing a one clears              |
//! | 0x622         | 2     | GPE0 enable                                    |
//!
//! The platform is always in ACPI mode: there is no SMI command port and
//! SCI_EN reads as one. The SCI is level-triggered, active high: it is up
//! while any status bit has its enable bit set. Sleep type
//! [`SLEEP_TYPE_S5`] with SLP_EN turns the
//! machine off; other types do nothing. The reset register that the FADT
//! names belongs to the [PCI host bridge](crate::pci).

mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::clock::Clock;
use crate::device::{Device, PortDevice, PortRange, TimerDevice};
use crate::interrupt::IrqLine;
use crate::lock;
use crate::platform::{
    GPE0_LEN, GPE0_PORT, PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, SLEEP_TYPE_S5,
};
use crate::power::PowerSink;
use crate::saved::{DeviceState, StateError, check_version};
use crate::timer::Alarm;
pub use state::PmState;
use state::VERSION;

/// Frequency of the PM timer in hertz.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const STS_TIMER: u16 = 1 << 0;
const STS_GLOBAL: u16 = 1 << 5;
const STS_POWER_BUTTON: u16 = 1 << 8;
const STS_RTC: u16 = 1 << 10;
/// Enable bits that exist.
const ENABLES: u16 = STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC;
/// Control bits the guest may change: bus-master reload and sleep type.
const CONTROLS: u16 = 1 << 1 | 7 << 10;
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE_HIGH: u8 = 1 << 5;
/// TMR_STS is set whenever the timer's top bit changes.
const CARRY_SHIFT: u32 = 31;

const EVENT_LAST: u16 = PM1A_EVENT_PORT + 3;
const CONTROL_LAST: u16 = PM1A_CONTROL_PORT + 1;
const TIMER_LAST: u16 = PM_TIMER_PORT + 3;
const GPE_LAST: u16 = GPE0_PORT + GPE0_LEN as u16 - 1;

struct Core {
    sci: IrqLine,
    alarm: Alarm,
    clock: Arc<dyn Clock>,
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    seen_ns: u64,
    paused: bool,
}

/// The device.
pub struct Pm {
    core: Arc<Mutex<Core>>,
    power: Arc<dyn PowerSink>,
    alarm: Alarm,
}

/// Raises events from any thread.
#[derive(Clone)]
pub struct PmHandle(Arc<Mutex<Core>>);

impl PmHandle {
    /// Presses the power button: a request that the guest may act on.
    pub fn press_power_button(&self) {
        let mut core = lock(&self.0);
        core.pm1_status |= STS_POWER_BUTTON;
        core.update();
    }

    /// Raises general-purpose event `bit` (0–15).
    pub fn raise_gpe(&self, bit: u8) {
        let mut core = lock(&self.0);
        core.gpe_status |= 1u16.checked_shl(u32::from(bit)).unwrap_or(0);
        core.update();
    }
}

impl fmt::Debug for PmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PmHandle")
    }
}

/// Timer ticks at guest time `ns`.
fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u64
}

impl Core {
    fn catch_up(&mut self) {
        let now = self.clock.now_ns();
        if ticks(now) >> CARRY_SHIFT != ticks(self.seen_ns) >> CARRY_SHIFT {
            self.pm1_status |= STS_TIMER;
        }
        self.seen_ns = now;
        self.update();
    }

    fn asserted(&self) -> bool {
        self.pm1_status & self.pm1_enable != 0 || self.gpe_status & self.gpe_enable != 0
    }

    fn update(&mut self) {
        self.alarm.set(self.deadline());
        if !self.paused {
            self.sci.set(self.asserted());
        }
    }

    fn deadline(&self) -> Option<u64> {
        if self.pm1_enable & !self.pm1_status & STS_TIMER == 0 {
            return None;
        }
        let carry = u128::from((ticks(self.seen_ns) >> CARRY_SHIFT) + 1) << CARRY_SHIFT;
        let ns = (carry * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
        u64::try_from(ns).ok()
    }

    fn read(&self, port: u16) -> u8 {
        let pick = |value: u16, at: u16| value.to_le_bytes()[usize::from(at & 1)];
        match port {
            PM1A_EVENT_PORT..=EVENT_LAST if port & 2 == 0 => pick(self.pm1_status, port),
            PM1A_EVENT_PORT..=EVENT_LAST => pick(self.pm1_enable, port),
            PM1A_CONTROL_PORT..=CONTROL_LAST => pick(self.pm1_control | SCI_ENABLED, port),
            GPE0_PORT..=GPE_LAST if port & 2 == 0 => pick(self.gpe_status, port),
            GPE0_PORT..=GPE_LAST => pick(self.gpe_enable, port),
            _ => 0,
        }
    }

    /// True when the guest asks to be turned off.
    fn write(&mut self, port: u16, value: u8) -> bool {
        let shift = u32::from(port & 1) * 8;
        let wide = u16::from(value) << shift;
        let keep = !(0xFF << shift);
        match port {
            PM1A_EVENT_PORT..=EVENT_LAST if port & 2 == 0 => self.pm1_status &= !wide,
            PM1A_EVENT_PORT..=EVENT_LAST => {
                self.pm1_enable = (self.pm1_enable & keep | wide) & ENABLES;
            }
            PM1A_CONTROL_PORT..=CONTROL_LAST => {
                self.pm1_control = (self.pm1_control & keep | wide) & CONTROLS;
                let sleeps = port == CONTROL_LAST && value & SLEEP_ENABLE_HIGH != 0;
                let kind = self.pm1_control >> SLEEP_TYPE_SHIFT & 7;
                return sleeps && kind == u16::from(SLEEP_TYPE_S5);
            }
            GPE0_PORT..=GPE_LAST if port & 2 == 0 => self.gpe_status &= !wide,
            GPE0_PORT..=GPE_LAST => self.gpe_enable = self.gpe_enable & keep | wide,
            _ => {}
        }
        false
    }
}

impl Pm {
    /// The block at its ports of [`crate::platform`].
    pub fn new(
        sci: IrqLine,
        alarm: Alarm,
        clock: Arc<dyn Clock>,
        power: Arc<dyn PowerSink>,
    ) -> Self {
        Pm {
            alarm: alarm.clone(),
            power,
            core: Arc::new(Mutex::new(Core {
                sci,
                alarm,
                seen_ns: clock.now_ns(),
                clock,
                pm1_status: 0,
                pm1_enable: 0,
                pm1_control: 0,
                gpe_status: 0,
                gpe_enable: 0,
                paused: false,
            })),
        }
    }

    /// For the power button and for devices that raise events.
    pub fn handle(&self) -> PmHandle {
        PmHandle(self.core.clone())
    }
}

impl PortDevice for Pm {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![
            PM1A_EVENT_PORT..=CONTROL_LAST,
            PM_TIMER_PORT..=TIMER_LAST,
            GPE0_PORT..=GPE_LAST,
        ]
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        let mut core = lock(&self.core);
        if (PM_TIMER_PORT..=TIMER_LAST).contains(&port) {
            let value = (ticks(core.clock.now_ns()) as u32).to_le_bytes();
            let from = usize::from(port - PM_TIMER_PORT);
            for (byte, value) in data.iter_mut().zip(value.iter().skip(from)) {
                *byte = *value;
            }
            return;
        }
        core.catch_up();
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = core.read(port);
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        let mut core = lock(&self.core);
        core.catch_up();
        let mut off = false;
        for (port, byte) in (port..=u16::MAX).zip(data) {
            off |= core.write(port, *byte);
        }
        core.update();
        drop(core);
        if off {
            self.power.power_off();
        }
    }
}

impl TimerDevice for Pm {
    fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    fn expire(&mut self, _now: u64) {
        lock(&self.core).catch_up();
    }
}

impl Device for Pm {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn timer(&mut self) -> Option<&mut dyn TimerDevice> {
        Some(self)
    }

    fn pause(&mut self) {
        lock(&self.core).paused = true;
    }

    fn resume(&mut self) {
        let mut core = lock(&self.core);
        core.paused = false;
        core.update();
    }

    fn reset(&mut self) {
        let mut core = lock(&self.core);
        core.pm1_status = 0;
        core.pm1_enable = 0;
        core.pm1_control = 0;
        core.gpe_status = 0;
        core.gpe_enable = 0;
        core.seen_ns = core.clock.now_ns();
        core.alarm.set(None);
        core.sci.set(false);
    }

    fn save(&mut self) -> DeviceState {
        let core = lock(&self.core);
        DeviceState::Pm(PmState {
            version: VERSION,
            pm1_status: core.pm1_status,
            pm1_enable: core.pm1_enable,
            pm1_control: core.pm1_control,
            gpe_status: core.gpe_status,
            gpe_enable: core.gpe_enable,
            seen_ns: core.seen_ns,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Pm(state) = state else {
            return Err(StateError::WrongDevice {
                device: "pm",
                found: state.kind(),
            });
        };
        check_version("pm", state.version, VERSION)?;
        let mut core = lock(&self.core);
        core.pm1_status = state.pm1_status;
        core.pm1_enable = state.pm1_enable & ENABLES;
        core.pm1_control = state.pm1_control & CONTROLS;
        core.gpe_status = state.gpe_status;
        core.gpe_enable = state.gpe_enable;
        core.seen_ns = state.seen_ns;
        core.alarm.set(core.deadline());
        core.sci.force(core.asserted());
        Ok(())
    }
}
