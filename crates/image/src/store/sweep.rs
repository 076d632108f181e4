//! Removes what crashes and deletions leave: staging directories without a
//! maker, blobs that no image has.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::index::Index;
use super::layers::chain;
use super::layout::Layout;
use super::load;
use super::lock::Lock;
use crate::{Error, rootless};

/// Hundredths of a second in which whoever looks at the index is done.
const PATIENCE: u32 = 25;
/// How long blobs on their way are kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Things in the staging directory.
    pub staging: usize,
    /// Blobs.
    pub blobs: usize,
    /// Unpacked layers.
    pub layers: usize,
}

/// Sweeps, unless somebody is making something: then a later one will.
pub fn sweep(layout: &Layout) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    let Some(_lock) = Lock::try_exclusive(&layout.lock())? else {
        return Ok(swept);
    };
    // Against a deletion, or a new name, of which the index is being written
    // in the staging directory.
    // Somebody who holds images may be about to unpack one, who waits for the
    // other lock: so this one is not waited for in earnest.
    let Some(_index_lock) = soon(&layout.index_lock())? else {
        return Ok(swept);
    };
    for name in names(&layout.staging())? {
        remove(&layout.staging().join(name))?;
        swept.staging = swept.staging.saturating_add(1);
    }
    let index = Index::read(layout)?;
    let mut needed = HashSet::new();
    let mut layers = HashSet::new();
    for (id, names) in index.images() {
        needed.insert(id.to_string());
        // An image that cannot be read keeps everything: which blobs it has
        // is not known.
        let Ok(image) = load(layout, *id, names) else {
            return Ok(swept);
        };
        needed.extend(
            image
                .manifest
                .blobs()
                .iter()
                .map(|(_, blob, _)| blob.to_string()),
        );
        layers.extend(chain(&image.manifest).iter().map(|(id, _)| id.to_string()));
    }
    for name in names(&layout.blobs())? {
        if !name.to_str().is_some_and(|name| needed.contains(name)) {
            remove(&layout.blobs().join(name))?;
            swept.blobs = swept.blobs.saturating_add(1);
        }
    }
    for name in names(&layout.layers())? {
        // The id, and what tells owners apart.
        let id = name.to_str().and_then(|name| name.split('.').next());
        if !id.is_some_and(|id| layers.contains(id)) {
            remove(&layout.layers().join(name))?;
            swept.layers = swept.layers.saturating_add(1);
        }
    }
    partial(layout, KEPT)?;
    Ok(swept)
}

/// The lock, if it is to be had within a moment.
fn soon(path: &Path) -> Result<Option<Lock>, Error> {
    for _ in 0..PATIENCE {
        if let Some(lock) = Lock::try_exclusive(path)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// Removes blobs on their way that nobody has gone on with for so long.
pub fn partial(layout: &Layout, kept: Duration) -> Result<(), Error> {
    for name in names(&layout.partial())? {
        let path = layout.partial().join(name);
        let changed = fs::metadata(&path).and_then(|about| about.modified());
        let age = changed.map(|changed| changed.elapsed().unwrap_or_default());
        // Whoever works at it has it locked.
        if age.is_ok_and(|age| age >= kept)
            && let Some(_lock) = Lock::try_exclusive(&path)?
        {
            remove(&path)?;
        }
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<OsString>, Error> {
    let failed = || Error::io::<std::io::Error>("read", directory);
    fs::read_dir(directory)
        .map_err(failed())?
        .map(|entry| entry.map(|entry| entry.file_name()).map_err(failed()))
        .collect()
}

/// Removes a file or a whole tree, if it is there: also one with files of this
/// user's subordinate ids, and with directories that are closed.
pub fn remove(path: &Path) -> Result<(), Error> {
    let directory = match fs::symlink_metadata(path) {
        Ok(data) => data.is_dir(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("look at", path)(error)),
    };
    if directory {
        remove_tree(path)
    } else {
        fs::remove_file(path).map_err(Error::io("remove", path))
    }
}

/// Removes a tree, in which directories may be closed to their owner.
fn remove_tree(path: &Path) -> Result<(), Error> {
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    open_up(path);
    let removed = fs::remove_dir_all(path);
    match (removed, rootless::maps()) {
        // Files of subordinate ids: only their root can remove them.
        (Err(error), Some(owners)) if error.kind() == ErrorKind::PermissionDenied => {
            rootless::remove(&owners, path)
        }
        (removed, _) => removed.map_err(Error::io("remove", path)),
    }
}

fn open_up(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        // What cannot be opened is named when it cannot be removed.
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(directories.map(|entry| entry.path()));
    }
}
