//! Frames that no wire carries.
//!
//! What takes a stream's frames turns them into connections of the host's
//! (passt does): one to 127.0.0.1 would be to the host itself, to services
//! that listen there because nobody from outside can come. Such packets must
//! not appear on a network (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3), so nobody
//! misses them.

/// EtherTypes (RFC 9542, B.1).
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xDD];
/// Where a frame's EtherType is, and the destination of the packet in it
/// (RFC 791, 3.1; RFC 8200, 3).
const TYPE: usize = 12;
const DESTINATION: usize = 14 + 16;
const DESTINATION6: usize = 14 + 24;

/// Whether it is a packet for the host that happens to carry it: for a
/// loopback address, or none at all. What is cut off before its destination
/// leads nowhere.
pub(crate) fn is_for_the_host(frame: &[u8]) -> bool {
    match frame.get(TYPE..TYPE + 2) {
        Some(kind) if kind == IPV4 => frame
            .get(DESTINATION)
            .is_some_and(|network| is_ours(*network)),
        Some(kind) if kind == IPV6 => {
            let Some(address) = frame.get(DESTINATION6..DESTINATION6 + 16) else {
                return false;
            };
            let (prefix, ipv4) = address.split_at(12);
            match (prefix, ipv4) {
                // :: and ::1, and IPv4 addresses as they once were written.
                ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], _) => true,
                // IPv4 addresses (RFC 4291, 2.5.5.2).
                ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], [network, ..]) => is_ours(*network),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether an IPv4 address that begins so is the host's own: 127.0.0.0/8 and
/// "this host", 0.0.0.0/8.
fn is_ours(network: u8) -> bool {
    matches!(network, 0 | 127)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn frame(destination: &str) -> Vec<u8> {
        let mut frame = vec![0xEE; 80];
        match destination.parse().unwrap() {
            IpAddr::V4(address) => {
                frame[TYPE..TYPE + 2].copy_from_slice(&IPV4);
                frame[30..34].copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                frame[TYPE..TYPE + 2].copy_from_slice(&IPV6);
                frame[38..54].copy_from_slice(&address.octets());
            }
        }
        frame
    }

    #[test]
    fn the_host_itself_is_not_reached() {
        for address in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
        ] {
            assert!(is_for_the_host(&frame(address)), "{address}");
        }
        for address in [
            "10.199.15.1",
            "1.127.0.1",
            "255.255.255.255",
            "2001:db8::1",
            "fe80::1",
            "ff02::1",
            "1::",
            "::ffff:192.0.2.1",
            "64:ff9b::7f00:1",
        ] {
            assert!(!is_for_the_host(&frame(address)), "{address}");
        }
    }

    #[test]
    fn what_is_short_or_no_packet_passes() {
        let frame = frame("::1");
        for len in 0..54 {
            assert!(!is_for_the_host(&frame[..len]));
        }
        let mut arp = super::tests::frame("127.0.0.1");
        arp[TYPE + 1] = 0x06;
        assert!(!is_for_the_host(&arp));
    }
}
