//! Calendar arithmetic and the two number formats of the clock registers.

/// A point in time, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub year: u32,
    /// 1–12.
    pub month: u32,
    /// 1–31.
    pub day: u32,
    /// 1 is Sunday.
    pub weekday: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first day of `year` (1970 or later).
fn days_before(year: u32) -> u64 {
    let years = u64::from(year.saturating_sub(1970));
    let last = u64::from(year.saturating_sub(1).max(1969));
    // Leap days of the years 1 to `last`, less those up to 1969.
    years * 365 + (last / 4 - last / 100 + last / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

impl Calendar {
    /// From seconds since 1970; the far future (beyond year 9999) is clipped.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(days_before(10_000) * 86_400 - 1);
        let days = seconds / 86_400;
        let mut year = 1970 + (days / 366) as u32;
        while days_before(year + 1) <= days {
            year += 1;
        }
        let mut rest = (days - days_before(year)) as u32;
        let mut month = 1;
        while rest >= days_in(year, month) {
            rest -= days_in(year, month);
            month += 1;
        }
        let time = (seconds % 86_400) as u32;
        Calendar {
            year,
            month,
            day: rest + 1,
            // 1970-01-01 was a Thursday.
            weekday: ((days + 4) % 7) as u32 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// To seconds since 1970; fields out of range are brought into it.
    pub fn to_unix(self) -> u64 {
        let year = self.year.clamp(1970, 9999);
        let month = self.month.clamp(1, 12);
        let day = self.day.clamp(1, days_in(year, month));
        let before: u32 = (1..month).map(|m| days_in(year, m)).sum();
        let days = days_before(year) + u64::from(before + day - 1);
        let time = self.hour.min(23) * 3600 + self.minute.min(59) * 60 + self.second.min(59);
        days * 86_400 + u64::from(time)
    }
}

/// A number below 100 as a register holds it.
pub(super) fn encode(value: u32, binary: bool) -> u8 {
    let value = (value % 100) as u8;
    match binary {
        true => value,
        false => ((value / 10) << 4) | (value % 10),
    }
}

/// Counterpart of [`encode`]; digits above 9 count as what they are.
pub(super) fn decode(register: u8, binary: bool) -> u32 {
    match binary {
        true => u32::from(register),
        false => u32::from(register >> 4) * 10 + u32::from(register & 0xF),
    }
}

/// An hour register: in 12-hour mode 1–12 with bit 7 for the afternoon.
pub(super) fn encode_hour(hour: u32, binary: bool, full_day: bool) -> u8 {
    if full_day {
        return encode(hour, binary);
    }
    let afternoon = if hour >= 12 { 0x80 } else { 0 };
    encode((hour + 11) % 12 + 1, binary) | afternoon
}

/// Counterpart of [`encode_hour`].
pub(super) fn decode_hour(register: u8, binary: bool, full_day: bool) -> u32 {
    if full_day {
        return decode(register, binary);
    }
    let afternoon = if register & 0x80 != 0 { 12 } else { 0 };
    decode(register & 0x7F, binary) % 12 + afternoon
}
