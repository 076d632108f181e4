//! The Internet checksum (RFC 1071).

/// A sum in the making. All parts but the last have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// With these bytes, an odd last one as if a zero followed.
    #[must_use]
    pub fn add(self, bytes: &[u8]) -> Self {
        // Any word size gives the same sum once it is folded (RFC 1071, 2 A).
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words
            .iter()
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .sum();
        let (pairs, last) = rest.as_chunks::<2>();
        let pairs = pairs
            .iter()
            .map(|pair| u64::from(u16::from_ne_bytes(*pair)));
        let last = last
            .iter()
            .map(|byte| u64::from(u16::from_ne_bytes([*byte, 0])));
        // Less than 2^14 words of a frame, and few parts: no overflow.
        Sum(self.0 + sum + pairs.sum::<u64>() + last.sum::<u64>())
    }

    /// With a number as it is transmitted.
    #[must_use]
    pub fn add_half(self, value: u16) -> Self {
        self.add(&value.to_be_bytes())
    }

    /// Its complement, as it is transmitted.
    pub fn checksum(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum >> 16) + (sum & 0xFFFF);
        }
        (!(sum as u16)).to_ne_bytes()
    }

    /// The same for TCP and UDP: zero, which to UDP is no checksum, is
    /// written as its other form (RFC 768).
    pub fn transport(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xFF, 0xFF],
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the letter of the RFC.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn sums() {
        // The example of RFC 1071, 3.
        let example = [0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7];
        assert_eq!(Sum::default().add(&example).checksum(), [0x22, 0x0D]);
        for len in 0..300usize {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 37 % 251) as u8).collect();
            assert_eq!(Sum::default().add(&bytes).checksum(), plain(&bytes));
            let (one, other) = bytes.split_at(len / 4 * 2);
            let sum = Sum::default().add(one).add(other);
            assert_eq!(sum.checksum(), plain(&bytes));
        }
        assert_eq!(Sum::default().add(&[0xFF; 65534]).checksum(), [0, 0]);
        assert_eq!(Sum::default().add(&[0xFF; 65534]).transport(), [0xFF, 0xFF]);
    }
}
