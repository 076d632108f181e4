//! CRC-32C as ext4 and its journal use it: without the final inversion.

/// Polynomial, reflected (RFC 3720, appendix B.4).
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (POLYNOMIAL * (value & 1));
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// What checksums begin with.
pub const SEED: u32 = !0;

/// The checksum of what gave `seed`, followed by `bytes`.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |value, byte| {
        (value >> 8) ^ TABLE[usize::from(value as u8 ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that catalogues of CRCs give.
    #[test]
    fn nine_digits() {
        assert_eq!(!crc32c(SEED, b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(crc32c(SEED, b"1234"), b"56789"), !0xE306_9283);
    }
}
