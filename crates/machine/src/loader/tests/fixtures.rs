//! Kernels small enough to be made in a test.

use std::io::Write;

use croft_memory::{GuestRam, Range};

/// Where the fixtures are linked.
pub const BASE: u64 = 0x10_0000;
/// Their PVH entry.
pub const ENTRY: u32 = 0x10_0010;
/// What they load at [`BASE`].
pub const BODY_LEN: usize = 20_000;
/// Zeroed memory behind the body.
pub const BSS_LEN: u64 = 10_000;

/// 32 MiB.
pub fn ram() -> GuestRam {
    GuestRam::new(&[Range {
        start: 0,
        len: 32 << 20,
    }])
    .unwrap()
}

/// Bytes that compress, but not to nothing.
pub fn body() -> Vec<u8> {
    (0..BODY_LEN as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 27) as u8)
        .collect()
}

/// `parts` one after the other.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn note(entry: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    // One of another owner comes first.
    for word in [4u32, 5, 1] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"GNU\0abcde\0\0\0");
    for word in [4u32, 4, 18] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(entry.to_le_bytes());
    bytes
}

/// An ELF64 kernel; `pvh` gives it its note.
pub fn elf64(pvh: bool) -> Vec<u8> {
    let note = note(ENTRY);
    let body = body();
    let count = if pvh { 2u16 } else { 1 };
    let data_at = 64 + 56 * 2u64;
    let note_at = data_at + body.len() as u64;
    let mut elf = join(&[
        b"\x7fELF\x02\x01\x01",
        &[0; 9],
        &2u16.to_le_bytes(),
        &62u16.to_le_bytes(),
        &1u32.to_le_bytes(),
        &BASE.to_le_bytes(),
        &64u64.to_le_bytes(),
        &0u64.to_le_bytes(),
        &0u32.to_le_bytes(),
        &64u16.to_le_bytes(),
        &56u16.to_le_bytes(),
        &count.to_le_bytes(),
        &[0; 6],
    ]);
    let mut segment = |kind: u32, values: [u64; 6]| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        values
            .iter()
            .for_each(|value| elf.extend(value.to_le_bytes()));
    };
    let len = body.len() as u64;
    segment(1, [data_at, 0, BASE, len, len + BSS_LEN, 4096]);
    segment(4, [note_at, 0, 0, note.len() as u64, 0, 4]);
    join(&[&elf, &body, &note])
}

/// An ELF32 kernel with a PVH note, a multiboot header, or neither.
pub fn elf32(pvh: bool, multiboot: bool) -> Vec<u8> {
    let note = note(ENTRY);
    let mut body = body();
    if multiboot {
        body[..12].copy_from_slice(&multiboot_header(0));
    }
    let data_at = 52 + 32 * 2u32;
    let note_at = data_at + body.len() as u32;
    let count = if pvh { 2u16 } else { 1 };
    let mut elf = join(&[
        b"\x7fELF\x01\x01\x01",
        &[0; 9],
        &2u16.to_le_bytes(),
        &3u16.to_le_bytes(),
        &1u32.to_le_bytes(),
        &ENTRY.to_le_bytes(),
        &52u32.to_le_bytes(),
        &[0; 8],
        &52u16.to_le_bytes(),
        &32u16.to_le_bytes(),
        &count.to_le_bytes(),
        &[0; 6],
    ]);
    let mut segment = |values: [u32; 8]| {
        values
            .iter()
            .for_each(|value| elf.extend(value.to_le_bytes()));
    };
    let len = body.len() as u32;
    segment([
        1,
        data_at,
        0,
        BASE as u32,
        len,
        len + BSS_LEN as u32,
        7,
        4096,
    ]);
    segment([4, note_at, 0, 0, note.len() as u32, 0, 4, 4]);
    join(&[&elf, &body, &note])
}

fn multiboot_header(flags: u32) -> [u8; 12] {
    let magic = 0x1BAD_B002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let mut bytes = [0; 12];
    for (at, word) in [magic, flags, sum].into_iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A flat multiboot kernel with its addresses in the header, which begins at
/// byte 64 and is loaded to [`BASE`].
pub fn flat_multiboot() -> Vec<u8> {
    let base = BASE as u32;
    let body = body();
    let end = base + body.len() as u32;
    let mut file = join(&[&[0x90; 64], &multiboot_header(1 << 16)]);
    for word in [base, base, end, end + BSS_LEN as u32, ENTRY] {
        file.extend(word.to_le_bytes());
    }
    file.extend(&body[file.len() - 64..]);
    file
}

/// A bzImage of boot protocol 2.15 around `payload`.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 3;
    let setup_len = (SECTORS + 1) * 512;
    let payload_at = 0x1000usize;
    let mut file = vec![0; setup_len + payload_at];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[SECTORS as u8]);
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x20Fu16.to_le_bytes());
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &(payload_at as u32).to_le_bytes());
    put(0x24C, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    file.extend(payload);
    file
}

/// `data` packed in every way that Linux packs its payload, by name.
pub fn packings(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let sized = |packed: Vec<u8>| join(&[&packed, &(data.len() as u32).to_le_bytes()]);
    vec![
        ("uncompressed", data.to_vec()),
        ("gzip", gzip(data)),
        ("bzip2", sized(bzip2(data))),
        ("lzma", sized(lzma(data))),
        ("xz", sized(xz(data))),
        ("lzo", sized(lzop(data))),
        ("lz4", sized(lz4(data))),
        ("zstd", sized(zstd::encode_all(data, 3).unwrap())),
    ]
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn lzma(data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{LzmaOptions, Stream};
    let options = LzmaOptions::new_preset(1).unwrap();
    let stream = Stream::new_lzma_encoder(&options).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// With the x86 filter, as Linux packs.
fn xz(data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let mut filters = Filters::new();
    filters.x86();
    filters.lzma2(&LzmaOptions::new_preset(1).unwrap());
    let stream = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The legacy frame: one block for each 8 MiB.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let mut out = 0x184C_2102u32.to_le_bytes().to_vec();
    for chunk in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    out
}

fn lzop(data: &[u8]) -> Vec<u8> {
    const ADLER32_UNPACKED: u32 = 1;
    let mut out = b"\x89LZO\0\r\n\x1a\n".to_vec();
    for half in [0x1030u16, 0x20A0, 0x0940] {
        out.extend(half.to_be_bytes());
    }
    out.extend([3, 9]);
    // Flags, mode, time in two halves, empty name, header checksum.
    for word in [ADLER32_UNPACKED, 0o644, 0, 0] {
        out.extend(word.to_be_bytes());
    }
    out.extend([0; 5]);
    for chunk in data.chunks(8192) {
        let block = lzokay::compress::compress(chunk).unwrap();
        let stored = block.len() >= chunk.len();
        let block = if stored { chunk } else { &block };
        for word in [chunk.len() as u32, block.len() as u32, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(block);
    }
    out.extend([0; 4]);
    out
}
