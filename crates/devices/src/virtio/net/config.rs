//! What a NIC offers, and its configuration (virtio 1.2, 5.1.3, 5.1.4).
//!
//! | offset | bytes | contents                                    |
//! |--------|-------|---------------------------------------------|
//! | 0      | 6     | MAC address                                 |
//! | 6      | 2     | status: link is up (1), announce (2)        |
//! | 8      | 2     | most pairs of queues                        |
//! | 10     | 2     | MTU                                         |
//!
//! All of it is offered whatever is behind the NIC, so that something else
//! can come there later: `croft-net` does what a stream does not. Not offered
//! are UFO, which Linux has given up, and hashes (RSS).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use croft_net::{GSO_NONE, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP, Header, Offloads};

/// Bytes of the configuration.
pub const LEN: usize = 12;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What each feature that is the receiver's is to a backend.
const OFFLOADS: [(u64, Offloads); 6] = [
    (bit(VIRTIO_NET_F_GUEST_CSUM), Offloads::CSUM),
    (bit(VIRTIO_NET_F_GUEST_TSO4), Offloads::TSO4),
    (bit(VIRTIO_NET_F_GUEST_TSO6), Offloads::TSO6),
    (bit(VIRTIO_NET_F_GUEST_ECN), Offloads::ECN),
    (bit(VIRTIO_NET_F_GUEST_USO4), Offloads::USO4),
    (bit(VIRTIO_NET_F_GUEST_USO6), Offloads::USO6),
];

/// Feature bits of a NIC with `pairs` pairs of queues.
pub fn features(pairs: u16) -> u64 {
    let bits = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
        VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_CTRL_MAC_ADDR,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
    ];
    let all = bits
        .into_iter()
        .fold(guest_offloads(), |all, n| all | bit(n));
    let many = if pairs > 1 { bit(VIRTIO_NET_F_MQ) } else { 0 };
    all | many
}

/// The features that are about what the driver takes over.
fn guest_offloads() -> u64 {
    OFFLOADS.iter().fold(0, |all, (feature, _)| all | feature)
}

/// The configuration.
pub fn bytes(mac: [u8; 6], status: u16, pairs: u16, mtu: u16) -> [u8; LEN] {
    let [a, b, c, d, e, f] = mac;
    let [s0, s1] = status.to_le_bytes();
    let [p0, p1] = pairs.to_le_bytes();
    let [m0, m1] = mtu.to_le_bytes();
    [a, b, c, d, e, f, s0, s1, p0, p1, m0, m1]
}

/// What a driver has accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether it has accepted `VIRTIO_NET_F_*` `feature`.
    pub fn has(self, feature: u32) -> bool {
        self.0 & bit(feature) != 0
    }

    /// Pairs of queues that there are to it, of `pairs`: where the queue of
    /// commands is depends on that (5.1.2).
    pub fn pairs(self, pairs: u16) -> u16 {
        if self.has(VIRTIO_NET_F_MQ) { pairs } else { 1 }
    }

    /// What it takes over, as bits of features.
    pub fn offloads(self) -> u64 {
        self.0 & guest_offloads()
    }

    /// A driver's header without what it may not say; `None` when the frame
    /// cannot go.
    pub fn outgoing(self, header: Header) -> Option<Header> {
        let wanted = match header.gso() {
            GSO_NONE => None,
            GSO_TCP_V4 => Some(VIRTIO_NET_F_HOST_TSO4),
            GSO_TCP_V6 => Some(VIRTIO_NET_F_HOST_TSO6),
            GSO_UDP => Some(VIRTIO_NET_F_HOST_USO),
            _ => return None,
        };
        if wanted.is_some_and(|feature| !self.has(feature)) {
            return None;
        }
        let sums = header.needs_checksum();
        if sums && !self.has(VIRTIO_NET_F_CSUM) {
            return None;
        }
        // The other flags are the device's to set.
        Some(Header {
            flags: u8::from(sums),
            buffers: 0,
            ..header
        })
    }
}

/// What a backend may leave to a driver that takes these features over.
pub fn offloads(features: u64) -> Offloads {
    let accepted = OFFLOADS
        .iter()
        .filter(|(feature, _)| features & feature != 0);
    accepted.fold(Offloads::empty(), |all, (_, offload)| all | *offload)
}

/// Whether a driver that takes these features over can be given a frame with
/// this header.
pub fn takes(features: u64, header: Header) -> bool {
    let all = offloads(features);
    match header.gso() {
        GSO_NONE => true,
        GSO_TCP_V4 => all.contains(Offloads::CSUM | Offloads::TSO4),
        GSO_TCP_V6 => all.contains(Offloads::CSUM | Offloads::TSO6),
        // Which of the two its header does not tell; a tap has both or none.
        GSO_UDP => all.contains(Offloads::CSUM | Offloads::USO4 | Offloads::USO6),
        _ => false,
    }
}
