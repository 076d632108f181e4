//! What the guests boot from besides their kernels.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use croft_tests::Archive;
use croft_tests::files::{Kernel, busybox};
use croft_tests::guest::{self, Act};
use tempfile::TempDir;

use crate::systems::{Boot, Net};

/// Where `scripts/bench/build-guest` puts the program, from the directory of
/// this one.
const GUEST: &str = "../x86_64-unknown-linux-gnu/release/croft-bench-guest";

/// The disk that `scripts/bench/debian-image` makes, in the cache.
const DEBIAN: &str = "bench/debian.img";

/// Size of the disk that fio works on, in MiB.
const FIO_MIB: u64 = 256;

/// In the order in which they can be loaded.
const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Files of this run.
pub struct Files {
    directory: TempDir,
    /// Further arguments of `croft run` on the software engine.
    pub croft: Vec<String>,
}

impl Files {
    /// None yet.
    pub fn new(croft: Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Files { directory, croft }
    }

    /// The tests' guest: busybox and a script.
    pub fn shell(&self, kernel: Kernel, act: Act) -> Result<Boot, String> {
        Ok(Boot {
            kernel: kernel.path(),
            initrd: self.initrd("shell", || Ok(guest::initramfs()))?,
            append: act.command_line(),
            disks: Vec::new(),
            net: None,
        })
    }

    /// The program of the benchmarks as init, and nothing else. `words` go to
    /// it.
    pub fn program(&self, words: &str) -> Result<Boot, String> {
        let initrd = self.initrd("program", || {
            let program = read(&guest_program()?)?;
            let archive = Archive::new().directory("dev").directory("proc");
            Ok(archive.directory("tmp").program("init", &program).finish())
        })?;
        Ok(Boot {
            kernel: Kernel::Cloud.path(),
            initrd,
            append: format!("console=ttyS0 quiet {words}"),
            disks: Vec::new(),
            net: None,
        })
    }

    /// Debian on a disk, each time a copy of the same.
    pub fn debian(&self) -> Result<Boot, String> {
        let image = cache().join(DEBIAN);
        let disk = self.directory.path().join("debian.img");
        fs::copy(&image, &disk).map_err(|error| {
            let image = image.display();
            format!("{image}: {error}; as root: scripts/bench/debian-image")
        })?;
        let initrd = self.initrd("debian", || {
            let mut archive = Archive::new()
                .directory("bin")
                .directory("dev")
                .directory("proc")
                .directory("proc")
                .directory("root")
                .directory("modules")
                .program("bin/busybox", &read(&busybox())?)
                .program("init", include_bytes!("debian-init"));
            for (number, module) in MODULES.iter().enumerate() {
                let contents = read(&Kernel::Cloud.module(module))?;
                archive = archive.program(&format!("modules/{number}.ko"), &contents);
            }
            Ok(archive.finish())
        })?;
        Ok(Boot {
            kernel: Kernel::Cloud.path(),
            initrd,
            append: "console=ttyS0 quiet".to_owned(),
            disks: vec![disk],
            net: None,
        })
    }

    /// The same, with fio as its only program and a second disk for it: a
    /// file whose blocks are there already, so that a write is a write.
    pub fn fio(&self) -> Result<Boot, String> {
        let path = self.directory.path().join("fio.img");
        let failed = |error| format!("{}: {error}", path.display());
        if !path.exists() {
            let mut file = File::create(&path).map_err(failed)?;
            let piece = [0x5A; 1 << 20];
            for _ in 0..FIO_MIB {
                file.write_all(&piece).map_err(failed)?;
            }
            file.sync_all().map_err(failed)?;
        }
        let mut boot = self.debian()?;
        boot.append += " bench=fio";
        boot.disks.push(path);
        Ok(boot)
    }

    /// The same with programs for its NIC, which is this `net`. The guest has
    /// the address and prefix, the router and the peer of `words`.
    pub fn net(&self, net: Net, words: &str) -> Result<Boot, String> {
        let mut boot = self.debian()?;
        boot.append += &format!(" bench=net net={words}");
        boot.net = Some(net);
        Ok(boot)
    }

    /// A file that is made when it is first asked for.
    fn initrd(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<PathBuf, String> {
        let path = self.directory.path().join(name);
        if !path.exists() {
            let contents = make()?;
            fs::write(&path, contents).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(path)
    }
}

/// The static program of the benchmarks.
pub fn guest_program() -> Result<PathBuf, String> {
    let here = env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let path = here.parent().unwrap_or(Path::new("/")).join(GUEST);
    if path.is_file() {
        Ok(path)
    } else {
        let path = path.display();
        Err(format!(
            "{path} is not built; scripts/bench/build-guest builds it"
        ))
    }
}

/// Where downloads and images are.
pub fn cache() -> PathBuf {
    env::var_os("CROFT_CACHE")
        .map_or_else(|| croft_tests::files::root().join(".cache"), PathBuf::from)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
