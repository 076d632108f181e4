//! Disks that machines boot from.
//!
//! An input changes bytes of a small disk: sets of offset and bytes. Whatever
//! they make of it, there is a system or an error, in bounded time; on a disk
//! that is not changed there is the system.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use croft_bootdisk::{BootError, Limits, find};
use croft_disk::RawDisk;

use crate::input::Input;

/// Bytes of the disk: room for the smallest journal.
const SIZE: u64 = 4 << 20;
/// Most bytes changed at one place.
const CHANGE: usize = 16;
/// Blocks in which nearly everything is that is looked at; offsets fall there
/// more often than elsewhere.
const BLOCK: u64 = 1024;

const LIMITS: Limits = Limits {
    kernel: 1 << 20,
    initrd: 1 << 20,
    read: 64 << 20,
    time: Duration::from_secs(120),
};

/// The disk, its contents before anything was changed, and the blocks that
/// are not empty.
struct Base {
    file: File,
    bytes: Vec<u8>,
    used: Vec<u64>,
}

fn tool(name: &str) -> Command {
    let sbin = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    let found = sbin.into_iter().find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| PathBuf::from(name)))
}

/// A file system without checksums, so that changes reach what is behind
/// them, that was not unmounted.
fn make() -> std::io::Result<Base> {
    let directory = tempfile::tempdir()?;
    let (tree, image) = (
        directory.path().join("tree"),
        directory.path().join("image"),
    );
    for name in ["boot/grub", "boot/loader/entries", "etc/default"] {
        fs::create_dir_all(tree.join(name))?;
    }
    for (name, text) in [
        ("boot/vmlinuz-1", "kernel"),
        ("boot/initrd.img-1", "initrd"),
        (
            "boot/grub/grub.cfg",
            "menuentry 'x' {\nlinux /boot/none\n}\n",
        ),
        ("boot/loader/entries/a.conf", "linux /boot/none\n"),
        ("etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"\n"),
    ] {
        fs::write(tree.join(name), text)?;
    }
    std::os::unix::fs::symlink("boot/vmlinuz-1", tree.join("vmlinuz"))?;
    File::create(&image)?.set_len(SIZE)?;
    let made = tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1"])
        .args(["-O", "^metadata_csum", "-d"])
        .args([&tree, &image])
        .status()?;
    // One transaction, on blocks that nothing uses.
    let block = directory.path().join("block");
    fs::write(&block, [0x55; BLOCK as usize])?;
    let script = directory.path().join("script");
    let commands = format!(
        "jo\njw -b 3900 {0}\njw -r 3901\njw -b 3902 {0}\njc\n",
        block.display()
    );
    fs::write(&script, commands)?;
    let written = tool("debugfs")
        .arg("-w")
        .arg("-f")
        .args([&script, &image])
        .output()?;
    if !made.success() || !written.status.success() {
        return Err(std::io::Error::other("mke2fs or debugfs failed"));
    }
    let bytes = fs::read(&image)?;
    let blocks = bytes.chunks(BLOCK as usize).zip(0..);
    let used = blocks.filter(|(block, _)| block.iter().any(|byte| *byte != 0));
    let used = used.map(|(_, number)| number).collect();
    let file = File::options().read(true).write(true).open(&image)?;
    Ok(Base { file, bytes, used })
}

/// None where e2fsprogs is missing: then there is nothing to change.
fn base() -> Option<&'static Mutex<Base>> {
    static BASE: OnceLock<Option<Mutex<Base>>> = OnceLock::new();
    let made = BASE.get_or_init(|| match make() {
        Ok(base) => Some(Mutex::new(base)),
        Err(error) => {
            println!("skipped: no disk to boot from: {error}");
            None
        }
    });
    made.as_ref()
}

/// Looks for a system on the disk that `data` stands for.
pub fn run(data: &[u8]) {
    let Some(base) = base() else { return };
    let base = base.lock().unwrap_or_else(PoisonError::into_inner);
    let mut input = Input::new(data);
    let mut changed = Vec::new();
    while !input.is_empty() {
        let choice = input.u8();
        let place = u64::from(input.u32());
        let at = match choice & 1 {
            0 => {
                let block = base.used.get(place as usize / 1024 % base.used.len());
                block.map_or(0, |block| block * BLOCK + place % BLOCK)
            }
            _ => place % SIZE,
        };
        let count = 1 + usize::from(choice >> 1) % CHANGE;
        let bytes: Vec<u8> = (0..count).map(|_| input.u8()).collect();
        let there = base.bytes.get(at as usize..).unwrap_or_default();
        let count = count.min(there.len());
        base.file
            .write_all_at(&bytes[..count], at)
            .expect("a write");
        changed.push((at, count));
    }
    let file = base.file.try_clone().expect("a descriptor");
    let disk = RawDisk::new(file, true).expect("a disk");
    let found = find(Arc::new(disk), LIMITS);
    for (at, count) in &changed {
        let there = &base.bytes[*at as usize..][..*count];
        base.file.write_all_at(there, *at).expect("a write");
    }
    match found {
        Ok(system) => {
            assert!(system.kernel.bytes.len() as u64 <= LIMITS.kernel);
            assert!(system.command_line.len() <= 4096);
        }
        Err(BootError::Time) => panic!("a search without end"),
        Err(error) => {
            assert!(!changed.is_empty(), "{error}");
            let text = error.to_string();
            assert!(text.lines().count() <= 3 && text.len() < 3000, "{text}");
        }
    }
}

/// The disk as it is, and with some other features.
pub fn seeds() -> Vec<Vec<u8>> {
    let change = |at: u32, bytes: &[u8]| {
        let count = (bytes.len() - 1) as u8;
        [&[count << 1 | 1], &at.to_le_bytes()[..], bytes].concat()
    };
    vec![
        Vec::new(),
        // The superblock: clean, and with 64-bit group descriptors off.
        change(1024 + 0x60, &[0xC2]),
        change(1024 + 0x60, &[0x46]),
        // A partition table in front.
        change(446 + 4, &[0x83, 0, 0, 0, 1]),
    ]
}
