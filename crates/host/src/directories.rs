//! Where Croft keeps what it knows.
//!
//! | | data | runtime |
//! |---|---|---|
//! | root | `/var/lib/croft` | `/run/croft` |
//! | others | `$XDG_DATA_HOME/croft`, else `~/.local/share/croft` | `$XDG_RUNTIME_DIR/croft`, else `<data>/run` |
//!
//! `CROFT_DATA_DIR` and `CROFT_RUNTIME_DIR` override; with the first alone the
//! runtime directory is `<data>/run`, so that two hosts on one machine do not
//! meet.
//!
//! ```text
//! <data>/images/            the image store
//! <data>/volumes/NAME/      volumes of containers
//! <data>/registries.json    passwords for registries, as Docker's config.json
//! <data>/instances/NAME/    config.json, state.json, lock, console.log, disks
//! <data>/networks/NAME/     managed networks; `croft-network` has more
//! <runtime>/NAME.sock       control socket of a running instance
//! <runtime>/NAME.vsock      its vsock; NAME.vsock_PORT: what its guest connects to
//! ```

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use thiserror::Error;

use crate::name::InstanceName;

/// Rights of every directory made here: disks and consoles hold secrets.
const MODE: u32 = 0o700;
/// Rights of others that make a directory unfit: they could put sockets and
/// disks of their own in it.
const FOREIGN_WRITE: u32 = 0o022;

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    data: PathBuf,
    runtime: PathBuf,
}

/// Why there are no directories.
#[derive(Debug, Error)]
pub enum DirectoriesError {
    /// Nothing says where they are.
    #[error("no home directory is known; set HOME or CROFT_DATA_DIR")]
    NoHome,
    /// A variable has a path that depends on the current directory.
    #[error("{variable} is '{}', not an absolute path; correct or unset it", path.display())]
    Relative {
        /// Which variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// One cannot be made or looked at.
    #[error("directory '{}': {source}; make it writable for this user, or set CROFT_DATA_DIR", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// Somebody else can write to one.
    #[error("directory '{}' belongs to another user or is writable for others; correct its owner and mode (0700)", .0.display())]
    Foreign(PathBuf),
}

impl Directories {
    /// Where they are for this user, by the environment. Nothing is made.
    pub fn find() -> Result<Self, DirectoriesError> {
        Self::from_environment(geteuid().is_root(), |name| env::var_os(name))
    }

    /// At these paths.
    pub fn new(data: impl Into<PathBuf>, runtime: impl Into<PathBuf>) -> Self {
        Directories {
            data: data.into(),
            runtime: runtime.into(),
        }
    }

    fn from_environment(
        root: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, DirectoriesError> {
        let path = |name: &'static str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let own = |name: &'static str| match path(name) {
            Some(path) if path.is_relative() => Err(DirectoriesError::Relative {
                variable: name,
                path,
            }),
            path => Ok(path),
        };
        // The XDG base directory specification says to ignore relative paths.
        let xdg = |name| path(name).filter(|path| path.is_absolute());
        let chosen = own("CROFT_DATA_DIR")?;
        let standard = chosen.is_none();
        let data = match chosen {
            Some(data) => data,
            None if root => PathBuf::from("/var/lib/croft"),
            None => xdg("XDG_DATA_HOME")
                .or_else(|| Some(xdg("HOME")?.join(".local/share")))
                .ok_or(DirectoriesError::NoHome)?
                .join("croft"),
        };
        let runtime = match own("CROFT_RUNTIME_DIR")? {
            Some(runtime) => runtime,
            None if standard && root => PathBuf::from("/run/croft"),
            None => match xdg("XDG_RUNTIME_DIR").filter(|_| standard) {
                Some(runtime) => runtime.join("croft"),
                None => data.join("run"),
            },
        };
        Ok(Directories { data, runtime })
    }

    /// Makes what is missing, for this user alone, and checks that nobody
    /// else can write to what is there.
    pub fn create(&self) -> Result<(), DirectoriesError> {
        for path in [&self.data, &self.instances(), &self.images(), &self.runtime] {
            let failed = |source| DirectoriesError::Io {
                path: path.clone(),
                source,
            };
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(MODE);
            builder.create(path).map_err(failed)?;
            let about = fs::metadata(path).map_err(failed)?;
            if about.uid() != geteuid().as_raw() || about.mode() & FOREIGN_WRITE != 0 {
                return Err(DirectoriesError::Foreign(path.clone()));
            }
        }
        Ok(())
    }

    /// What is kept.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What goes with a restart of the host.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// The volumes of containers.
    pub fn volumes(&self) -> PathBuf {
        Self::volumes_of(&self.data)
    }

    /// The same, of this data directory.
    pub(crate) fn volumes_of(data: &Path) -> PathBuf {
        data.join("volumes")
    }

    /// All instances.
    pub fn instances(&self) -> PathBuf {
        self.data.join("instances")
    }

    /// What is kept of an instance.
    pub fn instance(&self, name: &InstanceName) -> PathBuf {
        self.instances().join(name)
    }

    /// The managed networks.
    pub fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }

    /// The control socket of an instance. Use [`crate::socket`], which copes
    /// with any length of path.
    pub fn socket(&self, name: &InstanceName) -> PathBuf {
        self.runtime.join(format!("{name}.sock"))
    }

    /// Where to connect to an instance's vsock.
    pub fn vsock(&self, name: &InstanceName) -> PathBuf {
        self.runtime.join(format!("{name}.vsock"))
    }

    /// Where a guest's connections to a port of the host (CID 2) arrive.
    pub fn vsock_port(&self, name: &InstanceName, port: u32) -> PathBuf {
        self.runtime.join(format!("{name}.vsock_{port}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn find(root: bool, variables: &[(&str, &str)]) -> Result<(String, String), DirectoriesError> {
        let found = Directories::from_environment(root, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })?;
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Ok((text(&found.data), text(&found.runtime)))
    }

    #[test]
    fn the_environment_says_where() {
        let is = |root, variables: &[(&str, &str)], data: &str, runtime: &str| {
            let expected = (data.to_owned(), runtime.to_owned());
            assert_eq!(find(root, variables).unwrap(), expected, "{variables:?}");
        };
        is(true, &[("HOME", "/root")], "/var/lib/croft", "/run/croft");
        is(
            false,
            &[("HOME", "/h")],
            "/h/.local/share/croft",
            "/h/.local/share/croft/run",
        );
        let xdg = [
            ("HOME", "/h"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        is(false, &xdg, "/d/croft", "/r/croft");
        is(true, &xdg, "/var/lib/croft", "/run/croft");
        let relative = [
            ("HOME", "/h"),
            ("XDG_DATA_HOME", "d"),
            ("XDG_RUNTIME_DIR", ""),
        ];
        is(
            false,
            &relative,
            "/h/.local/share/croft",
            "/h/.local/share/croft/run",
        );
        let chosen = [("CROFT_DATA_DIR", "/c"), ("XDG_RUNTIME_DIR", "/r")];
        is(true, &chosen, "/c", "/c/run");
        is(false, &chosen, "/c", "/c/run");
        let both = [("CROFT_DATA_DIR", "/c"), ("CROFT_RUNTIME_DIR", "/x")];
        is(false, &both, "/c", "/x");
        assert!(matches!(find(false, &[]), Err(DirectoriesError::NoHome)));
        assert!(find(true, &[("CROFT_DATA_DIR", "c")]).is_err());
    }

    #[test]
    fn they_are_for_one_user_alone() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("a/data");
        let directories = Directories::new(&data, data.join("run"));
        directories.create().unwrap();
        directories.create().unwrap();
        for path in [data.clone(), data.join("run"), data.join("instances")] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, MODE);
        }
        fs::set_permissions(data.join("run"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            directories.create(),
            Err(DirectoriesError::Foreign(path)) if path == data.join("run")
        ));
    }
}
