//! Two cascaded 8259A interrupt controllers with the edge/level registers of
//! the PIIX (Intel 8259A data sheet; 82371SB data sheet for ELCR).
//!
//! Initialization of each chip:
//!
//! ```text
//!  any ──ICW1──▶ wait ICW2 ──▶ wait ICW3 ──▶ wait ICW4 ──▶ ready
//!                    └─ single ───▶└─ no ICW4 announced ────▶┘
//! ```
//!
//! A rise on an edge-triggered input stays requested when the line falls: what
//! signals by short pulses loses nothing.

use crate::{PicState, PicsState, RestoreError};

/// Input of the master at which the slave hangs.
const CASCADE: u8 = 2;
/// Inputs that may be level-triggered (82371SB): not 0, 1, 2, 8 and 13.
const ELCR_WRITABLE: [u8; 2] = [0xF8, 0xDE];

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Pic {
    /// Latched rises of the edge-triggered inputs.
    edges: u8,
    imr: u8,
    isr: u8,
    lines: u8,
    base: u8,
    elcr: u8,
    /// The input with the highest priority.
    top: u8,
    init: InitStep,
    single: bool,
    needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    poll: bool,
    read_isr: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum InitStep {
    #[default]
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

impl Pic {
    /// Interrupt request register.
    fn irr(&self) -> u8 {
        self.edges & !self.elcr | self.lines & self.elcr
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.edges |= bit & !self.lines & !self.elcr;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// 0 for the input with the highest priority in `inputs`, 8 for none.
    fn priority(&self, inputs: u8) -> u8 {
        inputs.rotate_right(self.top.into()).trailing_zeros() as u8
    }

    /// The input to be served, if one has priority over what is in service.
    /// `cascaded` are the inputs at which another chip hangs.
    fn request(&self, cascaded: u8) -> Option<u8> {
        if self.init != InitStep::Ready {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested {
            // The slave may interrupt again while one of its inputs is served.
            in_service &= !cascaded;
        }
        let wanted = self.priority(self.irr() & !self.imr);
        (wanted < self.priority(in_service)).then(|| (wanted + self.top) & 7)
    }

    /// Takes `input` into service; returns it as a bit when automatic EOI
    /// ended it at once.
    fn serve(&mut self, input: u8) -> u8 {
        let bit = 1 << input;
        self.edges &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
            return 0;
        }
        if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
        bit
    }

    /// Command port; returns the inputs that ended.
    fn write_command(&mut self, value: u8) -> u8 {
        if value & 0x10 != 0 {
            *self = Pic {
                lines: self.lines,
                elcr: self.elcr,
                base: self.base,
                init: InitStep::Icw2,
                single: value & 2 != 0,
                needs_icw4: value & 1 != 0,
                ..Pic::default()
            };
            0
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            0
        } else {
            self.write_ocw2(value)
        }
    }

    fn write_ocw2(&mut self, value: u8) -> u8 {
        let level = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        match (eoi, specific) {
            (false, false) => {
                self.rotate_on_auto_eoi = rotate;
                0
            }
            (false, true) => {
                if rotate {
                    self.top = (level + 1) & 7;
                }
                0
            }
            (true, _) => {
                let input = if specific {
                    level
                } else {
                    // In special mask mode masked inputs do not count.
                    let hidden = if self.special_mask { self.imr } else { 0 };
                    match self.priority(self.isr & !hidden) {
                        8 => return 0,
                        priority => (priority + self.top) & 7,
                    }
                };
                let ended = self.isr & 1 << input;
                self.isr &= !ended;
                if rotate {
                    self.top = (input + 1) & 7;
                }
                ended
            }
        }
    }

    /// An input that becomes level-triggered forgets its latched rise.
    fn write_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.edges &= !value;
    }

    /// Data port.
    fn write_data(&mut self, value: u8) {
        let icw4 = if self.needs_icw4 {
            InitStep::Icw4
        } else {
            InitStep::Ready
        };
        match self.init {
            InitStep::Ready => self.imr = value,
            InitStep::Icw2 => {
                self.base = value & 0xF8;
                self.init = if self.single { icw4 } else { InitStep::Icw3 };
            }
            // The cascade is wired; what the guest says about it is moot.
            InitStep::Icw3 => self.init = icw4,
            InitStep::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = InitStep::Ready;
            }
        }
    }

    fn save(&self) -> PicState {
        PicState {
            irr: self.irr(),
            imr: self.imr,
            isr: self.isr,
            lines: self.lines,
            base: self.base,
            elcr: self.elcr,
            priority_add: self.top,
            init_step: self.init as u8,
            single: self.single,
            needs_icw4: self.needs_icw4,
            auto_eoi: self.auto_eoi,
            rotate_on_auto_eoi: self.rotate_on_auto_eoi,
            special_fully_nested: self.special_fully_nested,
            special_mask: self.special_mask,
            poll: self.poll,
            read_isr: self.read_isr,
        }
    }

    fn from_state(state: &PicState, elcr_writable: u8) -> Result<Self, RestoreError> {
        let bad = |what, value: u8| {
            Err(RestoreError::Value {
                what,
                value: value.into(),
            })
        };
        if state.base & 7 != 0 {
            return bad("PIC vector base", state.base);
        }
        if state.elcr & !elcr_writable != 0 {
            return bad("PIC edge/level control", state.elcr);
        }
        if state.priority_add > 7 {
            return bad("PIC highest priority", state.priority_add);
        }
        let init = match state.init_step {
            0 => InitStep::Ready,
            1 => InitStep::Icw2,
            2 => InitStep::Icw3,
            3 => InitStep::Icw4,
            other => return bad("PIC initialization step", other),
        };
        Ok(Pic {
            edges: state.irr & !state.elcr,
            imr: state.imr,
            isr: state.isr,
            lines: state.lines,
            base: state.base,
            elcr: state.elcr,
            top: state.priority_add,
            init,
            single: state.single,
            needs_icw4: state.needs_icw4,
            auto_eoi: state.auto_eoi,
            rotate_on_auto_eoi: state.rotate_on_auto_eoi,
            special_fully_nested: state.special_fully_nested,
            special_mask: state.special_mask,
            poll: state.poll,
            read_isr: state.read_isr,
        })
    }
}

/// Master and slave.
#[derive(Clone, Debug, Default)]
pub struct Pics {
    master: Pic,
    slave: Pic,
}

impl Pics {
    /// As after reset: not initialized, all inputs edge-triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to reset. The devices' lines stay as they drive them.
    pub fn reset(&mut self) {
        for pic in [&mut self.master, &mut self.slave] {
            *pic = Pic {
                lines: pic.lines,
                ..Pic::default()
            };
        }
        self.master.lines &= !(1 << CASCADE);
    }

    /// Whether this is a port of the pair.
    pub fn claims_port(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1)
    }

    /// Drives input `irq`, 0–15. The cascade (2) and unknown ones are ignored.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_line(irq, level),
            8..16 => {
                self.slave.set_line(irq - 8, level);
                self.cascade();
            }
            _ => {}
        }
    }

    /// The INTR output.
    pub fn output(&self) -> bool {
        self.master.request(1 << CASCADE).is_some()
    }

    /// The processor's acknowledgement: the vector, and the inputs that
    /// automatic EOI ended, a bit each. Without a request it is the spurious
    /// IRQ 7, or 15 when the slave's request went away.
    pub fn acknowledge(&mut self) -> (u8, u16) {
        let Some(input) = self.master.request(1 << CASCADE) else {
            return (self.master.base | 7, 0);
        };
        let mut ended = u16::from(self.master.serve(input));
        if input != CASCADE {
            return (self.master.base | input, ended);
        }
        let vector = match self.slave.request(0) {
            Some(input) => {
                ended |= u16::from(self.slave.serve(input)) << 8;
                self.slave.base | input
            }
            None => self.slave.base | 7,
        };
        self.recascade();
        (vector, ended & !(1 << CASCADE))
    }

    /// Reads a byte from `port`: the value, and the inputs that ended (a poll
    /// in automatic EOI mode), a bit each.
    pub fn read(&mut self, port: u16) -> (u8, u16) {
        match port {
            0x4D0 => return (self.master.elcr, 0),
            0x4D1 => return (self.slave.elcr, 0),
            _ => {}
        }
        let slave = port & 0x80 != 0;
        let (pic, cascaded) = if slave {
            (&mut self.slave, 0)
        } else {
            (&mut self.master, 1 << CASCADE)
        };
        if !std::mem::take(&mut pic.poll) {
            let value = match (port & 1, pic.read_isr) {
                (1, _) => pic.imr,
                (_, true) => pic.isr,
                (_, false) => pic.irr(),
            };
            return (value, 0);
        }
        let Some(input) = pic.request(cascaded) else {
            return (0, 0);
        };
        let ended = u16::from(pic.serve(input)) << if slave { 8 } else { 0 };
        self.recascade();
        (0x80 | input, ended & !(1 << CASCADE))
    }

    /// Writes a byte to `port`; returns the inputs that ended, a bit each.
    pub fn write(&mut self, port: u16, value: u8) -> u16 {
        let ended = match port {
            0x20 => self.master.write_command(value).into(),
            0x21 => {
                self.master.write_data(value);
                0
            }
            0xA0 => u16::from(self.slave.write_command(value)) << 8,
            0xA1 => {
                self.slave.write_data(value);
                0
            }
            0x4D0 => {
                self.master.write_elcr(value & ELCR_WRITABLE[0]);
                0
            }
            0x4D1 => {
                self.slave.write_elcr(value & ELCR_WRITABLE[1]);
                0
            }
            _ => 0,
        };
        self.recascade();
        ended & !(1 << CASCADE)
    }

    /// Passes a request of the slave to the master. It stays there when a
    /// device withdraws it: that makes the spurious IRQ 15.
    fn cascade(&mut self) {
        if self.slave.request(0).is_some() {
            self.master.edges |= 1 << CASCADE;
        }
    }

    /// The same after the guest touched a chip: what it masked or took itself
    /// is withdrawn.
    fn recascade(&mut self) {
        self.master.edges &= !(1 << CASCADE);
        self.cascade();
    }

    /// Complete state.
    pub fn save(&self) -> PicsState {
        PicsState {
            master: self.master.save(),
            slave: self.slave.save(),
        }
    }

    /// Counterpart of [`save`](Self::save). Checks everything before it
    /// changes anything.
    pub fn restore(&mut self, state: &PicsState) -> Result<(), RestoreError> {
        let master = Pic::from_state(&state.master, ELCR_WRITABLE[0])?;
        let slave = Pic::from_state(&state.slave, ELCR_WRITABLE[1])?;
        *self = Pics { master, slave };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's init_8259A does it.
    fn linux() -> Pics {
        let mut pics = Pics::new();
        for (port, value) in [
            (0x21, 0xFF),
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xA0, 0x11),
            (0xA1, 0x38),
            (0xA1, 0x02),
            (0xA1, 0x01),
            (0x21, 0x00),
            (0xA1, 0x00),
        ] {
            assert_eq!(pics.write(port, value), 0);
        }
        pics
    }

    fn pulse(pics: &mut Pics, irq: u8) {
        pics.set_irq(irq, true);
        pics.set_irq(irq, false);
    }

    #[test]
    fn priorities_and_eoi() {
        let mut pics = linux();
        pulse(&mut pics, 4);
        pulse(&mut pics, 0);
        assert_eq!(pics.acknowledge(), (0x30, 0));
        assert!(!pics.output(), "IRQ 4 waits for IRQ 0");
        assert_eq!(pics.write(0x20, 0x60), 1, "specific EOI");
        assert_eq!(pics.acknowledge().0, 0x34);
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge().0, 0x31, "nested");
        assert_eq!(pics.write(0x20, 0x20), 1 << 1);
        assert_eq!(pics.write(0x20, 0x20), 1 << 4);
        assert_eq!(pics.write(0x20, 0x20), 0);
    }

    #[test]
    fn slave_goes_through_the_cascade() {
        let mut pics = linux();
        pulse(&mut pics, 8);
        pulse(&mut pics, 14);
        assert_eq!(pics.acknowledge().0, 0x38);
        assert_eq!(pics.write(0xA0, 0x60), 1 << 8);
        assert!(!pics.output(), "the master's input is still in service");
        assert_eq!(pics.write(0x20, 0x62), 0);
        assert_eq!(pics.acknowledge().0, 0x3E);
    }

    #[test]
    fn masks() {
        let mut pics = linux();
        assert_eq!(pics.write(0x21, 0xFB), 0);
        pulse(&mut pics, 4);
        assert!(!pics.output());
        assert_eq!(pics.read(0x21).0, 0xFB);
        assert_eq!(pics.read(0x20).0, 0x10);
        pics.set_irq(12, true);
        assert!(pics.output());
        assert_eq!(pics.write(0xA1, 0xFF), 0);
        assert!(!pics.output(), "masking at the slave withdraws its request");
        assert_eq!(pics.write(0x21, 0), 0);
        assert_eq!(pics.acknowledge().0, 0x34);
    }

    #[test]
    fn spurious() {
        let mut pics = linux();
        assert_eq!(pics.acknowledge().0, 0x37);
        assert_eq!(pics.write(0x4D1, 0xFF), 0);
        assert_eq!(pics.read(0x4D1).0, 0xDE);
        pulse(&mut pics, 10);
        assert_eq!(pics.acknowledge().0, 0x3F);
        assert_eq!(pics.write(0x20, 0x0B), 0);
        assert_eq!(pics.read(0x20).0, 1 << 2, "the master waits for its EOI");
        assert_eq!(pics.write(0xA0, 0x0B), 0);
        assert_eq!(pics.read(0xA0).0, 0);
    }

    #[test]
    fn level_lines_come_again() {
        let mut pics = linux();
        assert_eq!(pics.write(0x4D0, 0x20), 0);
        pics.set_irq(5, true);
        assert_eq!(pics.acknowledge().0, 0x35);
        assert_eq!(pics.write(0x20, 0x20), 1 << 5);
        assert!(pics.output());
        pics.set_irq(5, false);
        assert!(!pics.output());
    }

    #[test]
    fn rotation_and_automatic_eoi() {
        let mut pics = linux();
        assert_eq!(pics.write(0x20, 0xC3), 0, "input 3 lowest");
        pulse(&mut pics, 3);
        pulse(&mut pics, 4);
        assert_eq!(pics.acknowledge().0, 0x34);
        assert_eq!(pics.write(0x20, 0xA0), 1 << 4, "rotate on non-specific EOI");
        assert_eq!(pics.master.top, 5);
        assert_eq!(pics.acknowledge().0, 0x33);

        for (port, value) in [(0x20, 0x13), (0x21, 0x08), (0x21, 0x03), (0x20, 0x80)] {
            assert_eq!(pics.write(port, value), 0);
        }
        pulse(&mut pics, 6);
        assert_eq!(pics.acknowledge(), (0x0E, 1 << 6));
        assert_eq!(pics.master.top, 7);
    }

    #[test]
    fn special_mask_poll_and_nesting() {
        let mut pics = linux();
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge().0, 0x31);
        pulse(&mut pics, 6);
        assert!(!pics.output());
        assert_eq!(pics.write(0x21, 0x02), 0);
        assert_eq!(pics.write(0x20, 0x68), 0, "special mask");
        assert!(pics.output());
        assert_eq!(pics.write(0x20, 0x0C), 0, "poll");
        assert_eq!(pics.read(0x20), (0x86, 0));
        assert_eq!(pics.write(0x20, 0x0C), 0);
        assert_eq!(pics.read(0x20), (0, 0));
        assert_eq!(
            pics.write(0x20, 0x20),
            1 << 6,
            "the masked input keeps its place"
        );
    }

    #[test]
    fn damaged_state_is_refused() {
        let mut pics = linux();
        let good = pics.save();
        for damage in [
            (|s: &mut PicsState| s.master.base = 3) as fn(&mut PicsState),
            |s| s.slave.priority_add = 8,
            |s| s.slave.init_step = 4,
            |s| s.master.elcr = 1,
        ] {
            let mut bad = good.clone();
            damage(&mut bad);
            assert!(pics.restore(&bad).is_err());
        }
        assert_eq!(pics.restore(&good), Ok(()));
    }
}
