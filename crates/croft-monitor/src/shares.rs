//! Opening directories that a machine shares.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use croft_api::monitor::RunShare;
use croft_api::vmm::StartShare;
use rustix::fs::OFlags;

use crate::files::{explain, flags, quoted};

/// An open directory: a place, from which the payload reaches what is below.
#[derive(Debug)]
pub struct Share {
    /// Open as `O_PATH`.
    pub directory: OwnedFd,
    tag: String,
    read_only: bool,
}

impl Share {
    /// Opens it, or says what is wrong and what to do.
    pub fn open(share: &RunShare) -> Result<Share, String> {
        let name = quoted(&share.path);
        let open = |kind: OFlags| -> std::io::Result<File> {
            OpenOptions::new()
                .read(true)
                .custom_flags(flags(kind | OFlags::DIRECTORY))
                .open(&share.path)
        };
        // Once as whoever lists it, so that what is wrong is said here.
        let directory = open(OFlags::empty()).and_then(|_| open(OFlags::PATH));
        let directory = directory.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotADirectory => {
                format!("share {name}: is not a directory; name one with --share")
            }
            _ => format!("share {name}: {}", explain(&error, "--share", "readable")),
        })?;
        Ok(Share {
            directory: directory.into(),
            tag: share.tag.clone(),
            read_only: share.read_only,
        })
    }

    /// What the payload is told.
    pub fn describe(&self) -> StartShare {
        StartShare {
            tag: self.tag.clone(),
            read_only: self.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_are_shared() {
        let directory = tempfile::tempdir().unwrap();
        let share = |path: &std::path::Path| RunShare {
            path: path.into(),
            tag: "tag".to_owned(),
            read_only: true,
        };
        let file = directory.path().join("file");
        let said = Share::open(&share(&file)).unwrap_err();
        assert!(
            said.contains("no such file") && said.contains("--share"),
            "{said}"
        );
        File::create(&file).unwrap();
        let said = Share::open(&share(&file)).unwrap_err();
        assert!(said.contains("not a directory"), "{said}");
        let open = Share::open(&share(directory.path())).unwrap();
        // A place only: it cannot be listed by this descriptor.
        assert!(
            rustix::fs::Dir::read_from(&open.directory)
                .is_ok_and(|mut all| { all.next().is_some_and(|first| first.is_err()) })
                || rustix::fs::Dir::read_from(&open.directory).is_err()
        );
        assert_eq!(open.describe().tag, "tag");
    }
}
