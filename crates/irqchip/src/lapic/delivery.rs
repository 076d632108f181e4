//! What arrives, and what the processor takes (SDM vol. 3, 11.6.2 and 11.8).

use super::vectors::FIRST_LEGAL;
use super::{
    ApicMode, DELIVERY_MODE, ESR_RECEIVE_ILLEGAL, LVT_ERROR, LVT_LINT0, LVT_MASKED, Lapic,
};
use crate::{Delivery, Destination, Message};

impl Lapic {
    /// Whether a message to `destination` is for this one.
    pub fn matches(&self, destination: &Destination) -> bool {
        let mode = self.mode();
        if mode == ApicMode::Disabled {
            return false;
        }
        match *destination {
            Destination::All | Destination::Physical(u32::MAX) | Destination::Logical(u32::MAX) => {
                true
            }
            Destination::AllBut(sender) => sender != self.id,
            Destination::Physical(id) if mode == ApicMode::X2Apic => id == self.id,
            Destination::Physical(id) => id == 0xFF || id == self.id,
            Destination::Logical(mda) if mode == ApicMode::X2Apic => {
                let ldr = self.logical_id();
                mda >> 16 == ldr >> 16 && mda & ldr & 0xFFFF != 0
            }
            Destination::Logical(0xFF) => true,
            Destination::Logical(mda) if mda > 0xFF => false,
            Destination::Logical(mda) => {
                let logical = self.ldr >> 24;
                match self.dfr >> 28 {
                    0xF => mda & logical != 0,
                    0x0 => mda >> 4 == logical >> 4 && mda & logical & 0xF != 0,
                    _ => false,
                }
            }
        }
    }

    /// LDR: in x2APIC mode it follows from the id (SDM vol. 3, 11.12.10.2).
    pub(super) fn logical_id(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => (self.id >> 4) << 16 | 1 << (self.id & 0xF),
            _ => self.ldr,
        }
    }

    /// Takes a message that [`matches`](Self::matches); false when it is
    /// dropped: disabled, a reserved vector, or an SMI (not modelled).
    pub fn accept(&mut self, message: &Message) -> bool {
        if self.mode() == ApicMode::Disabled {
            return false;
        }
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.software_enabled() && self.raise(message.vector, message.level)
            }
            Delivery::Smi => false,
            Delivery::Nmi => {
                self.nmis = (self.nmis + 1).min(2);
                true
            }
            Delivery::Init => {
                self.init = true;
                // What came before the INIT is void.
                self.startup = None;
                true
            }
            Delivery::Startup => {
                self.startup = Some(message.vector);
                true
            }
            Delivery::ExtInt => {
                self.ext_int = self.software_enabled();
                self.ext_int
            }
        }
    }

    /// A pending NMI, once for each.
    pub fn take_nmi(&mut self) -> bool {
        let pending = self.nmis != 0;
        self.nmis = self.nmis.saturating_sub(1);
        pending
    }

    /// A pending INIT, once. The owner then calls
    /// [`init_reset`](Self::init_reset).
    pub fn take_init(&mut self) -> bool {
        std::mem::take(&mut self.init)
    }

    /// A pending start-up message, once: the page number to start at. The
    /// owner drops it unless the vCPU waits for one, and asks
    /// [`take_init`](Self::take_init) first.
    pub fn take_startup(&mut self) -> Option<u8> {
        self.startup.take()
    }

    /// A pending ExtINT message, once: the owner acknowledges the PIC for its
    /// vector, if the PIC still asks.
    pub fn take_ext_int(&mut self) -> bool {
        std::mem::take(&mut self.ext_int)
    }

    /// An NMI, INIT, start-up or ExtINT message waits to be taken.
    pub fn has_event(&self) -> bool {
        self.nmis != 0 || self.init || self.ext_int || self.startup.is_some()
    }

    /// Whether the PIC's output reaches this vCPU: through LINT0 as ExtINT, or
    /// because the APIC is disabled.
    pub fn accepts_pic_interrupts(&self) -> bool {
        self.mode() == ApicMode::Disabled
            || self.lvt[LVT_LINT0] & (LVT_MASKED | DELIVERY_MODE) == DELIVERY_MODE
    }

    /// The vector that the processor takes next, if any has priority enough.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest();
        (vector >> 4 > self.ppr >> 4).then_some(vector)
    }

    /// Takes that vector: it is in service until its EOI.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        self.update_ppr();
        Some(vector)
    }

    /// Ends the highest vector in service; returns it when it was
    /// level-triggered, for the I/O APIC.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.isr.highest();
        if vector == 0 {
            return None;
        }
        self.isr.remove(vector);
        self.update_ppr();
        self.tmr.contains(vector).then_some(vector)
    }

    /// Whether nobody misses the EOI of the vector in service until the next
    /// interrupt arrives: none waits, and it was edge-triggered.
    pub fn eoi_can_wait(&self) -> bool {
        let vector = self.isr.highest();
        vector != 0 && self.irr.highest() == 0 && !self.tmr.contains(vector)
    }

    /// Puts `vector` into IRR; a reserved one is an error instead.
    pub(super) fn raise(&mut self, vector: u8, level: bool) -> bool {
        if vector < FIRST_LEGAL {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        true
    }

    /// Raises a local interrupt of fixed delivery (timer).
    pub(super) fn raise_lvt(&mut self, entry: usize) -> bool {
        let lvt = self.lvt[entry];
        lvt & LVT_MASKED == 0 && self.raise(lvt as u8, false)
    }

    /// Notes an error and raises the error interrupt when it is a new one.
    pub(super) fn error(&mut self, bit: u32) {
        if self.errors & bit != 0 {
            return;
        }
        self.errors |= bit;
        let lvt = self.lvt[LVT_ERROR];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        if lvt as u8 >= FIRST_LEGAL {
            self.raise(lvt as u8, false);
        } else {
            self.errors |= ESR_RECEIVE_ILLEGAL;
        }
    }
}
