//! An image's two forms, made from a tree: a disk for machines, an archive of
//! the root file system for containers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::manifest::{Disk, Manifest, Rootfs, VERSION};
use crate::progress::Progress;
use crate::store::Staging;
use crate::tree::{Limits, Tree};
use crate::{DiskFormat, Error, filesystem};

/// zstd's level: more takes longer than it saves.
const LEVEL: i32 = 6;
/// Bytes between two words about progress.
const STEP: u64 = 4 << 20;

/// Fails if the file system of a directory has less room than this.
pub fn need_space(directory: &Path, bytes: u64) -> Result<(), Error> {
    let about = rustix::fs::statvfs(directory).map_err(Error::io("look at", directory))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < bytes {
        return Err(Error::Unfit(format!(
            "'{}' has {} MiB free, and this takes up to {} MiB; free some space, or set \
             CROFT_DATA_DIR to a directory with more",
            directory.display(),
            free >> 20,
            bytes >> 20
        )));
    }
    Ok(())
}

/// Unpacks an archive that is not compressed.
pub fn unpack(
    tree: &mut Tree,
    archive: &Path,
    limits: Limits,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    progress.phase("unpacking");
    let file = File::open(archive).map_err(Error::io("open", archive))?;
    let total = file.metadata().map_or(0, |about| about.len());
    let mut told = 0;
    let reader = io::BufReader::with_capacity(1 << 16, file);
    tree.unpack(reader, archive, limits, &mut |done| {
        if done.saturating_sub(told) >= STEP {
            told = done;
            progress.bytes(done, total);
        }
    })
}

/// Makes the machine form.
pub fn disk(tree: &Tree, staging: &Staging, progress: &mut dyn Progress) -> Result<Disk, Error> {
    let path = staging.path("disk");
    let length = filesystem::make(tree, &path, staging.directory(), progress)?;
    progress.phase("storing the disk");
    let (blob, stored) = staging.adopt(&path)?;
    Ok(Disk {
        blob,
        length: stored,
        format: DiskFormat::Raw,
        virtual_size: length,
    })
}

/// Makes the container form: all but what only a machine's kernel needs.
pub fn rootfs(
    tree: &Tree,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Rootfs, Error> {
    progress.phase("packing the root file system");
    let path = staging.path("rootfs");
    let file = File::create(&path).map_err(Error::io("make", &path))?;
    let mut encoder =
        zstd::Encoder::new(BufWriter::new(file), LEVEL).map_err(Error::io("write", &path))?;
    let mut counter = Counter {
        inner: &mut encoder,
        count: 0,
    };
    tree.pack(&mut counter, &path, for_containers)?;
    let unpacked = counter.count;
    encoder
        .finish()
        .and_then(|mut file| file.flush())
        .map_err(Error::io("write", &path))?;
    let (blob, length) = staging.adopt(&path)?;
    Ok(Rootfs {
        blob,
        length,
        unpacked,
    })
}

fn for_containers(path: &Path) -> bool {
    let machine = ["boot", "usr/lib/modules", "lib/modules"];
    let inside = |directory: &str| path.starts_with(directory) && path != Path::new(directory);
    let link = ["vmlinuz", "initrd.img"]
        .iter()
        .any(|link| path == Path::new(link));
    !link && !machine.into_iter().any(inside)
}

struct Counter<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count = self.count.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What a tree says of itself; where it came from is for the caller to say.
pub fn describe(tree: &Tree) -> Manifest {
    let text = tree
        .read("etc/os-release")
        .or_else(|| tree.read("usr/lib/os-release"))
        .unwrap_or_default();
    let (os, os_version) = release(&text);
    Manifest {
        version: VERSION,
        os,
        os_version,
        arch: "x86_64".to_owned(),
        created: now(),
        origin: String::new(),
        recipe: None,
        agent: tree.has("usr/lib/croft/croft-agent"),
        cloud_init: tree.has("usr/bin/cloud-init"),
        disk: None,
        rootfs: None,
        application: None,
    }
}

/// `ID` and `VERSION_ID` of os-release(5).
pub fn release(text: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(text).into_owned();
    let values: HashMap<&str, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| {
            let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            let value = value.trim_matches(['"', '\'']);
            (key, value.chars().filter(plain).take(40).collect())
        })
        .collect();
    let value = |key: &str| values.get(key).cloned().unwrap_or_default();
    let os = Some(value("ID")).filter(|os| !os.is_empty());
    (
        os.unwrap_or_else(|| "unknown".to_owned()),
        value("VERSION_ID"),
    )
}

/// Of a disk, in which nobody has looked.
pub fn describe_disk(disk: Disk) -> Manifest {
    Manifest {
        version: VERSION,
        os: "unknown".to_owned(),
        os_version: String::new(),
        arch: "x86_64".to_owned(),
        created: now(),
        origin: String::new(),
        recipe: None,
        agent: false,
        cloud_init: true,
        disk: Some(disk),
        rootfs: None,
        application: None,
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Copies a file with its holes: its length. `progress` is told how far it is.
pub fn copy_sparse(from: &mut File, to: &mut File, progress: &mut dyn Progress) -> io::Result<u64> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    use std::io::{Seek, SeekFrom as Position};
    let total = from.seek(Position::End(0))?;
    let mut place = 0u64;
    let mut told = 0u64;
    while place < total {
        let data = match seek(&*from, SeekFrom::Data(place)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A file system or device that does not know.
            Err(Errno::INVAL) => place,
            Err(error) => return Err(error.into()),
        };
        let hole = match seek(&*from, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(total),
            Err(Errno::INVAL) => total,
            Err(error) => return Err(error.into()),
        };
        from.seek(Position::Start(data))?;
        to.seek(Position::Start(data))?;
        let mut left = hole.saturating_sub(data);
        while left > 0 {
            let copied = io::copy(&mut Read::by_ref(from).take(left.min(STEP)), to)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(copied);
            let done = hole.saturating_sub(left);
            if done.saturating_sub(told) >= STEP {
                told = done;
                progress.bytes(done, total);
            }
        }
        place = hole;
    }
    to.set_len(total)?;
    Ok(total)
}
