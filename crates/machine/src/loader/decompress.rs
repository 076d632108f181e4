//! Unpacks a bzImage's payload on the host.
//!
//! Linux appends the unpacked size as four little-endian bytes to every
//! payload; gzip has the same field of its own (`ISIZE`, RFC 1952). It is a
//! hint only: what bounds the output is the limit that the caller sets.

use std::io::Read;

use super::error::Problem;
use super::source::{le16, le32};

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// CONFIG_KERNEL_UNCOMPRESSED.
    None,
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// The older LZMA container.
    Lzma,
    /// xz with LZMA2, possibly behind the x86 filter.
    Xz,
    /// lzop's container with LZO1X.
    Lzo,
    /// LZ4's legacy frame.
    Lz4,
    /// RFC 8878.
    Zstd,
}

/// Each compression's first bytes.
const MAGICS: [(&[u8], Compression); 8] = [
    (b"\x7fELF", Compression::None),
    (b"\x1f\x8b", Compression::Gzip),
    (b"BZh", Compression::Bzip2),
    (b"\x5d\x00\x00", Compression::Lzma),
    (b"\xfd7zXZ\x00", Compression::Xz),
    (LZOP_MAGIC, Compression::Lzo),
    (&LZ4_LEGACY_MAGIC.to_le_bytes(), Compression::Lz4),
    (b"\x28\xb5\x2f\xfd", Compression::Zstd),
];

/// LZ4 frame format, "Legacy frame".
const LZ4_LEGACY_MAGIC: u32 = 0x184C_2102;
/// Largest unpacked block of a legacy frame, in bytes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// The first bytes of a file made by lzop.
const LZOP_MAGIC: &[u8] = b"\x89LZO\x00\x0d\x0a\x1a\x0a";
/// Most bytes that xz may take for its dictionary: Linux packs with up to
/// 128 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// log2 of zstd's largest window: Linux packs with level 22, 128 MiB.
const ZSTD_WINDOW: u32 = 27;

impl Compression {
    /// By the payload's first bytes.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        let known = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic));
        known.map(|(_, compression)| *compression)
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Xz => "xz",
            Compression::Lzo => "lzo",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Unpacks `payload`, which ends with the four bytes of its unpacked
    /// size, into at most `limit` bytes.
    pub fn unpack(self, payload: &[u8], limit: u64) -> Result<Vec<u8>, Problem> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let bomb = || Problem::Bomb {
            compression: self.name(),
            limit: limit as u64,
        };
        let damaged = |reason: String| Problem::Payload {
            compression: self.name(),
            reason,
        };
        let Some((packed, size)) = payload.split_last_chunk::<4>() else {
            return Err(damaged("it is too short".to_owned()));
        };
        let size = u32::from_le_bytes(*size) as usize;
        if self == Compression::None {
            return match payload.len() <= limit {
                true => Ok(payload.to_vec()),
                false => Err(bomb()),
            };
        }
        if size > limit {
            return Err(bomb());
        }
        let stream = |reader: &mut dyn Read| {
            let mut out = Vec::with_capacity(size);
            let most = (limit as u64).saturating_add(1);
            let end = reader.take(most).read_to_end(&mut out);
            end.map_err(|error| damaged(error.to_string()))?;
            if out.len() > limit {
                return Err(bomb());
            }
            Ok(out)
        };
        let host = |error: std::io::Error| damaged(error.to_string());
        match self {
            Compression::None => Ok(payload.to_vec()),
            // The size is gzip's own last field, so it stays with the stream.
            Compression::Gzip => stream(&mut flate2::read::GzDecoder::new(payload)),
            Compression::Bzip2 => stream(&mut bzip2::read::BzDecoder::new(packed)),
            Compression::Lzma => {
                let decoder = liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)
                    .map_err(|error| host(error.into()))?;
                stream(&mut liblzma::read::XzDecoder::new_stream(packed, decoder))
            }
            Compression::Xz => {
                let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
                    .map_err(|error| host(error.into()))?;
                stream(&mut liblzma::read::XzDecoder::new_stream(packed, decoder))
            }
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(packed)
                    .map_err(host)?
                    .single_frame();
                decoder.window_log_max(ZSTD_WINDOW).map_err(host)?;
                stream(&mut decoder)
            }
            Compression::Lz4 => lz4_legacy(packed, size).map_err(damaged),
            Compression::Lzo => lzop(packed, size).map_err(damaged),
        }
    }
}

/// A legacy frame: after the magic, blocks of a 32-bit packed size and LZ4
/// data. It names no unpacked size, so `size` must be right.
fn lz4_legacy(packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; size];
    let mut filled = 0;
    let mut rest = packed.get(4..).unwrap_or_default();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len);
        if len == LZ4_LEGACY_MAGIC {
            // Frames may follow each other.
            rest = after;
            continue;
        }
        let block = after
            .get(..len as usize)
            .ok_or("a block reaches beyond its end")?;
        let end = filled + LZ4_LEGACY_BLOCK.min(size - filled);
        filled += lz4_flex::block::decompress_into(block, &mut out[filled..end])
            .map_err(|error| error.to_string())?;
        rest = &after[len as usize..];
    }
    if filled != size {
        return Err(format!("it unpacks to {filled} bytes instead of {size}"));
    }
    Ok(out)
}

/// lzop's container: a header, then blocks of unpacked size, packed size,
/// checksums and LZO1X data, all big-endian, ended by an unpacked size of 0.
fn lzop(packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    // Header flags of lzop.
    const ADLER32_UNPACKED: u32 = 1 << 0;
    const ADLER32_PACKED: u32 = 1 << 1;
    const EXTRA_FIELD: u32 = 1 << 6;
    const CRC32_UNPACKED: u32 = 1 << 8;
    const CRC32_PACKED: u32 = 1 << 9;
    const FILTER: u32 = 1 << 11;
    /// The version of lzop that added three header fields.
    const LONG_HEADER: u16 = 0x0940;

    let be16 = |at| le16(packed, at).map(u16::swap_bytes).ok_or("truncated");
    let be32 = |at| le32(packed, at).map(u32::swap_bytes).ok_or("truncated");
    let long = be16(LZOP_MAGIC.len())? >= LONG_HEADER;
    // Version, library version, then the version needed to unpack.
    let mut at = LZOP_MAGIC.len() + if long { 6 } else { 4 };
    // Method, level.
    at += if long { 2 } else { 1 };
    let flags = be32(at)?;
    if flags & (EXTRA_FIELD | FILTER) != 0 {
        return Err("it uses an lzop option that no kernel does".to_owned());
    }
    // Flags, mode, time, its upper half, name, header checksum.
    at += 4 + 4 + 4 + if long { 4 } else { 0 };
    let name_len = *packed.get(at).ok_or("truncated")?;
    at += 1 + usize::from(name_len) + 4;

    let checksums = |kinds: u32| 4 * (flags & kinds).count_ones() as usize;
    let mut out = vec![0; size];
    let mut filled = 0;
    loop {
        let unpacked_len = be32(at)? as usize;
        if unpacked_len == 0 {
            break;
        }
        let packed_len = be32(at + 4)? as usize;
        at += 8 + checksums(ADLER32_UNPACKED | CRC32_UNPACKED);
        if packed_len < unpacked_len {
            at += checksums(ADLER32_PACKED | CRC32_PACKED);
        }
        let end = at.checked_add(packed_len).ok_or("truncated")?;
        let block = packed.get(at..end).ok_or("truncated")?;
        let target = out
            .get_mut(filled..)
            .and_then(|out| out.get_mut(..unpacked_len))
            .ok_or("it unpacks to more than it says")?;
        if packed_len == unpacked_len {
            target.copy_from_slice(block);
        } else {
            let got = lzokay::decompress::decompress(block, target)
                .map_err(|error| format!("LZO data: {error:?}"))?;
            if got != unpacked_len {
                return Err("a block has another size than it says".to_owned());
            }
        }
        filled += unpacked_len;
        at = end;
    }
    if filled != size {
        return Err(format!("it unpacks to {filled} bytes instead of {size}"));
    }
    Ok(out)
}
