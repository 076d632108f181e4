//! Where the programs and the stock kernels are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of Croft's programs, in the directory where this one was built.
///
/// # Panics
/// When it is missing.
pub fn program(name: &str) -> PathBuf {
    let here = env::current_exe().expect("the path of this program");
    // Tests are one directory below.
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built; `make test` and `make bench` build it"))
}

/// Copies a program that is to be run. Another process does it: a copy that
/// this one writes is busy (ETXTBSY) as long as a child that another thread
/// begins in that moment has not become its program.
///
/// # Panics
/// When it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).output().expect("cp");
    assert!(copied.status.success(), "{copied:?}");
}

/// A stock Debian kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Of `linux-image-cloud-amd64`.
    Cloud,
    /// Of `linux-image-amd64`.
    Generic,
}

impl Kernel {
    /// Its name in the cache and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Cloud => "cloud",
            Kernel::Generic => "generic",
        }
    }

    /// Its bzImage.
    ///
    /// # Panics
    /// When it was not fetched.
    pub fn path(self) -> PathBuf {
        cached(&format!("kernels/{}/vmlinuz", self.name()))
    }

    /// One of its modules, which it has not built in.
    ///
    /// # Panics
    /// When it was not fetched.
    pub fn module(self, name: &str) -> PathBuf {
        cached(&format!("kernels/{}/modules/{name}.ko", self.name()))
    }

    /// Version of its package, for example `6.1.0-56-cloud-amd64`: what it
    /// calls itself.
    pub fn release(self) -> String {
        let package = cached(&format!("kernels/{}/package", self.name()));
        let package = fs::read_to_string(package).expect("the package's name");
        package.trim().trim_start_matches("linux-image-").to_owned()
    }
}

/// Debian's static busybox.
///
/// # Panics
/// When it was not fetched.
pub fn busybox() -> PathBuf {
    cached("busybox")
}

fn cached(name: &str) -> PathBuf {
    let path = match env::var_os("CROFT_CACHE") {
        Some(cache) => PathBuf::from(cache).join(name),
        None => root().join(".cache").join(name),
    };
    assert!(
        path.is_file(),
        "{} is missing; `make test` and `make bench` fetch it",
        path.display()
    );
    path
}

/// The source tree.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
