//! What a guest leaves to its NIC: the rest of a checksum, and the cutting of
//! large packets into segments.
//!
//! Everything comes from the guest. What it says of a frame is compared with
//! what the frame is, and a frame that does not fit is dropped.

use thiserror::Error;

use crate::checksum::Sum;
use crate::header::{GSO_NONE, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP, Header};
use crate::packet::{Packet, TCP, UDP, put};
use crate::{ETHERNET, FRAME_MAX};

/// Most segments of one packet: 64 KiB in the least size that Linux sends
/// (`TCP_MIN_SND_MSS`, 48 bytes) are 1366.
const SEGMENTS_MAX: usize = 2048;
/// Where in their headers these are.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV6_LENGTH: usize = 4;
const IPV6_HEADER: usize = 40;
/// TCP flags (RFC 9293, 3.1): they belong to the last segment, or to the
/// first.
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// No Ethernet header, or too much behind it.
    #[error("its length is that of no frame")]
    Length,
    /// The checksum's place.
    #[error("its checksum is to be outside of it")]
    Checksum,
    /// A large packet of a kind that was not offered.
    #[error("it is to be cut in an unknown way")]
    Kind,
    /// What is said of its headers does not fit it.
    #[error("it is to be cut and is no such packet")]
    Packet,
    /// Segments of no, or hardly any, bytes.
    #[error("it is to be cut into too many pieces")]
    Segments,
}

/// Does what `header` leaves to do and hands what comes of it to `emit`,
/// frame by frame, each in two parts. A TCP packet that is to be cut stays
/// whole when the link takes frames of its length, `largest`: to the other
/// end it is the same stream.
pub fn finish(
    header: Header,
    frame: &mut [u8],
    largest: usize,
    emit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    if frame.len() < ETHERNET {
        return Err(Malformed::Length);
    }
    let gso = header.gso();
    if gso == GSO_NONE {
        if frame.len() > FRAME_MAX {
            return Err(Malformed::Length);
        }
        if header.needs_checksum() {
            complete(header, frame)?;
        }
        emit(frame, &[]);
        return Ok(());
    }
    let wanted = match gso {
        GSO_TCP_V4 => (Some(false), TCP),
        GSO_TCP_V6 => (Some(true), TCP),
        GSO_UDP => (None, UDP),
        _ => return Err(Malformed::Kind),
    };
    let packet = Packet::parse(frame).ok_or(Malformed::Packet)?;
    let version = wanted.0.is_none_or(|v6| v6 == packet.v6);
    if !version || packet.protocol != wanted.1 || !header.needs_checksum() {
        return Err(Malformed::Packet);
    }
    if usize::from(header.csum_start) != packet.transport {
        return Err(Malformed::Packet);
    }
    let size = usize::from(header.gso_size);
    let data = frame.len() - packet.payload;
    let whole = data <= size || (packet.protocol == TCP && frame.len() <= largest.min(FRAME_MAX));
    let size = if whole { data } else { size };
    if size == 0 && data > 0 || data.div_ceil(size.max(1)) > SEGMENTS_MAX {
        return Err(Malformed::Segments);
    }
    let (headers, data) = frame
        .split_at_mut_checked(packet.payload)
        .ok_or(Malformed::Packet)?;
    cut(&packet, headers, data, size, emit)
}

/// Completes a checksum whose place holds the sum of what is not in the
/// frame.
pub fn complete(header: Header, frame: &mut [u8]) -> Result<(), Malformed> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    if at + 2 > frame.len() {
        return Err(Malformed::Checksum);
    }
    let rest = frame.get(start..).ok_or(Malformed::Checksum)?;
    let sum = Sum::default().add(rest).transport();
    put(frame, at, &sum);
    Ok(())
}

/// Cuts `data` into pieces of `size`, each with headers of its own.
fn cut(
    packet: &Packet,
    headers: &mut [u8],
    data: &[u8],
    size: usize,
    emit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    let first = First::of(packet, headers);
    let mut offset = 0;
    for index in 0.. {
        let rest = data.get(offset..).unwrap_or_default();
        let (piece, rest) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        first.segment(packet, headers, index, offset, piece, rest.is_empty())?;
        emit(headers, piece);
        if rest.is_empty() {
            break;
        }
        offset += piece.len();
    }
    Ok(())
}

/// What the headers said before they were changed.
struct First {
    id: u16,
    sequence: u32,
    flags: u8,
}

impl First {
    fn of(packet: &Packet, headers: &[u8]) -> Self {
        use crate::packet::field;
        let sequence = field(headers, packet.transport + TCP_SEQUENCE);
        First {
            id: field(headers, packet.network + IPV4_ID).map_or(0, u16::from_be_bytes),
            sequence: sequence.map_or(0, u32::from_be_bytes),
            flags: headers
                .get(packet.transport + TCP_FLAGS)
                .copied()
                .unwrap_or(0),
        }
    }

    /// Makes `headers` those of the segment with data `piece`.
    fn segment(
        &self,
        packet: &Packet,
        headers: &mut [u8],
        index: u16,
        offset: usize,
        piece: &[u8],
        last: bool,
    ) -> Result<(), Malformed> {
        let half = |len: usize| u16::try_from(len).map_err(|_| Malformed::Length);
        let end = headers.len() + piece.len();
        let (network, transport) = (packet.network, packet.transport);
        if packet.v6 {
            let len = half(end - network - IPV6_HEADER)?;
            put(headers, network + IPV6_LENGTH, &len.to_be_bytes());
        } else {
            let len = half(end - network)?;
            put(headers, network + IPV4_LENGTH, &len.to_be_bytes());
            let id = self.id.wrapping_add(index);
            put(headers, network + IPV4_ID, &id.to_be_bytes());
            put(headers, network + IPV4_CHECKSUM, &[0, 0]);
            let header = headers.get(network..transport).unwrap_or_default();
            let sum = Sum::default().add(header).checksum();
            put(headers, network + IPV4_CHECKSUM, &sum);
        }
        let len = half(end - transport)?;
        let place = if packet.protocol == TCP {
            let sequence = self.sequence.wrapping_add(offset as u32);
            put(headers, transport + TCP_SEQUENCE, &sequence.to_be_bytes());
            let not_here = if last { 0 } else { FIN_PSH } | if index == 0 { 0 } else { CWR };
            put(headers, transport + TCP_FLAGS, &[self.flags & !not_here]);
            transport + TCP_CHECKSUM
        } else {
            put(headers, transport + UDP_LENGTH, &len.to_be_bytes());
            transport + UDP_CHECKSUM
        };
        put(headers, place, &[0, 0]);
        let header = headers.get(transport..).unwrap_or_default();
        let sum = Sum::default()
            .add(packet.addresses(headers))
            .add_half(u16::from(packet.protocol))
            .add_half(len)
            .add(header)
            .add(piece);
        put(headers, place, &sum.transport());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
