//! A look into stock kernels, from outside.

use std::ops::Range;

// Offsets in a bzImage (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1F1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24C;

/// Where a bzImage has its compressed kernel, the four bytes of its unpacked
/// size included.
pub fn payload(image: &[u8]) -> Range<usize> {
    let word = |at: usize| le32(image, at);
    let start = (usize::from(image[SETUP_SECTORS]) + 1) * 512 + word(PAYLOAD_OFFSET);
    start..start + word(PAYLOAD_LENGTH)
}

/// A bzImage with another compressed kernel.
pub fn with_payload(image: &[u8], payload: &[u8]) -> Vec<u8> {
    let start = self::payload(image).start;
    let mut other = image[..start].to_vec();
    let len = u32::try_from(payload.len()).expect("a small payload");
    other[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
    other.extend(payload);
    other
}

/// The virtual address at which a kernel that is packed with LZ4, as Debian's
/// are, has its banner ("Linux version ...").
pub fn banner(image: &[u8]) -> u64 {
    let kernel = unpack(&image[payload(image)]);
    let text = b"Linux version 6.";
    let at = kernel
        .windows(text.len())
        .position(|window| window == text)
        .expect("a banner");
    // ELF64: e_phoff, e_phnum; in a program header p_type, p_offset, p_vaddr
    // and p_filesz.
    let headers = le64(&kernel, 32);
    let count = usize::from(u16::from_le_bytes([kernel[56], kernel[57]]));
    (0..count)
        .map(|index| headers + index * 56)
        .filter(|header| le32(&kernel, *header) == 1)
        .find_map(|header| {
            let within = at.checked_sub(le64(&kernel, header + 8))?;
            (within < le64(&kernel, header + 32))
                .then(|| (le64(&kernel, header + 16) + within) as u64)
        })
        .expect("a banner that is loaded")
}

/// Unpacks LZ4's legacy frame: a magic number, then blocks behind their
/// lengths; the unpacked size comes last.
fn unpack(payload: &[u8]) -> Vec<u8> {
    const MAGIC: usize = 0x184C_2102;
    const BLOCK: usize = 8 << 20;
    assert_eq!(le32(payload, 0), MAGIC, "a kernel packed with LZ4");
    let end = payload.len() - 4;
    let mut kernel = Vec::with_capacity(le32(payload, end));
    let mut at = 4;
    while at < end {
        let start = at + 4;
        at = start + le32(payload, at);
        let block = lz4_flex::block::decompress(&payload[start..at], BLOCK);
        kernel.extend(block.expect("an LZ4 block"));
    }
    kernel
}

/// 8 GiB of zeros as zstd (RFC 8878), behind a bzImage's claim that they are
/// 1 MiB.
pub fn bomb() -> Vec<u8> {
    const BLOCK: u32 = 128 << 10;
    const COUNT: u32 = ((8u64 << 30) / BLOCK as u64) as u32;
    // Magic number; no content size, no checksum; a window of 128 KiB.
    let mut bytes = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 7 << 3];
    for index in 1..=COUNT {
        let last = u32::from(index == COUNT);
        // A block that repeats one byte.
        let [a, b, c, _] = (last | 1 << 1 | BLOCK << 3).to_le_bytes();
        bytes.extend([a, b, c, 0]);
    }
    bytes.extend((1u32 << 20).to_le_bytes());
    bytes
}

fn le32(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes) as usize
}

fn le64(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
    usize::try_from(u64::from_le_bytes(bytes)).expect("a small number")
}
