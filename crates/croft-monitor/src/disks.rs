//! Opening and locking disks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use croft_api::disk::{DiskFormat, DiskOptions, RunDisk, RunLayer, StartDisk, StartLayer, place};
use croft_disk::{Format, LAYERS_MAX, check, check_kind, lock, probe};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::files::{explain, flags, quoted};

/// An open disk, locked for as long as any copy of its descriptors is open.
#[derive(Debug)]
pub struct Disk {
    layers: Vec<Layer>,
    index: Option<u8>,
    options: DiskOptions,
}

/// What a file is that a payload has open, so that it does not get it twice.
#[derive(Clone, Debug)]
pub struct Held {
    /// For messages.
    name: String,
    /// Device and inode; not there if the host does not tell.
    file: Option<(u64, u64)>,
    read_only: bool,
}

/// One of its files: open for reading and, if it is the disk's own and that is
/// not read-only, for writing.
#[derive(Debug)]
struct Layer {
    file: File,
    held: Held,
    asked: RunLayer,
    start: StartLayer,
}

impl Disk {
    /// Opens and locks all of them, or says what is wrong and what to do.
    pub fn open_all(disks: &[RunDisk]) -> Result<Vec<Disk>, String> {
        let mut open: Vec<Disk> = Vec::with_capacity(disks.len());
        let mut held: Vec<Held> = Vec::new();
        for disk in disks {
            let disk = Disk::open(disk, &held)?;
            held.extend(disk.held());
            open.push(disk);
        }
        place(open.iter_mut().map(|disk| &mut disk.index));
        Ok(open)
    }

    /// Opens and locks one, beside files that are `held` already.
    pub fn open(disk: &RunDisk, held: &[Held]) -> Result<Disk, String> {
        if disk.layers.len() > LAYERS_MAX {
            let name = disk.layers.first().map(|top| quoted(&top.path));
            return Err(format!(
                "disk {} has {} layers, at most {LAYERS_MAX} are possible",
                name.unwrap_or_default(),
                disk.layers.len()
            ));
        }
        let mut layers: Vec<Layer> = Vec::with_capacity(disk.layers.len());
        for asked in &disk.layers {
            let top = layers.is_empty();
            let read_only = disk.options.read_only || !top;
            let layer = Layer::open(asked, top, read_only, disk.options.cache.is_direct())?;
            let mine = layers.iter().map(|layer| &layer.held);
            let mut all = held.iter().chain(mine);
            if let Some(other) = all.find(|other| other.excludes(&layer.held)) {
                return Err(format!(
                    "disk {} is {} once more; give it once, or as ',readonly' each time",
                    layer.held.name, other.name
                ));
            }
            lock::lock(&layer.file, read_only)
                .map_err(|error| format!("disk {} {error}", layer.held.name))?;
            layers.push(layer);
        }
        Ok(Disk {
            layers,
            index: disk.index,
            options: disk.options,
        })
    }

    /// What its files are.
    pub fn held(&self) -> impl Iterator<Item = Held> {
        self.layers.iter().map(|layer| layer.held.clone())
    }

    /// The disk with absolute paths and with the formats that were found: the
    /// next time nothing is guessed.
    pub fn found(&self) -> io::Result<RunDisk> {
        let layers = self.layers.iter().map(|layer| {
            Ok(RunLayer {
                path: std::path::absolute(&layer.asked.path)?.into(),
                format: Some(layer.start.format),
            })
        });
        Ok(RunDisk {
            layers: layers.collect::<io::Result<_>>()?,
            index: self.index,
            options: self.options,
        })
    }

    /// What the payload is told.
    pub fn describe(&self) -> StartDisk {
        StartDisk {
            name: self
                .layers
                .first()
                .map(|top| top.held.name.clone())
                .unwrap_or_default(),
            layers: self.layers.iter().map(|layer| layer.start).collect(),
            index: self.index,
            options: self.options,
        }
    }

    /// What the payload is given: a descriptor for each layer.
    pub fn into_files(self) -> impl Iterator<Item = OwnedFd> {
        self.layers.into_iter().map(|layer| layer.file.into())
    }
}

impl Layer {
    fn open(asked: &RunLayer, top: bool, read_only: bool, direct: bool) -> Result<Layer, String> {
        let name = quoted(&asked.path);
        let what = if top { "disk" } else { "backing file" };
        let able = match (read_only, top) {
            (true, _) => "readable",
            (false, _) => "readable and writable, or add ',readonly',",
        };
        // Without O_NONBLOCK, opening a pipe would wait for its other end.
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOCTTY))
            .open(&asked.path)
            .map_err(|error| format!("{what} {name}: {}", explain(&error, "--disk", able)))?;
        let start =
            found_format(&file, asked.format).map_err(|error| format!("{what} {name} {error}"))?;
        // Not before: what was read of it until here was not whole blocks.
        if direct {
            let all = fcntl_getfl(&file).map(|all| all | OFlags::DIRECT);
            all.and_then(|all| fcntl_setfl(&file, all)).map_err(|error| {
                format!(
                    "{what} {name}: its file system cannot do without the page cache ({error}); \
                     use cache=writeback, or writethrough for directsync"
                )
            })?;
        }
        let about = file.metadata().ok();
        let held = Held {
            name,
            file: about.map(|about| (about.dev(), about.ino())),
            read_only,
        };
        Ok(Layer {
            file,
            held,
            asked: asked.clone(),
            start,
        })
    }
}

impl Held {
    /// Whether both are one file that cannot be open twice.
    fn excludes(&self, other: &Held) -> bool {
        let same = self.file.is_some() && self.file == other.file;
        same && !(self.read_only && other.read_only)
    }
}

/// The format of a file, and whether it was guessed.
fn found_format(
    file: &File,
    said: Option<DiskFormat>,
) -> Result<StartLayer, croft_disk::OpenError> {
    check_kind(file)?;
    let (format, guessed) = match said {
        Some(format) => (format, false),
        None => match probe(file)? {
            Format::Raw => (DiskFormat::Raw, true),
            Format::Qcow2 => (DiskFormat::Qcow2, true),
        },
    };
    if format == DiskFormat::Raw {
        check(file)?;
    }
    Ok(StartLayer { format, guessed })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn disk(path: &Path, read_only: bool) -> RunDisk {
        let mut disk = RunDisk::new(path);
        disk.options.read_only = read_only;
        disk
    }

    fn over(mut disk: RunDisk, path: &Path) -> RunDisk {
        disk.layers.push(RunLayer {
            path: path.into(),
            format: None,
        });
        disk
    }

    fn problem(disks: &[RunDisk]) -> String {
        Disk::open_all(disks).unwrap_err()
    }

    #[test]
    fn bad_disks_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let at = |len: u64| File::create(&path).unwrap().set_len(len).unwrap();
        assert!(problem(&[disk(&path, false)]).contains("no such file"));
        for read_only in [true, false] {
            let said = problem(&[disk(directory.path(), read_only)]);
            assert!(said.contains("a directory"), "{said}");
        }
        at(0);
        assert!(problem(&[disk(&path, false)]).contains("is empty"));
        at(1000);
        assert!(problem(&[disk(&path, true)]).contains("not a multiple of 512"));
        assert!(problem(&[disk(Path::new("/dev/null"), true)]).contains("character device"));
    }

    #[test]
    fn locks_keep_others_off() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let writable = || disk(image.path(), false);
        let readable = || disk(image.path(), true);
        assert!(problem(&[writable(), readable()]).contains("once more"));
        let held = Disk::open_all(&[writable()]).unwrap();
        assert!(problem(&[readable()]).contains("in use by another process"));
        drop(held);
        let held = Disk::open_all(&[readable(), readable()]).unwrap();
        Disk::open_all(&[readable()]).unwrap();
        assert!(problem(&[writable()]).contains("in use by another process"));
        drop(held);
    }

    #[test]
    fn layers_are_locked_for_reading() {
        let (top, base) = (image(b""), image(b"QFI\xfb"));
        let chain = || over(disk(top.path(), false), base.path());
        let held = Disk::open_all(&[chain()]).unwrap();
        let described = held[0].describe();
        assert_eq!(described.layers[1].format, DiskFormat::Qcow2);
        assert!(problem(&[disk(base.path(), false)]).contains("in use by another process"));
        let other = image(b"");
        Disk::open_all(&[over(disk(other.path(), false), base.path())]).unwrap();
        drop(held);
        assert!(problem(&[over(disk(top.path(), false), top.path())]).contains("once more"));
        assert!(problem(&[disk(base.path(), false), chain()]).contains("once more"));
        let none = over(disk(top.path(), false), Path::new("/none"));
        assert!(problem(&[none]).contains("backing file '/none': no such file"));
        let long = (0..LAYERS_MAX).fold(disk(top.path(), true), |disk, _| over(disk, base.path()));
        assert!(problem(&[long]).contains("33 layers"));
    }

    #[test]
    fn what_was_guessed_is_remembered() {
        let (raw, qcow2) = (image(b""), image(b"QFI\xfb"));
        let held = Disk::open_all(&[disk(raw.path(), false), disk(qcow2.path(), true)]).unwrap();
        for (disk, format) in held.iter().zip([DiskFormat::Raw, DiskFormat::Qcow2]) {
            assert!(disk.describe().layers[0].guessed);
            assert_eq!(disk.found().unwrap().layers[0].format, Some(format));
        }
        drop(held);
        let mut said = disk(qcow2.path(), false);
        said.layers[0].format = Some(DiskFormat::Raw);
        let held = Disk::open_all(&[said]).unwrap();
        let layer = held[0].describe().layers[0];
        assert!(!layer.guessed && layer.format == DiskFormat::Raw);
        assert!(problem(&[disk(image(b"KDMV").path(), true)]).contains("VMDK"));
    }

    fn image(start: &[u8]) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), start).unwrap();
        image.as_file().set_len(4096).unwrap();
        image
    }
}
