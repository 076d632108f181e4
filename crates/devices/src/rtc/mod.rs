//! MC146818 real-time clock with 128 bytes of CMOS memory. (Motorola
//! MC146818A data sheet, registers A–D and "Interrupts".)
//!
//! | port | read       | write                                     |
//! |------|------------|-------------------------------------------|
//! | +0   | all ones   | bits 6:0 select a register, bit 7 masks NMI |
//! | +1   | register   | register                                  |
//!
//! | register      | contents                                           |
//! |---------------|----------------------------------------------------|
//! | 0x00 02 04    | seconds, minutes, hours                            |
//! | 0x01 03 05    | alarm for them; 0xC0 and above match anything      |
//! | 0x06–0x09     | weekday (1 is Sunday), day, month, year            |
//! | 0x0A          | A: UIP (7), divider (6:4), periodic rate (3:0)     |
//! | 0x0B          | B: SET PIE AIE UIE SQWE DM 24H DSE                 |
//! | 0x0C          | C: IRQF PF AF UF, cleared by the read              |
//! | 0x0D          | D: 0x80, the battery is good                       |
//! | 0x32          | century, BCD or binary like the rest               |
//! | others        | memory                                             |
//!
//! The time is the wall clock plus an offset that the guest makes by setting
//! it. Registers of the time are worked out when read; they are really held
//! only while the clock is frozen by SET. Flags of C are worked out when
//! looked at; a timer runs only for an interrupt that is enabled and whose
//! flag the guest has taken since it was last set.

mod calendar;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::clock::Clock;
use crate::device::{Device, PortDevice, PortRange, TimerDevice};
use crate::interrupt::IrqLine;
use crate::platform::RTC_CENTURY;
use crate::saved::{DeviceState, StateError, check_version, damaged};
use crate::timer::Alarm;
use calendar::{Calendar, decode, decode_hour, encode, encode_hour};
pub use state::RtcState;
use state::VERSION;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REG_A: u8 = 0x0A;
const REG_B: u8 = 0x0B;
const REG_C: u8 = 0x0C;
const REG_D: u8 = 0x0D;

const A_UIP: u8 = 0x80;
/// 32.768 kHz time base, 976.562 µs periodic rate.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQ: u8 = 0x80;
/// The flags of C stand where their enable bits stand in B.
const C_FLAGS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
const D_VALID: u8 = 0x80;
/// Alarm registers with both top bits set match anything.
const ANY: u8 = 0xC0;

const SECOND_NS: u64 = 1_000_000_000;
/// UIP rises this long before an update (data sheet, tBUC).
const UPDATE_AHEAD_NS: u64 = 244_000;
/// Time base of the periodic interrupt.
const BASE_HZ: u64 = 32_768;

/// The device.
pub struct Rtc {
    port: u16,
    irq: IrqLine,
    alarm: Alarm,
    clock: Arc<dyn Clock>,
    index: u8,
    nmi_masked: bool,
    registers: [u8; 128],
    offset_ns: i64,
    seen_time_ns: u64,
    seen_now_ns: u64,
}

impl Rtc {
    /// A clock on the ports `port` and `port + 1` that shows the wall clock's
    /// time (UTC).
    pub fn new(port: u16, irq: IrqLine, alarm: Alarm, clock: Arc<dyn Clock>) -> Self {
        let mut registers = [0; 128];
        registers[usize::from(REG_A)] = A_DEFAULT;
        registers[usize::from(REG_B)] = B_24H;
        let mut rtc = Rtc {
            port,
            irq,
            alarm,
            index: 0,
            nmi_masked: false,
            registers,
            offset_ns: 0,
            seen_time_ns: clock.unix_ns(),
            seen_now_ns: clock.now_ns(),
            clock,
        };
        rtc.freeze();
        rtc
    }

    /// Presets CMOS memory, for firmware; registers of the clock are left
    /// alone, and so are numbers above 127.
    pub fn set_memory(&mut self, register: u8, value: u8) {
        let clock = register <= REG_D || register == RTC_CENTURY;
        if !clock && let Some(cell) = self.registers.get_mut(usize::from(register)) {
            *cell = value;
        }
    }

    fn get(&self, register: u8) -> u8 {
        self.registers[usize::from(register & 0x7F)]
    }

    fn put(&mut self, register: u8, value: u8) {
        self.registers[usize::from(register & 0x7F)] = value;
    }

    fn binary(&self) -> bool {
        self.get(REG_B) & B_BINARY != 0
    }

    fn full_day(&self) -> bool {
        self.get(REG_B) & B_24H != 0
    }

    /// Stopped by SET, or by a divider that is not the 32.768 kHz one.
    fn stopped(&self) -> bool {
        self.get(REG_B) & B_SET != 0 || self.get(REG_A) & 0x70 != 0x20
    }

    /// The guest's calendar time in nanoseconds since 1970.
    fn time_ns(&self) -> u64 {
        self.clock.unix_ns().saturating_add_signed(self.offset_ns)
    }

    /// Puts the current time into the registers.
    fn freeze(&mut self) {
        let t = Calendar::from_unix(self.time_ns() / SECOND_NS);
        let (binary, full_day) = (self.binary(), self.full_day());
        self.put(SECONDS, encode(t.second, binary));
        self.put(MINUTES, encode(t.minute, binary));
        self.put(HOURS, encode_hour(t.hour, binary, full_day));
        self.put(WEEKDAY, encode(t.weekday, binary));
        self.put(DAY, encode(t.day, binary));
        self.put(MONTH, encode(t.month, binary));
        self.put(YEAR, encode(t.year, binary));
        self.put(RTC_CENTURY, encode(t.year / 100, binary));
    }

    /// Makes the registers the current time; `fraction` of a second is past.
    fn thaw(&mut self, fraction: u64) {
        let (binary, full_day) = (self.binary(), self.full_day());
        let number = |register| decode(self.get(register), binary);
        let time = Calendar {
            year: number(RTC_CENTURY) * 100 + number(YEAR),
            month: number(MONTH),
            day: number(DAY),
            weekday: 1,
            hour: decode_hour(self.get(HOURS), binary, full_day),
            minute: number(MINUTES),
            second: number(SECONDS),
        };
        let ns = time
            .to_unix()
            .saturating_mul(SECOND_NS)
            .saturating_add(fraction);
        let wall = i128::from(self.clock.unix_ns());
        let offset = i128::from(ns) - wall;
        self.offset_ns = offset.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        self.seen_time_ns = self.time_ns();
    }

    /// Length of the periodic interrupt's interval, when it is on.
    fn period_ns(&self) -> Option<u64> {
        // Rates 1 and 2 are the same as 8 and 9 (data sheet, table 5).
        let shift = match self.get(REG_A) & 0xF {
            0 => return None,
            rate @ 1..=2 => rate + 6,
            rate => rate - 1,
        };
        Some((SECOND_NS << shift) / BASE_HZ)
    }

    /// The next time (seconds since 1970) after `after` that the alarm
    /// registers match; `None` when they never do.
    fn next_alarm(&self, after: u64) -> Option<u64> {
        let (binary, full_day) = (self.binary(), self.full_day());
        let field = |register, hour| match self.get(register) {
            ANY.. => None,
            value if hour => Some(decode_hour(value, binary, full_day)),
            value => Some(decode(value, binary)),
        };
        let hour = field(HOURS_ALARM, true);
        let minute = field(MINUTES_ALARM, false);
        let second = field(SECONDS_ALARM, false);
        if hour.is_some_and(|h| h > 23)
            || minute.is_some_and(|m| m > 59)
            || second.is_some_and(|s| s > 59)
        {
            return None;
        }
        let differs = |want: Option<u32>, is: u64| want.is_some_and(|want| u64::from(want) != is);
        let mut t = after.checked_add(1)?;
        // At most 24 + 60 + 60 steps and their carries.
        for _ in 0..200 {
            if differs(hour, t / 3600 % 24) {
                t = (t / 3600 + 1).checked_mul(3600)?;
            } else if differs(minute, t / 60 % 60) {
                t = (t / 60 + 1).checked_mul(60)?;
            } else if differs(second, t % 60) {
                t = t.checked_add(1)?;
            } else {
                return Some(t);
            }
        }
        None
    }

    /// Sets the flags of everything that happened since the last look.
    fn catch_up(&mut self) {
        let now = self.clock.now_ns();
        let time = self.time_ns();
        let mut flags = 0;
        if let Some(period) = self.period_ns()
            && now / period != self.seen_now_ns / period
        {
            flags |= B_PERIODIC;
        }
        let (seen, current) = (self.seen_time_ns / SECOND_NS, time / SECOND_NS);
        if !self.stopped() && current > seen {
            flags |= B_UPDATE;
            if self.next_alarm(seen).is_some_and(|t| t <= current) {
                flags |= B_ALARM;
            }
        }
        self.seen_now_ns = now;
        self.seen_time_ns = time;
        let value = self.get(REG_C) | flags;
        self.put(REG_C, value);
        self.update();
    }

    /// Drives the line and sets the timer.
    fn update(&mut self) {
        let flags = self.get(REG_C) & C_FLAGS;
        let irq = flags & self.get(REG_B) != 0;
        self.put(REG_C, flags | if irq { C_IRQ } else { 0 });
        self.irq.set(irq);
        self.alarm.set(self.deadline());
    }

    fn deadline(&self) -> Option<u64> {
        let wanted = self.get(REG_B) & !self.get(REG_C) & C_FLAGS;
        let now = self.seen_now_ns;
        let time = self.seen_time_ns;
        let at_second = |second: u64| {
            let until = second.saturating_mul(SECOND_NS).saturating_sub(time);
            now.saturating_add(until)
        };
        let periodic = self
            .period_ns()
            .filter(|_| wanted & B_PERIODIC != 0)
            .map(|period| (now / period + 1).saturating_mul(period));
        if self.stopped() {
            return periodic;
        }
        let second = time / SECOND_NS;
        let update = (wanted & B_UPDATE != 0).then(|| at_second(second + 1));
        let alarm = match wanted & B_ALARM {
            0 => None,
            _ => self.next_alarm(second).map(at_second),
        };
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn read_register(&mut self) -> u8 {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | RTC_CENTURY => {
                if !self.stopped() {
                    self.freeze();
                }
                self.get(self.index)
            }
            REG_A => {
                let near = self.time_ns() % SECOND_NS >= SECOND_NS - UPDATE_AHEAD_NS;
                let updating = near && !self.stopped();
                self.get(REG_A) | if updating { A_UIP } else { 0 }
            }
            REG_C => {
                self.catch_up();
                let value = self.get(REG_C);
                self.put(REG_C, 0);
                self.update();
                value
            }
            REG_D => D_VALID,
            other => self.get(other),
        }
    }

    fn write_register(&mut self, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | RTC_CENTURY => {
                if self.stopped() {
                    self.put(self.index, value);
                } else {
                    self.freeze();
                    self.put(self.index, value);
                    self.thaw(self.time_ns() % SECOND_NS);
                    self.update();
                }
            }
            REG_A | REG_B => {
                self.catch_up();
                let was_stopped = self.stopped();
                if !was_stopped {
                    self.freeze();
                }
                match self.index {
                    REG_A => self.put(REG_A, value & !A_UIP),
                    // Entering SET clears UIE (data sheet, register B).
                    _ if value & B_SET != 0 => self.put(REG_B, value & !B_UPDATE),
                    _ => self.put(REG_B, value),
                }
                if was_stopped && !self.stopped() {
                    self.thaw(0);
                }
                self.update();
            }
            REG_C | REG_D => {}
            SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM => {
                self.catch_up();
                self.put(self.index, value);
                self.update();
            }
            other => self.put(other, value),
        }
    }

    fn state(&self) -> RtcState {
        RtcState {
            version: VERSION,
            index: self.index,
            nmi_masked: self.nmi_masked,
            registers: self.registers.to_vec(),
            offset_ns: self.offset_ns,
            seen_time_ns: self.seen_time_ns,
            seen_now_ns: self.seen_now_ns,
        }
    }

    fn set_state(&mut self, state: &RtcState) -> Result<(), StateError> {
        check_version("rtc", state.version, VERSION)?;
        let registers = <[u8; 128]>::try_from(state.registers.as_slice())
            .map_err(|_| damaged("rtc", "it has not 128 registers"))?;
        self.index = state.index & 0x7F;
        self.nmi_masked = state.nmi_masked;
        self.registers = registers;
        self.offset_ns = state.offset_ns;
        self.seen_time_ns = state.seen_time_ns;
        self.seen_now_ns = state.seen_now_ns;
        self.irq.force(self.get(REG_C) & C_IRQ != 0);
        self.alarm.set(self.deadline());
        Ok(())
    }
}

impl PortDevice for Rtc {
    fn port_ranges(&self) -> Vec<PortRange> {
        vec![self.port..=self.port.saturating_add(1)]
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            if port != self.port {
                *byte = self.read_register();
            }
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            if port == self.port {
                self.index = byte & 0x7F;
                self.nmi_masked = byte & 0x80 != 0;
            } else {
                self.write_register(*byte);
            }
        }
    }
}

impl TimerDevice for Rtc {
    fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    fn expire(&mut self, _now: u64) {
        self.catch_up();
    }
}

impl Device for Rtc {
    fn ports(&mut self) -> Option<&mut dyn PortDevice> {
        Some(self)
    }

    fn timer(&mut self) -> Option<&mut dyn TimerDevice> {
        Some(self)
    }

    fn resume(&mut self) {
        // The wall clock went on during the pause.
        self.catch_up();
    }

    /// Time and memory are on battery; reset clears the interrupt enables
    /// and flags (data sheet, "RESET").
    fn reset(&mut self) {
        self.index = 0;
        self.nmi_masked = false;
        let enables = self.get(REG_B) & !C_FLAGS & !0x08;
        self.put(REG_B, enables);
        self.put(REG_C, 0);
        self.update();
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::Rtc(self.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Rtc(state) => self.set_state(state),
            other => Err(StateError::WrongDevice {
                device: "rtc",
                found: other.kind(),
            }),
        }
    }
}
