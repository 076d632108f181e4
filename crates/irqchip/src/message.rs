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
