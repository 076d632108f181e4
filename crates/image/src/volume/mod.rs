//! Volumes: directories that outlive the containers that use them.
//!
//! ```text
//! volumes/
//!   lock           held by whoever changes what is here
//!   NAME/about.json
//!   NAME/data/     what containers see
//! ```
//!
//! A volume's files belong to the ids that they have in containers, as those of
//! unpacked layers do ([`crate::container::Owners`]): a container with ids of
//! its own mounts it id-mapped. A volume is there whole or not at all: it is
//! made under another name and renamed, and deleted the other way round.
//!
//! A new volume gets what the image has where it is mounted, once
//! ([`Volumes::fill`]).

mod fill;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::store::{Lock, durable, sweep};
use crate::{Error, rootless};

/// The version of a volume's `about.json` that this Croft writes.
const VERSION: u32 = 1;
/// What names of volumes on their way begin with, in both directions; no
/// volume's name does.
const PASSING: char = '.';
/// Longest name in bytes.
const LONGEST: usize = 128;

/// The volumes in a directory.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The directory that containers see.
    pub data: PathBuf,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Whether something of an image was put into it, or need not be any more.
    pub filled: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    created: u64,
    filled: bool,
}

/// Checks a volume's name: 1 to 128 letters, digits, `-`, `_` and `.`, a letter
/// or digit first.
pub fn check_name(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= LONGEST && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Unfit(format!(
        "'{}' cannot name a volume; use up to {LONGEST} letters, digits, '-', '_' and '.', a \
         letter or digit first",
        name.escape_debug()
    )))
}

impl Volumes {
    /// Those in a directory, which is made if it is not there. What crashes
    /// left in it is removed.
    pub fn open(root: &Path) -> Result<Volumes, Error> {
        durable::make_directory(root)?;
        let volumes = Volumes {
            root: root.to_owned(),
        };
        let lock = volumes.lock_path();
        // Somebody at work will see to it, or the next one.
        if let Some(_lock) = Lock::try_exclusive(&lock)? {
            for name in volumes.names()? {
                if name.starts_with(PASSING) {
                    sweep::remove(&root.join(name))?;
                }
            }
        }
        Ok(volumes)
    }

    /// Makes one that is not there.
    pub fn create(&self, name: &str) -> Result<Volume, Error> {
        check_name(name)?;
        let _lock = Lock::exclusive(&self.lock_path())?;
        match self.get(name) {
            Err(Error::Unfit(_)) => self.make(name),
            Ok(_) => Err(Error::Unfit(format!("volume '{name}' exists already"))),
            Err(error) => Err(error),
        }
    }

    /// The one of this name, which is made if it is not there.
    pub fn ensure(&self, name: &str) -> Result<Volume, Error> {
        check_name(name)?;
        let _lock = Lock::exclusive(&self.lock_path())?;
        match self.get(name) {
            Err(Error::Unfit(_)) => self.make(name),
            there => there,
        }
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Result<Volume, Error> {
        check_name(name)?;
        let directory = self.root.join(name);
        let path = directory.join(ABOUT);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Unfit(format!(
                    "there is no volume '{name}'; 'croft volume list' lists all"
                )));
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let about: About = serde_json::from_slice(&bytes).map_err(|error| Error::Store {
            path: path.clone(),
            why: error.to_string(),
        })?;
        if about.version != VERSION {
            return Err(Error::Store {
                path,
                why: format!(
                    "it is of version {}, this Croft knows {VERSION}; use a newer Croft",
                    about.version
                ),
            });
        }
        Ok(Volume {
            name: name.to_owned(),
            data: directory.join(DATA),
            created: about.created,
            filled: about.filled,
        })
    }

    /// All of them, by their names. One that cannot be read is an error in its
    /// place.
    pub fn list(&self) -> Result<Vec<Result<Volume, Error>>, Error> {
        let mut names = self.names()?;
        names.retain(|name| check_name(name).is_ok() && name != LOCK);
        names.sort();
        Ok(names.iter().map(|name| self.get(name)).collect())
    }

    /// Deletes one with all that is in it, unless `users` names instances that
    /// use it. `users` is called while nobody can [`hold`](Volumes::hold).
    pub fn delete(&self, name: &str, users: impl FnOnce(&str) -> Vec<String>) -> Result<(), Error> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        self.get(name)?;
        let instances = users(name);
        if !instances.is_empty() {
            return Err(Error::Unfit(format!(
                "volume '{name}' is in use by {}; delete these first",
                instances.join(", ")
            )));
        }
        let passing = self.passing(name);
        // Of an earlier one, in the moment between this and its removal.
        sweep::remove(&passing)?;
        durable::rename(&self.root.join(name), &passing)?;
        sweep::remove(&passing)
    }

    /// Keeps volumes from being made, filled and deleted while an instance that
    /// is to use some is written down.
    pub fn hold(&self) -> Result<VolumeHold, Error> {
        Lock::shared(&self.lock_path()).map(|lock| VolumeHold { _lock: lock })
    }

    /// Puts what an image has at a path into a volume that is new and empty,
    /// and gives the volume the path's owner and mode, as Docker does. `lowers`
    /// are the image's layers, the lowest first. Whether it did.
    pub fn fill(&self, name: &str, lowers: &[PathBuf], path: &str) -> Result<bool, Error> {
        let _lock = Lock::exclusive(&self.lock_path())?;
        let volume = self.get(name)?;
        if volume.filled {
            return Ok(false);
        }
        let did = fill(&volume.data, lowers, path)?;
        let about = About {
            version: VERSION,
            created: volume.created,
            filled: true,
        };
        let temporary = self.passing(name);
        let target = self.root.join(name).join(ABOUT);
        durable::replace(&target, &temporary, &text(&target, &about)?)?;
        Ok(did)
    }

    fn make(&self, name: &str) -> Result<Volume, Error> {
        let passing = self.passing(name);
        sweep::remove(&passing)?;
        let data = passing.join(DATA);
        durable::make_directory(&data)?;
        // Docker's default, of a volume nobody says anything of.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755))
            .map_err(Error::io("change", &data))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let about = About {
            version: VERSION,
            created: now.map_or(0, |now| now.as_secs()),
            filled: false,
        };
        let path = passing.join(ABOUT);
        fs::write(&path, text(&path, &about)?).map_err(Error::io("write", &path))?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        file.sync_all().map_err(Error::io("write", &path))?;
        durable::sync_directory(&passing)?;
        durable::rename(&passing, &self.root.join(name))?;
        self.get(name)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let failed = || Error::io::<io::Error>("read", &self.root);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            // What is not text is not ours.
            names.extend(name.into_string());
        }
        Ok(names)
    }

    fn passing(&self, name: &str) -> PathBuf {
        self.root.join(format!("{PASSING}{name}"))
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join(LOCK)
    }
}

/// See [`Volumes::hold`].
#[derive(Debug)]
pub struct VolumeHold {
    _lock: Lock,
}

/// Puts what an image has at a path into an empty directory, with the path's
/// own owner and mode. `lowers` are the image's layers, the lowest first.
/// Whether there was anything: not if the directory has something already, or
/// the image has no directory there.
pub fn fill(data: &Path, lowers: &[PathBuf], path: &str) -> Result<bool, Error> {
    match rootless::maps() {
        Some(owners) => rootless::fill(&owners, data, lowers, path),
        None => fill::fill(data, lowers, path),
    }
}

/// The directory that containers see.
const DATA: &str = "data";
/// What is known of a volume.
const ABOUT: &str = "about.json";
/// The lock, which no volume can be called.
const LOCK: &str = "lock.";

fn text(path: &Path, about: &About) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(about).map_err(|error| Error::Store {
        path: path.to_owned(),
        why: error.to_string(),
    })
}
