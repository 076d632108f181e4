//! A type 0 configuration space: the part of a PCI function that is the same
//! in all. (PCI Local Bus 3.0, section 6.)

use super::state::{CONFIG_VERSION, ConfigState};
use crate::saved::{StateError, check_version, damaged};

/// Bytes of a conventional configuration space.
const LEN: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;

/// Command register: answers on ports.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command register: answers in memory.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: may access memory and send messages.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Parity, SERR and INTx disable besides those above.
const COMMAND_WRITABLE: u16 = 0x0547;
/// Status: the capability list exists.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Where a BAR lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarSpace {
    /// I/O ports.
    Io,
    /// Guest-physical memory.
    Memory,
}

impl BarSpace {
    /// For messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            BarSpace::Io => "ports",
            BarSpace::Memory => "memory",
        }
    }
}

/// A BAR that is decoded at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRoute {
    /// Number of the BAR, 0–5; a 64-bit one has the lower number of its two.
    pub bar: u8,
    /// Address space.
    pub space: BarSpace,
    /// First address.
    pub base: u64,
    /// Length in bytes, a power of two.
    pub size: u64,
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface: 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem device.
    pub subsystem: u16,
}

/// A kind of BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports; at least 4 bytes.
    Io,
    /// Memory below 4 GiB; at least 16 bytes.
    Memory32,
    /// Memory anywhere; takes two BARs.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

#[derive(Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// A type 0 configuration space with its BARs and capabilities.
///
/// Built once by the device that owns it; the layout is then fixed. Sizes and
/// offsets given while building are the device's own, so a wrong one panics.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// Bits that a guest's write changes.
    writable: [u8; LEN],
    /// Bytes as they are at reset.
    initial: [u8; LEN],
    bars: [Option<Bar>; 6],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; LEN],
            writable: [0; LEN],
            initial: [0; LEN],
            bars: [None; 6],
            next_capability: 0x40,
            last_link: CAPABILITIES,
        };
        space.preset(0x00, &identity.vendor.to_le_bytes());
        space.preset(0x02, &identity.device.to_le_bytes());
        space.preset(0x08, &[identity.revision]);
        let class = identity.class.to_le_bytes();
        space.preset(0x09, &class[..3]);
        space.preset(0x2C, &identity.subsystem_vendor.to_le_bytes());
        space.preset(0x2E, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xFF]);
        // Cache line size and latency timer: kept, without effect.
        space.allow(0x0C, &[0xFF, 0xFF]);
        space
    }

    /// Adds BAR `index` of `size` bytes, a power of two.
    ///
    /// # Panics
    /// When the BAR does not fit the rules of its kind or is taken.
    #[must_use]
    pub fn with_bar(mut self, index: u8, kind: BarKind, size: u64) -> Self {
        let (least, most, flags) = match kind {
            BarKind::Io => (4, 256, 0x1),
            BarKind::Memory32 => (16, 1 << 31, 0x0),
            BarKind::Memory64 {
                prefetchable: false,
            } => (16, 1 << 46, 0x4),
            BarKind::Memory64 { prefetchable: true } => (16, 1 << 46, 0xC),
        };
        assert!(
            size.is_power_of_two() && (least..=most).contains(&size),
            "a BAR of {size:#x} bytes cannot be {kind:?}"
        );
        let at = BAR0 + usize::from(index) * 4;
        let mask = !(size - 1);
        let low = (mask as u32).to_le_bytes();
        self.allow(at, &low);
        self.preset(at, &[flags]);
        if let BarKind::Memory64 { .. } = kind {
            let upper = self.bars.get_mut(usize::from(index) + 1);
            assert!(upper.is_some_and(|b| b.is_none()), "BAR {index} needs two");
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        let bar = &mut self.bars[usize::from(index)];
        assert!(bar.is_none(), "BAR {index} is taken");
        *bar = Some(Bar { kind, size });
        self
    }

    /// Names the interrupt pin (1 is INTA).
    #[must_use]
    pub fn with_interrupt_pin(mut self, pin: u8) -> Self {
        self.preset(0x3D, &[pin]);
        self
    }

    /// Appends a capability: its id, its bytes from offset 2, and which of
    /// their bits a guest may write. Returns the capability's offset.
    ///
    /// # Panics
    /// When the space is full or the two slices differ in length.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        assert_eq!(body.len(), writable.len());
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= LEN, "no room for capability {id:#x}");
        self.preset(at, &[id, 0]);
        self.preset(at + 2, body);
        self.allow(at + 2, writable);
        self.preset(self.last_link, &[at as u8]);
        self.preset(STATUS, &[STATUS_CAPABILITIES]);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        at as u8
    }

    /// A guest's read; bytes that do not exist are all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(i).copied().unwrap_or(0xFF);
        }
    }

    /// A guest's write. True when it changed what is decoded.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let routing = |i: usize| i == COMMAND || (BAR0..BAR0 + 24).contains(&i);
        let mut moved = false;
        for (i, new) in (usize::from(offset)..).zip(data) {
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(i), self.writable.get(i)) else {
                break;
            };
            let value = *byte & !mask | new & mask;
            moved |= value != *byte && routing(i);
            *byte = value;
        }
        moved
    }

    /// A byte as the guest reads it.
    pub fn byte(&self, offset: u8) -> u8 {
        self.bytes[usize::from(offset)]
    }

    /// Changes a byte from the device's side, such as a status bit.
    pub fn set_byte(&mut self, offset: u8, value: u8) {
        self.bytes[usize::from(offset)] = value;
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// The BARs that are decoded: enabled in the command register, with a
    /// base other than zero that leaves room for all of the BAR.
    pub fn decoded(&self) -> Vec<BarRoute> {
        (0u8..)
            .zip(&self.bars)
            .filter_map(|(index, bar)| self.decode(index, (*bar)?))
            .collect()
    }

    fn decode(&self, index: u8, bar: Bar) -> Option<BarRoute> {
        let dword = |at: usize| {
            let bytes = self.bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u64::from(u32::from_le_bytes(bytes)))
        };
        let at = BAR0 + usize::from(index) * 4;
        let low = dword(at)?;
        let (space, enable, base) = match bar.kind {
            BarKind::Io => (BarSpace::Io, COMMAND_IO, low & 0xFFFF_FFFC),
            BarKind::Memory32 => (BarSpace::Memory, COMMAND_MEMORY, low & 0xFFFF_FFF0),
            BarKind::Memory64 { .. } => {
                let base = dword(at + 4)? << 32 | low & 0xFFFF_FFF0;
                (BarSpace::Memory, COMMAND_MEMORY, base)
            }
        };
        let fits = base.checked_add(bar.size - 1).is_some();
        (self.command() & enable != 0 && base != 0 && fits).then_some(BarRoute {
            bar: index,
            space,
            base,
            size: bar.size,
        })
    }

    /// Back to the values of power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// The space's state.
    pub fn save(&self) -> ConfigState {
        ConfigState {
            version: CONFIG_VERSION,
            bytes: self.bytes.to_vec(),
        }
    }

    /// Whether [`restore`](Self::restore) would take this state: it is of
    /// the same function with the same layout.
    pub fn check(&self, state: &ConfigState) -> Result<(), StateError> {
        const WHAT: &str = "pci configuration space";
        check_version(WHAT, state.version, CONFIG_VERSION)?;
        if state.bytes.len() != LEN {
            return Err(damaged(WHAT, "it has not 256 bytes"));
        }
        // Identity, class, header type, subsystem.
        let fixed = (0x00..0x04).chain(0x08..0x0C).chain(0x2C..0x30);
        for i in fixed.chain([0x0E, CAPABILITIES]) {
            if state.bytes[i] != self.initial[i] {
                return Err(damaged(WHAT, format!("byte {i:#x} is of another function")));
            }
        }
        Ok(())
    }

    /// Counterpart of [`save`](Self::save), for what a guest can write. Bytes
    /// that the device changed by [`set_byte`](Self::set_byte) are its own to
    /// set again.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        self.check(state)?;
        for i in 0..LEN {
            let mask = self.writable[i];
            self.bytes[i] = self.initial[i] & !mask | state.bytes[i] & mask;
        }
        Ok(())
    }

    fn preset(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self.initial[at..at + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}
