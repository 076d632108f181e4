//! Importing disks.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::probe::{Format, probe};
use super::qcow2;
use crate::forms::copy_sparse;
use crate::manifest::Disk;
use crate::progress::Progress;
use crate::store::Staging;
use crate::{DiskFormat, Error, program};

/// Bytes of a sector; all disks are multiples.
const SECTOR: u64 = 512;

/// Brings a disk into the store. `backing` are the files under a qcow2 file,
/// from the one right below it downwards; what the file itself says of them is
/// not followed.
pub fn take(
    path: &Path,
    file: &mut File,
    format: Format,
    backing: &[PathBuf],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Disk, Error> {
    let refused = |why: String| Error::Refused {
        path: path.to_owned(),
        why,
    };
    let length = length(path, file)?;
    match format {
        Format::Raw => {
            if length == 0 || length % SECTOR != 0 {
                return Err(refused(format!(
                    "{length} bytes are no disk, which is a multiple of {SECTOR}; get it again"
                )));
            }
            let (blob, length) = copy(path, file, staging, progress)?;
            Ok(Disk {
                blob,
                length,
                format: DiskFormat::Raw,
                virtual_size: length,
            })
        }
        Format::Qcow2 => {
            let header = header(path, file)?;
            match (header.backed, backing) {
                (false, []) => {
                    let (blob, stored) = copy(path, file, staging, progress)?;
                    Ok(Disk {
                        blob,
                        length: stored,
                        format: DiskFormat::Qcow2,
                        virtual_size: header.virtual_size,
                    })
                }
                (false, [_, ..]) => Err(refused(
                    "it has no backing file; leave out --backing".to_owned(),
                )),
                (true, []) => Err(refused(
                    "it is a layer over another file, which it cannot be trusted to name; name \
                     it with --backing FILE"
                        .to_owned(),
                )),
                (true, chain) => {
                    let source = chained(path, chain)?;
                    convert(source, staging, progress)
                }
            }
        }
        Format::Vmdk | Format::Vhdx | Format::Vpc | Format::Vdi => {
            let source = alone(path, format)?;
            convert(source, staging, progress)
        }
        Format::Tar(_) => Err(refused("it is an archive, not a disk".to_owned())),
    }
}

fn length(path: &Path, file: &mut File) -> Result<u64, Error> {
    use std::io::{Seek, SeekFrom};
    // Block devices have a length too, but only this says it.
    file.seek(SeekFrom::End(0))
        .and_then(|length| file.rewind().map(|()| length))
        .map_err(Error::io("read", path))
}

fn header(path: &Path, file: &mut File) -> Result<qcow2::Header, Error> {
    let length = length(path, file)?;
    let mut bytes = Vec::new();
    file.by_ref()
        .take(qcow2::LENGTH as u64)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    qcow2::read(&bytes, length).map_err(|why| Error::Refused {
        path: path.to_owned(),
        why,
    })
}

fn copy(
    path: &Path,
    file: &mut File,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<(crate::Digest, u64), Error> {
    progress.phase("copying");
    let target = staging.path("disk");
    let mut copy = File::create(&target).map_err(Error::io("make", &target))?;
    copy_sparse(file, &mut copy, progress).map_err(Error::io("copy", path))?;
    progress.phase("storing");
    staging.adopt(&target)
}

/// A disk for qemu-img, in its own words: every file is named, so that it
/// opens no other.
fn node(
    path: &Path,
    format: Format,
    backing: serde_json::Value,
) -> Result<serde_json::Value, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let name = path.to_str().ok_or_else(|| Error::Refused {
        path: path.clone(),
        why: "its name is not UTF-8; rename it".to_owned(),
    })?;
    let mut node = serde_json::json!({
        "driver": format.to_string(),
        "file": {"driver": "file", "filename": name, "locking": "on"},
    });
    if format == Format::Qcow2
        && let Some(fields) = node.as_object_mut()
    {
        fields.insert("backing".to_owned(), backing);
    }
    Ok(node)
}

/// A qcow2 file over others.
fn chained(path: &Path, chain: &[PathBuf]) -> Result<serde_json::Value, Error> {
    let refused = |path: &Path, why: &str| Error::Refused {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let mut below = serde_json::Value::Null;
    for (number, path) in chain.iter().enumerate().rev() {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let last = number.saturating_add(1) == chain.len();
        let format = probe(&file).map_err(Error::io("read", path))?;
        let format = match format {
            Some(Format::Qcow2) => {
                let header = header(path, &mut file)?;
                if header.backed && last {
                    return Err(refused(
                        path,
                        "it is a layer over another file itself; name that too, with one more --backing",
                    ));
                }
                if !header.backed && !last {
                    return Err(refused(
                        path,
                        "it has no backing file; leave out the --backing after it",
                    ));
                }
                Format::Qcow2
            }
            _ if !last => return Err(refused(path, "only qcow2 files are layers over others")),
            _ => Format::Raw,
        };
        below = node(path, format, below)?;
    }
    node(path, Format::Qcow2, below)
}

/// A file of another format, if it is all of a disk.
fn alone(path: &Path, format: Format) -> Result<serde_json::Value, Error> {
    let source = node(path, format, serde_json::Value::Null)?;
    let qemu_img = program::need("qemu-img", "qemu-utils")?;
    let output = program::command(qemu_img.as_os_str())
        .args(["info", "--output=json"])
        .arg(argument(&source))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .output()
        .map_err(Error::io("run", &qemu_img))?;
    let refused = |why: String| Error::Refused {
        path: path.to_owned(),
        why,
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words
            .chars()
            .filter(|c| !c.is_control())
            .take(500)
            .collect();
        return Err(refused(format!("qemu-img cannot read it: {words}")));
    }
    let about: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| refused(format!("qemu-img says what cannot be read: {error}")))?;
    if about.get("backing-filename").is_some() {
        return Err(refused(
            "it is a layer over another file; join them with the program that made them".to_owned(),
        ));
    }
    let extents = about
        .pointer("/format-specific/data/extents")
        .and_then(|extents| extents.as_array());
    let file = std::path::absolute(path).map_err(Error::io("find", path))?;
    let elsewhere = extents.into_iter().flatten().any(|extent| {
        let name = extent.get("filename").and_then(|name| name.as_str());
        // It may say which driver it opens the file with.
        let name = name.map(|name| name.strip_prefix("file:").unwrap_or(name));
        name.map(Path::new) != Some(&file)
    });
    if elsewhere {
        return Err(refused(
            "its data is in other files too; join them with the program that made them".to_owned(),
        ));
    }
    Ok(source)
}

fn argument(node: &serde_json::Value) -> OsString {
    format!("json:{node}").into()
}

/// Writes a disk as one qcow2 file.
fn convert(
    source: serde_json::Value,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Disk, Error> {
    let qemu_img = program::need("qemu-img", "qemu-utils")?;
    progress.phase("converting");
    let target = staging.path("disk");
    let mut command = program::command(qemu_img.as_os_str());
    command
        .args(["convert", "-O", "qcow2"])
        .arg(argument(&source))
        .arg(&target)
        .stdin(staging.guard()?);
    program::run("qemu-img", command, |_| ())?;
    let mut file = File::open(&target).map_err(Error::io("open", &target))?;
    let header = header(&target, &mut file)?;
    progress.phase("storing");
    let (blob, length) = staging.adopt(&target)?;
    Ok(Disk {
        blob,
        length,
        format: DiskFormat::Qcow2,
        virtual_size: header.virtual_size,
    })
}
