//! A disk on the command line.
//!
//! ```text
//! FILE[,OPTION]...
//! ```
//!
//! A comma in a file's name is written twice. `format` is about the file
//! named last: the disk's own, or the backing file before it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use croft_api::disk::{CacheMode, DiskFormat, OnIoError, RunDisk, RunLayer, TestStorage};

use crate::size;

/// What stands for a disk in the help.
pub const VALUE: &str = "FILE[,OPTION]...";

/// What the options are.
pub const HELP: &str = "\
Options of a disk:
  readonly              refuse every change; others may read the file too
  format=raw|qcow2      what FILE is, or the backing file named before; guessed if not said
  backing=FILE          what is below a qcow2 image; again for what is below that
  cache=writeback       what the guest writes is in the page cache until it flushes (default)
  cache=none            past the page cache (O_DIRECT)
  cache=writethrough    each write is flushed; reads are from the page cache
  cache=directsync      each write is flushed; past the page cache
  cache=unsafe          flushes do nothing, for disks that are thrown away
  on-io-error=stop      pause the machine when the host cannot read or write
  on-io-error=report    tell the guest; by default only a full host pauses the machine
  iops=N, bps=SIZE      at most so many requests and bytes in a second
  A comma in a file's name is written ',,'. Backing files that images name are not looked for.";

/// Parts between single commas, in which two commas are one.
fn parts(text: &OsStr) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter().peekable();
    while let Some(byte) = bytes.next() {
        if *byte == b',' && bytes.next_if(|next| **next == b',').is_none() {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(*byte);
        }
    }
    parts
}

fn layer(path: Vec<u8>, what: &str) -> Result<RunLayer, String> {
    if path.is_empty() {
        return Err(format!(
            "{what} has no name; name an image file or block device"
        ));
    }
    Ok(RunLayer {
        path: OsString::from_vec(path),
        format: None,
    })
}

/// A disk: see [`HELP`].
pub fn parse_disk(text: OsString) -> Result<RunDisk, String> {
    let mut parts = parts(&text).into_iter();
    let first = layer(parts.next().unwrap_or_default(), "the disk")?;
    let mut disk = RunDisk {
        layers: vec![first],
        index: None,
        options: Default::default(),
    };
    for part in parts {
        option(&mut disk, part)?;
    }
    Ok(disk)
}

fn option(disk: &mut RunDisk, part: Vec<u8>) -> Result<(), String> {
    if let Some(path) = part.strip_prefix(b"backing=") {
        disk.layers.push(layer(path.to_vec(), "the backing file")?);
        return Ok(());
    }
    let text = String::from_utf8_lossy(&part).into_owned();
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text.as_str(), None),
    };
    let options = &mut disk.options;
    match (key, value) {
        ("readonly", None) => options.read_only = true,
        ("format", Some(value)) => {
            let format = match value {
                "raw" => DiskFormat::Raw,
                "qcow2" => DiskFormat::Qcow2,
                _ => return Err(wrong(value, "format", "'raw' or 'qcow2'")),
            };
            if let Some(layer) = disk.layers.last_mut()
                && layer.format.replace(format).is_some()
            {
                return Err("a file has one format; write 'format=' once for each".to_owned());
            }
        }
        ("cache", Some(value)) => {
            options.cache = match value {
                "writeback" => CacheMode::Writeback,
                "none" => CacheMode::None,
                "writethrough" => CacheMode::Writethrough,
                "directsync" => CacheMode::Directsync,
                "unsafe" => CacheMode::Unsafe,
                _ => {
                    let known = "'writeback', 'none', 'writethrough', 'directsync' or 'unsafe'";
                    return Err(wrong(value, "cache", known));
                }
            }
        }
        ("on-io-error", Some(value)) => options.on_io_error = parse_on_io_error(value)?,
        ("iops", Some(value)) => {
            let count = value.parse().ok().filter(|count| *count > 0);
            let count = count.ok_or_else(|| wrong(value, "iops", "a number from 1"))?;
            options.limits.iops = Some(count);
        }
        ("bps", Some(value)) => {
            let size = size::parse(value).ok().filter(|size| *size > 0);
            let size = size.ok_or_else(|| wrong(value, "bps", "a size like '100M'"))?;
            options.limits.bytes_per_second = Some(size);
        }
        ("test-storage", Some("drop-unflushed")) => {
            options.test = Some(TestStorage::DropUnflushed);
        }
        ("test-storage", Some("ignore-flushes")) => {
            options.test = Some(TestStorage::IgnoreFlushes);
        }
        ("readonly", Some(_)) => return Err("'readonly' has no value".to_owned()),
        ("format" | "cache" | "on-io-error" | "iops" | "bps" | "backing", None) => {
            return Err(format!("'{key}' needs a value: '{key}=...'"));
        }
        _ => {
            return Err(format!(
                "'{}' is no option of a disk; there are readonly, format=, backing=, cache=, \
                 on-io-error=, iops= and bps=, and a comma in a file's name is written ',,'",
                key.escape_debug()
            ));
        }
    }
    Ok(())
}

/// What happens when the host fails.
pub fn parse_on_io_error(text: &str) -> Result<OnIoError, String> {
    match text {
        "stop" => Ok(OnIoError::Stop),
        "report" => Ok(OnIoError::Report),
        _ => Err(wrong(text, "on-io-error", "'stop' or 'report'")),
    }
}

fn wrong(value: &str, key: &str, right: &str) -> String {
    format!(
        "'{}' is not for '{key}='; give {right}",
        value.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> RunDisk {
        parse_disk(text.into()).unwrap()
    }

    fn error(text: &str) -> String {
        parse_disk(text.into()).unwrap_err()
    }

    fn layers(disk: &RunDisk) -> Vec<(&str, Option<DiskFormat>)> {
        let layers = disk.layers.iter();
        layers
            .map(|layer| (layer.path.to_str().unwrap(), layer.format))
            .collect()
    }

    #[test]
    fn files_and_their_formats() {
        assert_eq!(disk("a"), RunDisk::new("a"));
        assert_eq!(layers(&disk("a,,b,,")), [("a,b,", None)]);
        assert_eq!(layers(&disk(",,")), [(",", None)]);
        let chain = disk("top,format=qcow2,backing=mid,,1,readonly,backing=low=x,format=raw");
        let raw = Some(DiskFormat::Raw);
        let qcow2 = Some(DiskFormat::Qcow2);
        assert_eq!(
            layers(&chain),
            [("top", qcow2), ("mid,1", None), ("low=x", raw)]
        );
        assert!(chain.options.read_only);
        let odd = parse_disk(OsString::from_vec(b"\xFF,readonly".to_vec())).unwrap();
        assert_eq!(odd.layers[0].path.as_bytes(), b"\xFF");
    }

    #[test]
    fn options() {
        let options = disk("a,cache=unsafe,on-io-error=report,iops=100,bps=10M").options;
        assert_eq!(options.cache, CacheMode::Unsafe);
        assert_eq!(options.on_io_error, OnIoError::Report);
        assert_eq!(options.limits.iops, Some(100));
        assert_eq!(options.limits.bytes_per_second, Some(10 << 20));
        assert_eq!(
            disk("a,on-io-error=stop").options.on_io_error,
            OnIoError::Stop
        );
        assert_eq!(disk("a").options.on_io_error, OnIoError::StopIfFull);
    }

    #[test]
    fn mistakes_are_explained() {
        for (bad, word) in [
            ("", "no name"),
            (",readonly", "no name"),
            ("a,", "'' is no option"),
            ("a,redonly", "'redonly' is no option"),
            ("a,backing=", "backing file has no name"),
            ("a,backing", "needs a value"),
            ("a,readonly=yes", "no value"),
            ("a,format=vmdk", "'raw' or 'qcow2'"),
            ("a,format=raw,format=raw", "one format"),
            ("a,iops=0", "from 1"),
            ("a,bps=10", "100M"),
            ("a,cache=some", "writeback"),
            ("a,on-io-error=ignore", "'stop' or 'report'"),
            ("a,x\u{1b}y", "x\\u{1b}y"),
        ] {
            assert!(error(bad).contains(word), "{bad}: {}", error(bad));
        }
    }
}
