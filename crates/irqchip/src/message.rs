//! What travels between interrupt controllers: an interrupt message.
//! (Intel SDM vol. 3, 11.11 "Message Signalled Interrupts" and 11.6.1 ICR.)

use serde::{Deserialize, Serialize};

/// A raw message-signalled interrupt as a device writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msi {
    /// Message address (0xFEExxxxx, upper half zero without remapping).
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// How an interrupt is delivered (SDM vol. 3, table 11-2 "Delivery Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// A vector to all destinations.
    Fixed,
    /// A vector to the destination with the lowest priority.
    LowestPriority,
    /// System management interrupt (never delivered here).
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: the vCPU is reset and waits for a start-up message.
    Init,
    /// Start-up: the vCPU begins at page `vector` in real mode.
    Startup,
    /// As if from a PIC on LINT0.
    ExtInt,
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// The local APIC with this id; 0xFF (xAPIC) or 0xFFFF_FFFF: all.
    Physical(u32),
    /// Local APICs whose logical id matches this mask.
    Logical(u32),
    /// Every local APIC.
    All,
    /// Every local APIC but the sender's, given by APIC id.
    AllBut(u32),
}

/// One interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who gets it.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// Vector, 0–255; for [`Delivery::Startup`] the page number.
    pub vector: u8,
    /// Level-triggered: the I/O APIC waits for the EOI.
    pub level: bool,
}

impl Destination {
    /// From an 8-bit destination field (MSI, I/O APIC, xAPIC ICR), where 0xFF
    /// means everyone.
    pub fn from_xapic(id: u8, logical: bool) -> Self {
        match (id, logical) {
            (0xFF, _) => Destination::All,
            (id, false) => Destination::Physical(id.into()),
            (id, true) => Destination::Logical(id.into()),
        }
    }
}

impl Delivery {
    /// From the 3-bit delivery mode of MSI data, redirection entries and the
    /// ICR (SDM vol. 3, 11.6.1); `None` for the reserved code 3.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            7 => Delivery::ExtInt,
            _ => return None,
        })
    }
}

impl Message {
    /// What a device's write means (SDM vol. 3, 11.11.1 and 11.11.2); `None`
    /// when it is no interrupt: another address, a reserved or start-up
    /// delivery mode, or the de-assertion of a level.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xFEE {
            return None;
        }
        let level = msi.data & 1 << 15 != 0;
        if level && msi.data & 1 << 14 == 0 {
            return None;
        }
        let redirect = msi.address & 1 << 3 != 0;
        let delivery = match Delivery::from_bits(msi.data >> 8)? {
            Delivery::Startup => return None,
            Delivery::Fixed if redirect => Delivery::LowestPriority,
            other => other,
        };
        let logical = msi.address & 1 << 2 != 0;
        Some(Message {
            destination: Destination::from_xapic((msi.address >> 12) as u8, logical),
            delivery,
            vector: msi.data as u8,
            level,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let decode = |address, data| Message::from_msi(Msi { address, data });
        assert_eq!(
            decode(0xFEE0_3000, 0x0031),
            Some(Message {
                destination: Destination::Physical(3),
                delivery: Delivery::Fixed,
                vector: 0x31,
                level: false,
            })
        );
        // Logical flat with redirection hint, level assert.
        assert_eq!(
            decode(0xFEE0_500C, 0xC0A0),
            Some(Message {
                destination: Destination::Logical(5),
                delivery: Delivery::LowestPriority,
                vector: 0xA0,
                level: true,
            })
        );
        assert_eq!(
            decode(0xFEEF_F000, 0x0400).map(|m| m.destination),
            Some(Destination::All)
        );
        for (address, data) in [
            (0xFED0_0000, 0x31),
            (0x1_FEE0_0000, 0x31),
            (0xFEE0_0000, 0x331),
            (0xFEE0_0000, 0x631),
            (0xFEE0_0000, 0x8031),
        ] {
            assert_eq!(decode(address, data), None, "{address:#x} {data:#x}");
        }
    }
}
