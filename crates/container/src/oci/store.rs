//! Where containers are remembered: a directory each, below `--root`.
//!
//! ```text
//! ROOT/ID/             one mkdir takes the name, and its lock is held (flock)
//!   making.json        what is known while it is made
//!   state.json         what is known since; each appears whole, by a rename
//!   config.json        the bundle's, as it was at create
//!   start              the socket that its init waits at
//! ```
//!
//! Whoever makes, starts or removes a container holds the lock of its
//! directory. Whoever reads does not: hooks ask for the state while a command
//! runs them.

use std::collections::HashMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, renameat, stat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::process::Process;

/// Most of a configuration or state that is read, in bytes.
pub const LARGEST: u64 = 16 << 20;
/// Version of [`Record`].
const VERSION: u32 = 1;
const STATE: &str = "state.json";
/// Until there is an init. A file of its own: ext4 writes what replaces another
/// to the disk at once, and removing it waits for that.
const MAKING: &str = "making.json";
const CONFIG: &str = "config.json";
const SOCKET: &str = "start";

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of this form.
    version: u32,
    /// Its name.
    pub id: String,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its root, absolute.
    pub rootfs: PathBuf,
    /// When it was made, by RFC 3339.
    pub created: String,
    /// The user who made it.
    pub owner: u32,
    /// The process that makes it, until it is made.
    pub creator: Option<Process>,
    /// Its init.
    pub init: Option<Process>,
    /// Path of its control group; none if it has none.
    pub groups: Option<PathBuf>,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
}

impl Record {
    /// Of a container that this process is about to make.
    pub fn new(id: &str, bundle: PathBuf, rootfs: PathBuf, spec: &Spec) -> Self {
        Record {
            version: VERSION,
            id: id.to_owned(),
            bundle,
            rootfs,
            created: jiff::Timestamp::now().to_string(),
            owner: rustix::process::getuid().as_raw(),
            creator: Process::own(),
            init: None,
            groups: None,
            annotations: spec.annotations().clone(),
        }
    }
}

/// The directory of all containers.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The named one, or the user's: root's in `/run`, another's in
    /// `$XDG_RUNTIME_DIR`.
    pub fn new(root: Option<&Path>) -> Self {
        let of_user = || match env::var_os("XDG_RUNTIME_DIR") {
            Some(directory) if !rustix::process::geteuid().is_root() && !directory.is_empty() => {
                Path::new(&directory).join("croft-oci")
            }
            _ => PathBuf::from("/run/croft-oci"),
        };
        Store {
            root: root.map_or_else(of_user, Path::to_path_buf),
        }
    }

    /// Takes a name, and its lock.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] for what is no name, [`Error::Exists`] if it is taken.
    pub fn create(&self, id: &str) -> Result<Entry, Error> {
        check(id)?;
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|error| Error::file("make", &self.root, error))?;
        let path = self.root.join(id);
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists(id.to_owned())),
            Err(error) => return Err(Error::file("make", path, error)),
        }
        let entry = Entry::open(id, path)?;
        entry.lock()?;
        Ok(entry)
    }

    /// A container's directory.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if there is none.
    pub fn open(&self, id: &str) -> Result<Entry, Error> {
        check(id)?;
        Entry::open(id, self.root.join(id))
    }

    /// Names of all containers, sorted.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("read", &self.root, error)),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| check(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }
}

/// Names become directories, sockets and control groups.
fn check(id: &str) -> Result<(), Error> {
    let allowed = |one: char| one.is_ascii_alphanumeric() || "_+-.".contains(one);
    let fits = (1..=255).contains(&id.len()) && id.chars().all(allowed);
    if fits && id != "." && id != ".." {
        Ok(())
    } else {
        Err(Error::Name(id.chars().take(300).collect()))
    }
}

/// One container's directory. The lock, if taken, ends with this.
#[derive(Debug)]
pub struct Entry {
    id: String,
    path: PathBuf,
    directory: OwnedFd,
}

impl Entry {
    fn open(id: &str, path: PathBuf) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(directory) => Ok(Entry {
                id: id.to_owned(),
                path,
                directory,
            }),
            Err(Errno::NOENT) => Err(Error::Missing(id.to_owned())),
            Err(error) => Err(Error::file("open", path, error)),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody else holds the lock, and takes it.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the container was removed meanwhile.
    pub fn lock(&self) -> Result<(), Error> {
        loop {
            match flock(&self.directory, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::file("lock", &self.path, error)),
            }
        }
        // It may be another of this name by now.
        let ours = fstat(&self.directory).map_err(|error| self.failed("look at", error))?;
        match stat(&self.path) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => Ok(()),
            Ok(_) | Err(Errno::NOENT) => Err(Error::Missing(self.id.clone())),
            Err(error) => Err(self.failed("look at", error)),
        }
    }

    /// Gives the lock up early.
    pub fn unlock(&self) {
        let _ = flock(&self.directory, FlockOperation::Unlock);
    }

    /// What is known; `None` while its maker has not written anything, or was
    /// killed before.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        for name in [STATE, MAKING] {
            if let Some(text) = self.read(name)? {
                return self.understand(name, &text).map(Some);
            }
        }
        Ok(None)
    }

    fn understand(&self, name: &str, text: &[u8]) -> Result<Record, Error> {
        let wrong = |why: String| Error::Content {
            path: self.path.join(name),
            why,
        };
        let record: Record =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        match record.version {
            VERSION => Ok(record),
            other => Err(wrong(format!(
                "it is of version {other}, this program reads {VERSION}"
            ))),
        }
    }

    /// Remembers it.
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        let name = if record.init.is_some() { STATE } else { MAKING };
        let text = serde_json::to_vec(record).map_err(|error| Error::Content {
            path: self.path.join(name),
            why: error.to_string(),
        })?;
        self.replace(name, &text)
    }

    /// Keeps the configuration as it was: the bundle's may change.
    pub fn keep_config(&self, text: &[u8]) -> Result<(), Error> {
        self.replace(CONFIG, text)
    }

    /// The configuration that it was made from.
    pub fn spec(&self) -> Result<Spec, Error> {
        let path = self.path.join(CONFIG);
        let Some(text) = self.read(CONFIG)? else {
            return Err(Error::file("open", path, Errno::NOENT));
        };
        serde_json::from_slice(&text).map_err(|error| Error::Content {
            path,
            why: error.to_string(),
        })
    }

    /// A path of the start socket that is short enough for any directory
    /// (`sun_path` has 108 bytes), while this is there.
    pub fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.directory.as_raw_fd()).into()
    }

    /// The start socket is not needed any more.
    pub fn drop_socket(&self) {
        let _ = unlinkat(&self.directory, SOCKET, AtFlags::empty());
    }

    /// Removes the directory. The name is free then.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::file("remove", &self.path, error)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Error::file("open", self.path.join(name), error)),
        };
        read_bounded(file.into(), &self.path.join(name)).map(Some)
    }

    /// Replaces a file whole: whoever reads it meanwhile gets the old one.
    fn replace(&self, name: &str, text: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        // One at a time may write, or is the first.
        let part = format!("{name}.{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let written = openat(&self.directory, part.as_str(), flags, mode)
            .map_err(std::io::Error::from)
            .and_then(|file| {
                std::io::Write::write_all(&mut fs::File::from(file), text)?;
                Ok(renameat(
                    &self.directory,
                    part.as_str(),
                    &self.directory,
                    name,
                )?)
            });
        written.map_err(|error| Error::file("write", path, error))
    }

    fn failed(&self, action: &'static str, error: Errno) -> Error {
        Error::file(action, &self.path, error)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A container that waits has a copy of the descriptor until its program
        // runs: that it is closed here does not end the lock.
        self.unlock();
    }
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// All of a file, up to [`LARGEST`].
pub fn read_bounded(file: fs::File, path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    // As much as is there, and no more by doubling.
    let size = file.metadata().map_or(0, |data| data.len());
    let mut text = Vec::with_capacity(usize::try_from(size.min(LARGEST)).unwrap_or(0) + 1);
    let mut bounded = file.take(LARGEST + 1);
    bounded
        .read_to_end(&mut text)
        .map_err(|error| Error::file("read", path, error))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(Error::Content {
            path: path.to_path_buf(),
            why: format!("it is larger than {} MiB", LARGEST >> 20),
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Some(&directory.path().join("deep/root")));
        (directory, store)
    }

    fn record(id: &str) -> Record {
        Record::new(id, "/b".into(), "/b/rootfs".into(), &Spec::default())
    }

    #[test]
    fn names() {
        let (_directory, store) = store();
        for name in ["", ".", "..", "a/b", "a b", "ü", "a\n", &"a".repeat(256)] {
            assert!(
                matches!(store.create(name), Err(Error::Name(_))),
                "{name:?}"
            );
        }
        assert!(store.names().unwrap().is_empty());
        for name in ["b.1", "A_+-9"] {
            store.create(name).unwrap();
        }
        assert_eq!(store.names().unwrap(), ["A_+-9", "b.1"]);
        assert!(matches!(store.create("b.1"), Err(Error::Exists(_))));
        assert!(matches!(store.open("c"), Err(Error::Missing(_))));
    }

    #[test]
    fn what_is_written_is_read() {
        let (_directory, store) = store();
        let entry = store.create("one").unwrap();
        assert_eq!(entry.record().unwrap(), None);
        let mut written = record("one");
        entry.write(&written).unwrap();
        assert_eq!(entry.record().unwrap().as_ref(), Some(&written));
        written.init = Process::own();
        entry.write(&written).unwrap();
        entry.keep_config(b"{\"ociVersion\":\"1.0.2\"}").unwrap();
        drop(entry);
        let entry = store.open("one").unwrap();
        assert_eq!(entry.record().unwrap(), Some(written));
        assert_eq!(entry.spec().unwrap().version(), "1.0.2");
        entry.remove().unwrap();
        assert!(matches!(store.open("one"), Err(Error::Missing(_))));
        entry.remove().unwrap();
    }

    #[test]
    fn a_lock_on_what_was_removed_is_none() {
        let (_directory, store) = store();
        let maker = store.create("one").unwrap();
        let other = store.open("one").unwrap();
        maker.remove().unwrap();
        drop(maker);
        let _new = store.create("one").unwrap();
        assert!(matches!(other.lock(), Err(Error::Missing(_))));
    }

    #[test]
    fn damaged_states_are_named() {
        let (_directory, store) = store();
        let entry = store.create("one").unwrap();
        for text in ["", "{", "{\"version\":1}", "[1]"] {
            fs::write(entry.path().join(STATE), text).unwrap();
            let error = entry.record().unwrap_err().to_string();
            assert!(error.contains(STATE), "{error}");
        }
        let mut newer = serde_json::to_value(record("one")).unwrap();
        newer["version"] = 7.into();
        fs::write(entry.path().join(STATE), newer.to_string()).unwrap();
        let error = entry.record().unwrap_err().to_string();
        assert!(error.contains("of version 7"), "{error}");
    }
}
