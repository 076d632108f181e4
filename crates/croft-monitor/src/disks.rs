//! Opening and locking disks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use croft_api::monitor::RunDisk;
use croft_api::vmm::StartDisk;
use croft_disk::{check, lock};
use rustix::fs::OFlags;

use crate::files::{explain, flags, quoted};

/// An open disk, locked for as long as any copy of its descriptor is open.
#[derive(Debug)]
pub struct Disk {
    /// Open for reading and, unless read-only, writing.
    pub file: File,
    name: String,
    read_only: bool,
}

impl Disk {
    /// Opens and locks all of them, or says what is wrong and what to do.
    pub fn open_all(disks: &[RunDisk]) -> Result<Vec<Disk>, String> {
        let mut open: Vec<Disk> = Vec::with_capacity(disks.len());
        for disk in disks {
            let disk = Disk::open(disk)?;
            let shared =
                |other: &&Disk| other.is_same(&disk) && !(other.read_only && disk.read_only);
            if let Some(other) = open.iter().find(shared) {
                return Err(format!(
                    "disk {} is {} once more; give it once, or as ',readonly' each time",
                    disk.name, other.name
                ));
            }
            lock::lock(&disk.file, disk.read_only)
                .map_err(|error| format!("disk {} {error}", disk.name))?;
            open.push(disk);
        }
        Ok(open)
    }

    fn open(disk: &RunDisk) -> Result<Disk, String> {
        let name = quoted(&disk.path);
        let able = if disk.read_only {
            "readable"
        } else {
            "readable and writable, or add ',readonly',"
        };
        // Without O_NONBLOCK, opening a pipe would wait for its other end.
        let file = OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOCTTY))
            .open(&disk.path)
            .map_err(|error| format!("disk {name}: {}", explain(&error, "--disk", able)))?;
        check(&file).map_err(|error| format!("disk {name} {error}"))?;
        Ok(Disk {
            file,
            name,
            read_only: disk.read_only,
        })
    }

    /// Whether both are the same file.
    fn is_same(&self, other: &Disk) -> bool {
        let place = |disk: &Disk| {
            let about = disk.file.metadata().ok()?;
            Some((about.dev(), about.ino()))
        };
        place(self).is_some_and(|mine| place(other) == Some(mine))
    }

    /// What the payload is told.
    pub fn describe(&self) -> StartDisk {
        StartDisk {
            name: self.name.clone(),
            read_only: self.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn disk(path: &Path, read_only: bool) -> RunDisk {
        RunDisk {
            path: path.into(),
            read_only,
        }
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
}
