//! Where the registers are (virtio 1.2, 4.1.4).
//!
//! BAR 0, memory, 32 KiB:
//!
//! | offset | contents                                                  |
//! |--------|-----------------------------------------------------------|
//! | 0x0000 | common configuration                                      |
//! | 0x1000 | ISR status                                                |
//! | 0x2000 | device-specific configuration                             |
//! | 0x3000 | notifications: 4 bytes a queue                            |
//! | 0x4000 | MSI-X table: 16 bytes a vector                            |
//! | 0x5000 | MSI-X pending bits                                        |

use super::super::Kind;
use crate::pci::{BarKind, ConfigSpace, Identity};

/// The BAR of all registers.
pub const BAR: u8 = 0;
/// Its size.
pub const BAR_SIZE: u64 = 0x8000;
/// Bytes of one part at most.
pub const PART: u64 = 0x1000;
pub const COMMON: u64 = 0x0000;
pub const ISR: u64 = 0x1000;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const MSIX_TABLE: u64 = 0x4000;
pub const MSIX_PENDING: u64 = 0x5000;
/// Bytes between two queues' notification addresses.
pub const NOTIFY_STEP: u64 = 4;
/// Most queues: their vectors' pending bits are one word.
pub const QUEUES_MAX: u16 = 63;
/// Bytes of the common configuration.
pub const COMMON_LEN: usize = 0x3C;

/// Vendor of all virtio devices (4.1.2).
const VENDOR: u16 = 0x1AF4;
/// Device ids of non-transitional devices start here (4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
/// Capability ids (PCI 3.0, appendix H).
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
/// `cfg_type` (4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// MSI-X message control (PCI 3.0, 6.8.2.3): enable, mask all.
pub const MSIX_ENABLE: u16 = 1 << 15;
pub const MSIX_MASK: u16 = 1 << 14;

/// Offsets in configuration space of what the transport looks after.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// MSI-X message control.
    pub msix_control: u8,
    /// The PCI configuration access capability.
    pub pci_cfg: u8,
}

/// Fields of the PCI configuration access capability, from its start (4.1.4.9).
pub const PCI_CFG_BAR: u8 = 4;
pub const PCI_CFG_OFFSET: u8 = 8;
pub const PCI_CFG_LENGTH: u8 = 12;
pub const PCI_CFG_DATA: u8 = 16;

/// The configuration space of a device with `vectors` MSI-X vectors.
pub fn config_space(
    kind: Kind,
    queues: u16,
    vectors: u16,
    config_len: usize,
) -> (ConfigSpace, Capabilities) {
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + kind.id,
        revision: 1,
        class: kind.class,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + kind.id,
    })
    .with_bar(BAR, BarKind::Memory32, BAR_SIZE)
    .with_interrupt_pin(1);
    let mut msix = Vec::with_capacity(10);
    msix.extend((vectors - 1).to_le_bytes());
    msix.extend((MSIX_TABLE as u32 | u32::from(BAR)).to_le_bytes());
    msix.extend((MSIX_PENDING as u32 | u32::from(BAR)).to_le_bytes());
    let mut writable = [0; 10];
    writable[..2].copy_from_slice(&(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
    let msix = space.add_capability(CAP_MSIX, &msix, &writable);

    let mut part = |kind: u8, offset: u64, len: u64, more: &[u8], writable: bool| {
        let mut body = vec![16 + more.len() as u8, kind, BAR, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(more);
        let mut mask = vec![0; body.len()];
        if writable {
            // bar, offset, length, data.
            mask[2] = 0xFF;
            mask[6..].fill(0xFF);
        }
        space.add_capability(CAP_VENDOR, &body, &mask)
    };
    part(CFG_COMMON, COMMON, COMMON_LEN as u64, &[], false);
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    let notify_len = u64::from(queues) * NOTIFY_STEP;
    part(CFG_NOTIFY, NOTIFY, notify_len, &step, false);
    part(CFG_ISR, ISR, 1, &[], false);
    if config_len > 0 {
        part(CFG_DEVICE, DEVICE, config_len as u64, &[], false);
    }
    let pci_cfg = part(CFG_PCI, 0, 0, &[0; 4], true);
    let capabilities = Capabilities {
        msix_control: msix + 2,
        pci_cfg,
    };
    (space, capabilities)
}
