//! The instances of a host, on its disk.
//!
//! ```text
//!  begin           finish                    delete
//! ───────► .new-… ────────► NAME ────────────────────► .gone-… ───► nothing
//!            │     rename    config.json      rename     remove
//!            │ drop, crash   state.json                    │ crash
//!            ▼               lock, disks, logs             ▼
//!         nothing, at once or when somebody next looks
//! ```
//!
//! An instance is there whole or not at all: it gets its name by one rename
//! and loses it by another. What a crash leaves unfinished has no lock any
//! more, and is removed when the next instance is begun or deleted.
//!
//! `config.json` is what somebody wants, and belongs to whoever has the
//! instance's lock, which its monitor has while it runs; `state.json` is what its
//! monitor last knew. The lock says whether that is still so.

mod config;
mod ids;
mod machine;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use croft_api::instance::STATE_VERSION;
use croft_api::{Phase, Status};
use thiserror::Error;

pub use config::{Config, ImageUse, Kind, VERSION as CONFIG_VERSION};
pub use ids::{IdsError, container_ids, own_id};
pub use machine::{Boot, Disk, Layer, Machine, Share};

use crate::directories::Directories;
use crate::files;
use crate::lock::{InstanceLock, LockError};
use crate::name::InstanceName;

const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
/// How the directory of an instance that is being made begins.
const NEW: &str = ".new-";
/// Where an instance's own volumes are.
const OWN_VOLUMES: &str = "volumes";
/// How that of one that is being deleted begins.
const GONE: &str = ".gone-";
/// Control group of all containers' groups.
const GROUPS: &str = "croft";
/// What a volume's directory has its files in.
const VOLUME: &str = "data";
/// How often a directory is removed that others put a file into meanwhile.
const REMOVALS: u32 = 8;
/// How often a state that changes while it is read is read again.
const TRIES: u32 = 5;

/// Why something could not be done with an instance.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is none of this name.
    #[error("there is no instance '{0}'; 'croft list' shows those there are")]
    None(InstanceName),
    /// There is one of this name.
    #[error("there is an instance '{0}' already; choose another name, or 'croft delete {0}' first")]
    Exists(InstanceName),
    /// It runs, or somebody else changes it.
    #[error("instance '{0}' is in use; 'croft stop {0}' first")]
    InUse(InstanceName),
    /// Its configuration is of a later Croft.
    #[error(
        "instance '{name}' was made by a newer Croft (version {version} of its configuration, {CONFIG_VERSION} is understood); use that"
    )]
    Version {
        /// Which one.
        name: InstanceName,
        /// Its version.
        version: u32,
    },
    /// A file of it cannot be read or written.
    #[error("instance '{name}': {what}: {source}")]
    Io {
        /// Which one.
        name: InstanceName,
        /// What was tried.
        what: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The directory of all instances cannot be read.
    #[error("the instances in '{}': {source}", directory.display())]
    List {
        /// Where they are.
        directory: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
}

/// All instances.
#[derive(Clone, Debug)]
pub struct Instances {
    directories: Directories,
    remover: Remover,
}

/// Removes a directory with all that is in it.
pub type Remover = fn(&Path) -> io::Result<()>;

impl Instances {
    /// Those in `directories`.
    pub fn new(directories: Directories) -> Self {
        Instances {
            directories,
            remover: |path| fs::remove_dir_all(path),
        }
    }

    /// With another way to remove directories: a container's may have files of
    /// its own ids, which a user cannot just remove.
    pub fn with_remover(self, remover: Remover) -> Self {
        Instances { remover, ..self }
    }

    /// Where everything is.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// Their names, in order.
    pub fn names(&self) -> Result<Vec<InstanceName>, StoreError> {
        let directory = self.directories.instances();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::List { directory, source }),
        };
        // Whatever has no name of an instance is none.
        let mut names: Vec<InstanceName> = entries
            .flatten()
            .filter(|entry| entry.path().join(CONFIG).exists())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// What an instance is.
    pub fn config(&self, name: &InstanceName) -> Result<Config, StoreError> {
        let path = self.directories.instance(name).join(CONFIG);
        let config: Config = files::read_json(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::None(name.clone()),
            _ => failed(name, "cannot read its configuration")(source),
        })?;
        if config.version > CONFIG_VERSION {
            return Err(StoreError::Version {
                name: name.clone(),
                version: config.version,
            });
        }
        Ok(config)
    }

    /// Changes what an instance is, while it does not run.
    pub fn change<R>(
        &self,
        name: &InstanceName,
        change: impl FnOnce(&mut Config) -> R,
    ) -> Result<R, StoreError> {
        let _lock = self.lock(name)?;
        let mut config = self.config(name)?;
        let changed = change(&mut config);
        files::write_json(&self.directories.instance(name), CONFIG, &config)
            .map_err(failed(name, "cannot write its configuration"))?;
        Ok(changed)
    }

    /// What is known of it, and true in this moment.
    pub fn status(&self, name: &InstanceName) -> Result<Status, StoreError> {
        let directory = self.directories.instance(name);
        let config = self.config(name)?;
        let mut tries = 0;
        loop {
            let held = InstanceLock::is_held(&directory)
                .map_err(failed(name, "cannot look at its lock"))?;
            let status = read_state(&directory).unwrap_or_else(|| {
                let created = Status::created(config.created);
                match directory.join(STATE).exists() {
                    true => lost(created),
                    false => created,
                }
            });
            if held || !status.phase.is_live() {
                return Ok(status);
            }
            tries += 1;
            if tries == TRIES {
                return Ok(orphaned(status));
            }
            // A monitor may have started in between.
        }
    }

    /// The lock of an instance that does not run.
    fn lock(&self, name: &InstanceName) -> Result<InstanceLock, StoreError> {
        let directory = self.directories.instance(name);
        if !directory.join(CONFIG).exists() {
            return Err(StoreError::None(name.clone()));
        }
        InstanceLock::take(&directory).map_err(|error| match error {
            LockError::Held => StoreError::InUse(name.clone()),
            LockError::Gone => StoreError::None(name.clone()),
            LockError::Io(source) => failed(name, "cannot lock it")(source),
        })
    }

    /// Waits until nothing of an instance is left that has ended but for what
    /// is kept.
    pub fn settle(&self, name: &InstanceName) -> Result<(), StoreError> {
        InstanceLock::settle(&self.directories.instance(name))
            .map_err(failed(name, "cannot look at its lock"))
    }

    /// Begins to make an instance.
    pub fn begin(&self, name: &InstanceName) -> Result<NewInstance, StoreError> {
        self.clean();
        if self.directories.instance(name).exists() {
            return Err(StoreError::Exists(name.clone()));
        }
        let process = std::process::id();
        let mut tries = 0;
        loop {
            tries += 1;
            let directory = self
                .directories
                .instances()
                .join(format!("{NEW}{name}-{process}-{}-{tries}", files::now()));
            let mut builder = DirBuilder::new();
            builder.mode(0o700);
            match builder.create(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => {
                    continue;
                }
                made => made.map_err(failed(name, "cannot make its directory"))?,
            }
            match InstanceLock::take(&directory) {
                Ok(lock) => {
                    return Ok(NewInstance {
                        instances: self.clone(),
                        name: name.clone(),
                        directory,
                        _lock: lock,
                    });
                }
                // Somebody took it, without a lock as it was, for what a crash
                // has left.
                Err(LockError::Held | LockError::Gone) if tries < TRIES => {}
                Err(error) => {
                    let error = io::Error::other(error.to_string());
                    return Err(failed(name, "cannot lock it")(error));
                }
            }
        }
    }

    /// Deletes an instance that does not run, with its disks.
    pub fn delete(&self, name: &InstanceName) -> Result<(), StoreError> {
        let lock = self.lock(name)?;
        self.clean();
        // A monitor that was killed leaves its sockets.
        for socket in [self.directories.socket(name), self.directories.vsock(name)] {
            let _ = fs::remove_file(socket);
        }
        let directory = self.directories.instance(name);
        remove(&directory, lock, self.remover).map_err(failed(name, "cannot delete it"))
    }

    /// Removes what crashes have left of instances half made or half deleted.
    fn clean(&self) {
        let entries = fs::read_dir(self.directories.instances());
        for entry in entries.into_iter().flatten().flatten() {
            if is_leftover(&entry.file_name())
                && let Ok(_lock) = InstanceLock::take(&entry.path())
            {
                // Under its lock, or whoever has just made it would take that
                // in between. If it cannot be removed now, then later.
                let _ = (self.remover)(&entry.path());
            }
        }
    }
}

/// Deletes the instance in `directory`, whose lock is `lock`.
pub fn remove(directory: &Path, lock: InstanceLock, remover: Remover) -> io::Result<()> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut gone = OsStr::new(GONE).to_owned();
    gone.push(name);
    gone.push(format!("-{}-{}", std::process::id(), files::now()));
    let gone = parent.join(gone);
    fs::rename(directory, &gone)?;
    files::sync_directory(parent)?;
    let removed = remove_all(&gone, remover);
    drop(lock);
    removed
}

/// Removes a directory that is nobody's any more, while others may do the same:
/// whoever looks for its lock when that is gone makes another.
fn remove_all(directory: &Path, remover: Remover) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match remover(directory) {
            // Somebody else was faster.
            Err(_) if !directory.exists() => return Ok(()),
            Err(_) if tries < REMOVALS => {}
            removed => return removed,
        }
    }
}

/// The control group of the container in `directory`, beneath the host's: of
/// its name, and of what no other instance has, of whoever's.
pub fn control_group(directory: &Path) -> io::Result<PathBuf> {
    let name = directory.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut group = name.to_owned();
    group.push(format!(".{:x}", fs::metadata(directory)?.ino()));
    Ok(Path::new(GROUPS).join(group))
}

/// Where the container in `directory` has its own volume of this name, which is
/// one of letters and digits.
pub fn own_volume(directory: &Path, name: &str) -> PathBuf {
    directory.join(OWN_VOLUMES).join(name)
}

/// Where the containers' volume of this name has its files, beside the instance
/// in `directory`. None for what is no name of a volume.
pub fn volume(directory: &Path, name: &str) -> Option<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let data = directory.parent()?.parent()?;
    let named = first && name.chars().all(plain);
    named.then(|| Directories::volumes_of(data).join(name).join(VOLUME))
}

/// Reads what the monitor of the instance in `directory` last knew.
pub fn read_state(directory: &Path) -> Option<Status> {
    let status: Status = files::read_json(&directory.join(STATE)).ok()?;
    (status.version <= STATE_VERSION).then_some(status)
}

/// Writes what the monitor of the instance in `directory` knows, without waiting
/// for the disk: after a power failure nothing runs, whatever it says, and one
/// that cannot be read is that of an instance that has run.
pub fn write_state(directory: &Path, status: &Status) -> io::Result<()> {
    files::write_passing_json(directory, STATE, status)
}

/// What the instance in `directory` is.
pub fn read_config(directory: &Path) -> io::Result<Config> {
    files::read_json(&directory.join(CONFIG))
}

/// Changes what the instance in `directory` is, whose lock is `lock`: its
/// monitor does so while it runs.
pub fn change_kept(
    directory: &Path,
    _lock: &InstanceLock,
    change: impl FnOnce(&mut Config),
) -> io::Result<()> {
    let mut config: Config = files::read_json(&directory.join(CONFIG))?;
    change(&mut config);
    files::write_json(directory, CONFIG, &config)
}

/// What is true of an instance whose monitor is gone without a word.
fn orphaned(status: Status) -> Status {
    Status {
        phase: Phase::Stopped,
        monitor: None,
        payload: None,
        note: Some("its monitor died".to_owned()),
        agent: None,
        devices: Vec::new(),
        ..status
    }
}

/// What is true of an instance that has run, and of which nothing more is known.
fn lost(created: Status) -> Status {
    Status {
        phase: Phase::Stopped,
        note: Some("what was known of its end was lost, as in a power failure".to_owned()),
        ..created
    }
}

fn is_leftover(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(NEW) || name.starts_with(GONE)
}

fn failed(name: &InstanceName, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let name = name.clone();
    move |source| StoreError::Io { name, what, source }
}

/// An instance that is being made. Dropped unfinished, nothing is left of it.
#[derive(Debug)]
pub struct NewInstance {
    instances: Instances,
    name: InstanceName,
    directory: PathBuf,
    _lock: InstanceLock,
}

impl NewInstance {
    /// Where its files are to be put. The directory gets another name in the
    /// end: the configuration names what is in it by relative paths.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes it an instance.
    pub fn finish(self, config: &Config) -> Result<(), StoreError> {
        let failed = |source| failed(&self.name, "cannot write its configuration")(source);
        files::write_json(&self.directory, CONFIG, config).map_err(failed)?;
        files::sync_directory(&self.directory).map_err(failed)?;
        let directory = self.instances.directories.instance(&self.name);
        fs::rename(&self.directory, directory).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => StoreError::Exists(self.name.clone()),
            _ => failed(source),
        })?;
        files::sync_directory(&self.instances.directories.instances()).map_err(failed)
    }
}

impl Drop for NewInstance {
    fn drop(&mut self) {
        // It has another name by now, if it was finished.
        if self.directory.exists() {
            let _ = (self.instances.remover)(&self.directory);
        }
    }
}
