//! What precedes each frame between a driver and its NIC.

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 12;

/// The checksum at `csum_start + csum_offset` is not complete.
pub const NEEDS_CSUM: u8 = 1;
/// The checksums are right.
pub const DATA_VALID: u8 = 2;

/// One packet.
pub const GSO_NONE: u8 = 0;
/// A large TCP packet over IPv4.
pub const GSO_TCP_V4: u8 = 1;
/// A large TCP packet over IPv6.
pub const GSO_TCP_V6: u8 = 4;
/// Several UDP packets of one size, and a last one (`GSO_UDP_L4`).
pub const GSO_UDP: u8 = 5;
/// Flag: its first segment says CWR (RFC 3168), no other does.
pub const GSO_ECN: u8 = 0x80;

/// The header of a frame (virtio 1.2, 5.1.6), also a tap's with a header of
/// 12 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers; a hint.
    pub header_len: u16,
    /// Bytes of data of each segment.
    pub gso_size: u16,
    /// Where the sum begins.
    pub csum_start: u16,
    /// Where it goes, from there.
    pub csum_offset: u16,
    /// Buffers that the frame is in, for the driver.
    pub buffers: u16,
}

impl Header {
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, rest @ ..] = bytes;
        let (words, _) = rest.as_chunks::<2>();
        let mut words = words.iter().map(|word| u16::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Header {
            flags,
            gso_type,
            header_len: next(),
            gso_size: next(),
            csum_start: next(),
            csum_offset: next(),
            buffers: next(),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.header_len.to_le_bytes();
        let [s0, s1] = self.gso_size.to_le_bytes();
        let [c0, c1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [b0, b1] = self.buffers.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            s0,
            s1,
            c0,
            c1,
            o0,
            o1,
            b0,
            b1,
        ]
    }

    /// A checksum is to be completed.
    pub fn needs_checksum(self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// What kind of large packet it is, if it is one.
    pub fn gso(self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Of a frame with nothing left to do, whose checksums are right.
    pub fn valid() -> Self {
        Header {
            flags: DATA_VALID,
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let bytes = [1, 0x84, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9];
        let header = Header::from_bytes(bytes);
        assert_eq!(
            header,
            Header {
                flags: 1,
                gso_type: 0x84,
                header_len: 0x102,
                gso_size: 0x304,
                csum_start: 0x506,
                csum_offset: 0x708,
                buffers: 0x90A,
            }
        );
        assert_eq!(header.to_bytes(), bytes);
        assert!(header.needs_checksum());
        assert_eq!(header.gso(), GSO_TCP_V6);
    }
}
