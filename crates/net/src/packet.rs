//! Where the parts of a frame are that its NIC is to cut.

use crate::ETHERNET;

/// Ethertypes (IEEE 802).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86DD;
const TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88A8;
/// Most tags looked through: a service provider's and a customer's.
const TAGS_MAX: usize = 2;
/// Protocols (IANA).
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// IPv6 extension headers that are looked through (RFC 8200, 4): options of
/// hops, routing, options of the destination.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// Most of them.
const EXTENSIONS_MAX: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Bytes `at..at + N`.
pub fn field<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk::<N>().copied()
}

/// Replaces the bytes from `at` on, where there are as many.
pub fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    let place = at
        .checked_add(bytes.len())
        .and_then(|end| frame.get_mut(at..end));
    if let Some(place) = place {
        place.copy_from_slice(bytes);
    }
}

/// Where the parts begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Of IP version 6, not 4.
    pub v6: bool,
    /// The IP header.
    pub network: usize,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Its header.
    pub transport: usize,
    /// The data.
    pub payload: usize,
}

impl Packet {
    /// Finds TCP or UDP in a frame; all headers are within it.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let mut network = ETHERNET;
        let mut ethertype = u16::from_be_bytes(field(frame, network - 2)?);
        for _ in 0..TAGS_MAX {
            if !matches!(ethertype, TAG | SERVICE_TAG) {
                break;
            }
            network += 4;
            ethertype = u16::from_be_bytes(field(frame, network - 2)?);
        }
        let (v6, protocol, transport) = match ethertype {
            IPV4 => {
                let header: [u8; IPV4_HEADER] = field(frame, network)?;
                let len = usize::from(header[0] & 0xF) * 4;
                if header[0] >> 4 != 4 || len < IPV4_HEADER {
                    return None;
                }
                (false, header[9], network + len)
            }
            IPV6 => {
                let header: [u8; IPV6_HEADER] = field(frame, network)?;
                if header[0] >> 4 != 6 {
                    return None;
                }
                let (mut next, mut at) = (header[6], network + IPV6_HEADER);
                for _ in 0..EXTENSIONS_MAX {
                    if !EXTENSIONS.contains(&next) {
                        break;
                    }
                    let [after, len] = field(frame, at)?;
                    next = after;
                    at += (usize::from(len) + 1) * 8;
                }
                (true, next, at)
            }
            _ => return None,
        };
        let header = match protocol {
            TCP => {
                let header: [u8; TCP_HEADER] = field(frame, transport)?;
                let len = usize::from(header[12] >> 4) * 4;
                (len >= TCP_HEADER).then_some(len)?
            }
            UDP => UDP_HEADER,
            _ => return None,
        };
        let payload = transport + header;
        (payload <= frame.len()).then_some(Packet {
            v6,
            network,
            protocol,
            transport,
            payload,
        })
    }

    /// The addresses, which are part of the transport's checksum.
    pub fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let (from, len) = if self.v6 { (8, 32) } else { (12, 8) };
        let from = self.network + from;
        frame.get(from..from + len).unwrap_or_default()
    }
}
