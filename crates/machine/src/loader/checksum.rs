//! A bzImage's checksum.
//!
//! From boot protocol 2.08 on the file's last four bytes, as the setup header
//! counts them, make the CRC-32 of all of it zero (boot.rst, "The Image
//! Checksum"). Linux 6.15 stopped writing it and left zeros in its place.
//! Several payload formats have no checksum of their own, among them the LZ4
//! frame that Debian's kernels use, and what they unpack to when they are
//! damaged would run.

use super::error::Problem;
use super::source::{Source, le16, le32};

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

// PE format, "MS-DOS Stub", "Optional Header Windows-Specific Fields" and
// "Optional Header Data Directories": offsets in the file and from the PE
// header's signature.
const PE_OFFSET: usize = 0x3C;
const PE_MAGIC: &[u8] = b"PE\0\0";
const OPTIONAL_HEADER: usize = 24;
const PE32_PLUS: u16 = 0x20B;
const PE_CHECKSUM: usize = OPTIONAL_HEADER + 64;
const PE_CERTIFICATES: usize = OPTIONAL_HEADER + 112 + 4 * 8;

/// Refuses a file whose first `end` bytes have a checksum that is wrong.
/// `head` has its first bytes.
pub fn check<S: Source + ?Sized>(source: &S, head: &[u8], end: u64) -> Result<(), Problem> {
    let mut last = [0; 4];
    if end > source.size() || end < head.len() as u64 {
        return Ok(());
    }
    source.read(end - 4, &mut last, "checksum")?;
    if last == [0; 4] {
        return Ok(());
    }
    let mut sum = flate2::Crc::new();
    sum.update(&unsigned(head));
    let mut at = head.len() as u64;
    let mut buffer = vec![0; CHUNK as usize];
    while at < end {
        let now = CHUNK.min(end - at);
        let chunk = &mut buffer[..now as usize];
        source.read(at, chunk, "contents")?;
        sum.update(chunk);
        at += now;
    }
    // Without the final inversion, which is part of the usual CRC-32, it
    // would be 0.
    if sum.sum() == u32::MAX {
        Ok(())
    } else {
        Err(Problem::Damaged {
            what: "its checksum is wrong".to_owned(),
        })
    }
}

/// A signature for Secure Boot comes after the checksum: it is appended to
/// the file, and named and summed up in the PE header, where zeros were.
fn unsigned(head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    let Some(pe) = le32(&head, PE_OFFSET).map(|offset| offset as usize) else {
        return head;
    };
    let is_pe = head.starts_with(b"MZ")
        && head
            .get(pe..)
            .is_some_and(|rest| rest.starts_with(PE_MAGIC))
        && le16(&head, pe + OPTIONAL_HEADER) == Some(PE32_PLUS);
    for (at, len) in [(PE_CHECKSUM, 4), (PE_CERTIFICATES, 8)] {
        if is_pe && let Some(field) = head.get_mut(pe + at..pe + at + len) {
            field.fill(0);
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file of 20,000 bytes with its checksum in the last four.
    fn file() -> Vec<u8> {
        let mut file: Vec<u8> = (0..20_000u32).map(|i| ((i * i) >> 5) as u8).collect();
        file[..2].copy_from_slice(b"MZ");
        file[PE_OFFSET..PE_OFFSET + 4].copy_from_slice(&0x80u32.to_le_bytes());
        file[0x80..0x84].copy_from_slice(PE_MAGIC);
        file[0x98..0x9A].copy_from_slice(&PE32_PLUS.to_le_bytes());
        file[0x80 + PE_CHECKSUM..][..4].fill(0);
        file[0x80 + PE_CERTIFICATES..][..8].fill(0);
        let mut sum = flate2::Crc::new();
        sum.update(&file[..19_996]);
        let sum = !sum.sum();
        file[19_996..].copy_from_slice(&sum.to_le_bytes());
        file
    }

    fn is_fine(file: &[u8], end: u64) -> bool {
        check(file, &file[..8192], end).is_ok()
    }

    #[test]
    fn any_damage_is_found_and_a_signature_is_none() {
        let good = file();
        assert!(is_fine(&good, 20_000));
        for at in [3, 0x90, 5000, 8191, 8192, 15_000, 19_999] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(!is_fine(&bad, 20_000), "{at}");
        }
        let mut signed = good.clone();
        signed[0x80 + PE_CHECKSUM] = 1;
        signed[0x80 + PE_CERTIFICATES + 7] = 2;
        signed.extend(b"a signature");
        assert!(is_fine(&signed, 20_000));
    }

    #[test]
    fn a_file_without_checksum_is_not_checked() {
        let mut file = file();
        file[19_996..].fill(0);
        assert!(is_fine(&file, 20_000));
        // The header says more than there is, or nothing.
        assert!(is_fine(&file, 20_001));
        assert!(is_fine(&file, u64::MAX));
        assert!(is_fine(&file, 0));
        assert!(is_fine(&file, 512));
    }

    #[test]
    fn wild_pe_offsets_do_no_harm() {
        let mut file = file();
        for offset in [0, 8188, 8192, u32::MAX] {
            file[PE_OFFSET..PE_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
            assert!(!is_fine(&file, 20_000));
        }
    }
}
