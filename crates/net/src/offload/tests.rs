use proptest::prelude::*;

use super::*;
use crate::header::NEEDS_CSUM;

/// A packet with `data`, its transport checksum left undone.
fn packet(v6: bool, tcp: bool, tag: bool, data: &[u8]) -> (Vec<u8>, usize) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if tag {
        frame.extend([0x81, 0x00, 0x00, 0x05]);
    }
    let (protocol, header) = if tcp { (TCP, 24) } else { (UDP, 8) };
    let len = (header + data.len()) as u16;
    if v6 {
        frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
        frame.extend(len.wrapping_add(8).to_be_bytes());
        frame.extend([0, 64]);
        frame.extend([0x20; 32]);
        // Hop-by-hop options: padding.
        frame.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
    } else {
        frame.extend([0x08, 0x00, 0x46, 0]);
        frame.extend(len.wrapping_add(24).to_be_bytes());
        frame.extend([0xFF, 0xFF, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        // An option: three times nothing, and the end.
        frame.extend([1, 1, 1, 0]);
    }
    let transport = frame.len();
    frame.extend([0x12, 0x34, 0x00, 0x50]);
    if tcp {
        frame.extend(0xFFFF_FF00u32.to_be_bytes());
        // ACK, PSH, FIN, CWR; options.
        frame.extend([0, 0, 0, 9, 0x60, 0x99, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0]);
    } else {
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(data);
    (frame, transport)
}

fn header(gso_type: u8, gso_size: usize, start: usize) -> Header {
    Header {
        flags: NEEDS_CSUM,
        gso_type,
        gso_size: gso_size as u16,
        csum_start: start as u16,
        csum_offset: 16,
        ..Header::default()
    }
}

fn cut(header: Header, frame: &[u8], largest: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut out = Vec::new();
    let mut frame = frame.to_vec();
    finish(header, &mut frame, largest, &mut |headers, data| {
        out.push([headers, data].concat());
    })?;
    Ok(out)
}

/// A frame is right in itself; returns where its parts are.
fn check(frame: &[u8]) -> Packet {
    let packet = Packet::parse(frame).unwrap();
    let ip = &frame[packet.network..];
    let half = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if packet.v6 {
        assert_eq!(usize::from(half(ip, 4)) + 40, ip.len());
    } else {
        assert_eq!(usize::from(half(ip, 2)), ip.len());
        let header = &frame[packet.network..packet.transport];
        assert_eq!(Sum::default().add(header).checksum(), [0, 0]);
    }
    let rest = &frame[packet.transport..];
    if packet.protocol == UDP {
        assert_eq!(usize::from(half(rest, 4)), rest.len());
    }
    let sum = Sum::default()
        .add(packet.addresses(frame))
        .add_half(packet.protocol.into())
        .add_half(rest.len() as u16)
        .add(rest);
    assert_eq!(sum.checksum(), [0, 0]);
    packet
}

#[test]
fn segments() {
    let data: Vec<u8> = (0..10_001u32).map(|n| (n % 253) as u8).collect();
    for (v6, tcp, tag) in [
        (false, true, false),
        (false, true, true),
        (true, true, true),
        (false, false, false),
        (true, false, false),
    ] {
        let (frame, start) = packet(v6, tcp, tag, &data);
        let kind = match (tcp, v6) {
            (true, false) => GSO_TCP_V4 | crate::GSO_ECN,
            (true, true) => GSO_TCP_V6,
            (false, _) => GSO_UDP,
        };
        for size in [48, 1000, 1447, 10_000] {
            let frames = cut(header(kind, size, start), &frame, 1514).unwrap();
            assert_eq!(frames.len(), data.len().div_ceil(size));
            let mut together: Vec<u8> = Vec::new();
            for (index, one) in frames.iter().enumerate() {
                let packet = check(one);
                let at = packet.transport;
                if !v6 {
                    let id = u16::from_be_bytes([one[packet.network + 4], one[packet.network + 5]]);
                    assert_eq!(id, 0xFFFFu16.wrapping_add(index as u16));
                }
                if tcp {
                    let sequence = u32::from_be_bytes(one[at + 4..at + 8].try_into().unwrap());
                    let wanted = 0xFFFF_FF00u32.wrapping_add(together.len() as u32);
                    assert_eq!(sequence, wanted);
                    let last = index + 1 == frames.len();
                    let flags =
                        0x10 | if last { 0x09 } else { 0 } | if index == 0 { 0x80 } else { 0 };
                    assert_eq!(one[at + 13], flags);
                }
                together.extend(&one[packet.payload..]);
            }
            assert_eq!(together, data);
        }
        // Where the link takes it TCP stays whole; datagrams are what they are.
        let frames = cut(header(kind, 1000, start), &frame, 65535).unwrap();
        assert_eq!(frames.len(), if tcp { 1 } else { 11 });
        for frame in &frames {
            check(frame);
        }
        // One segment alone.
        let (short, start) = packet(v6, tcp, tag, b"abc");
        let frames = cut(header(kind, 1000, start), &short, 0).unwrap();
        assert_eq!(frames.len(), 1);
        check(&frames[0]);
    }
}

#[test]
fn checksums() {
    let (mut frame, start) = packet(false, false, false, b"12345");
    // What a driver leaves: the sum of what is not in the datagram.
    let at = start + UDP_CHECKSUM;
    let len = frame.len() - start;
    let parsed = Packet::parse(&frame).unwrap();
    let pseudo = Sum::default()
        .add(parsed.addresses(&frame))
        .add_half(UDP.into())
        .add_half(len as u16);
    let seed = pseudo.checksum().map(|byte| !byte);
    put(&mut frame, at, &seed);
    let mut what = header(GSO_NONE, 0, start);
    what.csum_offset = 6;
    let frames = cut(what, &frame, 0).unwrap();
    let sum = pseudo.add(&frames[0][start..]);
    assert_eq!(sum.checksum(), [0, 0]);
    for (start, offset) in [(frame.len(), 0), (frame.len() - 1, 0), (0xFFFF, 0xFFFF)] {
        what.csum_start = start as u16;
        what.csum_offset = offset as u16;
        assert_eq!(cut(what, &frame, 0), Err(Malformed::Checksum));
    }
}

#[test]
fn lies() {
    let (frame, start) = packet(false, true, false, &[7; 4000]);
    let good = header(GSO_TCP_V4, 1000, start);
    assert_eq!(cut(good, &frame, 0).unwrap().len(), 4);
    let with = |change: fn(&mut Header)| {
        let mut header = good;
        change(&mut header);
        cut(header, &frame, 0)
    };
    assert_eq!(with(|h| h.gso_type = 3), Err(Malformed::Kind));
    assert_eq!(with(|h| h.gso_type = 2), Err(Malformed::Kind));
    assert_eq!(with(|h| h.gso_type = GSO_TCP_V6), Err(Malformed::Packet));
    assert_eq!(with(|h| h.gso_type = GSO_UDP), Err(Malformed::Packet));
    assert_eq!(with(|h| h.flags = 0), Err(Malformed::Packet));
    assert_eq!(with(|h| h.csum_start += 1), Err(Malformed::Packet));
    assert_eq!(with(|h| h.gso_size = 0), Err(Malformed::Segments));
    assert_eq!(with(|h| h.gso_size = 1), Err(Malformed::Segments));
    assert_eq!(cut(good, &frame[..13], 0), Err(Malformed::Length));
    for len in 14..start + 24 {
        assert_eq!(cut(good, &frame[..len], 0), Err(Malformed::Packet));
    }
    assert_eq!(
        cut(Header::default(), &[0; 65536], 0),
        Err(Malformed::Length)
    );
}

proptest! {
    #[test]
    fn nothing_panics(
        bytes in prop::array::uniform12(any::<u8>()),
        kind in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x81]),
        v6: bool, tcp: bool, tag: bool,
        size in 0u16..3000,
        len in 0usize..3000,
        damage in prop::collection::vec((0usize..100, any::<u8>()), 0..4),
        cut_at in 0usize..3100,
    ) {
        let (mut frame, start) = packet(v6, tcp, tag, &vec![1; len]);
        for (at, byte) in damage {
            put(&mut frame, at, &[byte]);
        }
        frame.truncate(cut_at);
        let mut header = Header::from_bytes(bytes);
        let _ = cut(header, &frame, 1514);
        header.flags |= NEEDS_CSUM;
        header.gso_type = kind;
        header.gso_size = size;
        header.csum_start = start as u16;
        if let Ok(frames) = cut(header, &frame, 1514) {
            prop_assert!(frames.len() <= SEGMENTS_MAX);
        }
    }
}
