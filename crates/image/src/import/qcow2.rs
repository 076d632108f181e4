//! The header of a qcow2 file, as far as an image may be one.
//!
//! Only the header is looked at (QEMU, docs/interop/qcow2.txt). What its
//! tables hold is somebody else's too, and is read in the jail, where the
//! guest's disk is served; but a file that leaves itself - for a backing file,
//! an external data file - or that is cut off is refused here.

/// What is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Length in bytes of the disk that a guest sees.
    pub virtual_size: u64,
    /// Whether it names a backing file.
    pub backed: bool,
}

/// Bytes of the longest header that is looked at.
pub const LENGTH: usize = 104;

/// Largest disk in bytes: what a signed 64-bit offset can reach, and far more
/// than the file system of a host can hold.
const LARGEST: u64 = 1 << 60;

/// Reads a header; `file_length` is the whole file's. What is wrong otherwise,
/// with what to do.
pub fn read(bytes: &[u8], file_length: u64) -> Result<Header, String> {
    let u32_at = |offset: usize| {
        let field = bytes.get(offset..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*field))
    };
    let u64_at = |offset: usize| {
        let field = bytes.get(offset..)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*field))
    };
    let short = || "the file ends in its header; get it again".to_owned();
    if bytes.get(..4) != Some(b"QFI\xfb") {
        return Err("it is no qcow2 file".to_owned());
    }
    let version = u32_at(4).ok_or_else(short)?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} of qcow2 is not known"));
    }
    let backing = u64_at(8).ok_or_else(short)?;
    let cluster_bits = u32_at(20).ok_or_else(short)?;
    let virtual_size = u64_at(24).ok_or_else(short)?;
    let encryption = u32_at(32).ok_or_else(short)?;
    let l1_entries = u32_at(36).ok_or_else(short)?;
    let l1_offset = u64_at(40).ok_or_else(short)?;
    let refcount_offset = u64_at(48).ok_or_else(short)?;
    let refcount_clusters = u32_at(56).ok_or_else(short)?;
    let incompatible = match version {
        2 => 0,
        _ => u64_at(72).ok_or_else(short)?,
    };
    if encryption != 0 {
        return Err("it is encrypted; decrypt it with qemu-img convert".to_owned());
    }
    if incompatible & 2 != 0 {
        return Err("it is marked as corrupt; repair it with qemu-img check -r all".to_owned());
    }
    if incompatible & 4 != 0 {
        return Err("its data is in another file; join them with qemu-img convert".to_owned());
    }
    if incompatible & !0x1f != 0 {
        return Err(
            "it uses features that are not known; write it anew with qemu-img convert".to_owned(),
        );
    }
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!(
            "clusters of 2^{cluster_bits} bytes are not possible"
        ));
    }
    if virtual_size == 0 || virtual_size > LARGEST {
        return Err(format!("a disk of {virtual_size} bytes is not possible"));
    }
    // An entry of the first table stands for a cluster of entries of the
    // second, of 8 bytes, or 16 with subclusters.
    let entry_bits = if incompatible & 16 != 0 { 4 } else { 3 };
    let reach = 1u64
        .checked_shl(cluster_bits.saturating_mul(2).saturating_sub(entry_bits))
        .unwrap_or(u64::MAX);
    if virtual_size.div_ceil(reach) > u64::from(l1_entries) {
        return Err("its first table is too short for its size; get it again".to_owned());
    }
    let inside = |offset: u64, length: u64| {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= file_length)
    };
    let refcounts = u64::from(refcount_clusters)
        .checked_shl(cluster_bits)
        .unwrap_or(u64::MAX);
    if !inside(l1_offset, u64::from(l1_entries).saturating_mul(8))
        || !inside(refcount_offset, refcounts)
    {
        return Err("it is cut off before the end of its tables; get it again".to_owned());
    }
    Ok(Header {
        version,
        virtual_size,
        backed: backing != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 GiB in clusters of 64 KiB, as qemu-img makes it.
    fn good() -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..][..field.len()].copy_from_slice(field);
        };
        put(4, &3u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        put(40, &0x30000u64.to_be_bytes());
        put(48, &0x10000u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        bytes
    }

    const FILE: u64 = 0x40000;

    #[test]
    fn headers_are_read_and_checked() {
        let header = read(&good(), FILE).unwrap();
        assert_eq!(
            (header.version, header.virtual_size, header.backed),
            (3, 1 << 30, false)
        );
        for (offset, value, word) in [
            (0, 0u32, "no qcow2"),
            (4, 1, "version 1"),
            (32, 1, "encrypted"),
            (76, 2, "corrupt"),
            (76, 4, "another file"),
            (76, 32, "not known"),
            (20, 8, "clusters"),
            (20, 0xffff_ffff, "clusters"),
            (24, 0xffff_ffff, "not possible"),
            (36, 1, "too short"),
            (36, 0xffff_ffff, "cut off"),
            (40, 0xffff_ffff, "cut off"),
            (56, 0xffff_ffff, "cut off"),
        ] {
            let mut bytes = good();
            bytes[offset..][..4].copy_from_slice(&value.to_be_bytes());
            let why = read(&bytes, FILE).unwrap_err();
            assert!(why.contains(word), "{offset}: {why}");
        }
        let mut bytes = good();
        bytes[15] = 1;
        assert!(read(&bytes, FILE).unwrap().backed);
        for length in 0..72 {
            assert!(read(&good()[..length], FILE).is_err());
        }
        assert!(read(&good(), 0x30008).is_err());
    }
}
