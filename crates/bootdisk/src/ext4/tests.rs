//! ext4 beside e2fsprogs: what mke2fs made, and journals that debugfs wrote
//! and e2fsck replayed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::superblock::Superblock;
use super::*;
use crate::Limits;
use crate::source::{be32, le32};
use crate::testing::disk;

/// Bytes of an image.
const SIZE: u64 = 24 << 20;

fn tool(name: &str) -> Command {
    let sbin = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    let found = sbin.into_iter().find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| PathBuf::from(name)))
}

/// An image of the tree that `fill` makes, or nothing (said) where e2fsprogs
/// is not installed.
fn image(directory: &Path, options: &[&str], fill: impl Fn(&Path)) -> Option<PathBuf> {
    let (tree, image) = (directory.join("tree"), directory.join("image"));
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let mut command = tool("mke2fs");
    let made = command
        .args(["-q", "-F", "-t", "ext4"])
        .args(options)
        .arg("-d")
        .args([&tree, &image])
        .status();
    match made {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            println!("skipped: mke2fs: {error}");
            return None;
        }
    }
    Some(image)
}

fn source(image: &Path) -> Source {
    Source::new(disk(&fs::read(image).unwrap()), Limits::default())
}

#[test]
fn files_links_and_directories_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let image = image(directory.path(), &[], |tree| {
        fs::create_dir(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/large"), &large).unwrap();
        fs::write(tree.join("small"), "small").unwrap();
        symlink("boot/large", tree.join("link")).unwrap();
        symlink("loop", tree.join("loop")).unwrap();
        symlink("../../../small", tree.join("boot/up")).unwrap();
        let sparse = File::create(tree.join("boot/sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(b"end", (1 << 20) - 3).unwrap();
        for name in 0..500 {
            fs::write(tree.join(format!("boot/file-{name}")), "").unwrap();
        }
    });
    let Some(image) = image else { return };
    let volume = Ext4Volume::open(&source(&image)).unwrap();
    assert_eq!(volume.read("/link", 1 << 21).unwrap().unwrap(), large);
    assert_eq!(volume.read("/boot/up", 10).unwrap().unwrap(), b"small");
    let sparse = volume.read("/boot/sparse", 1 << 20).unwrap().unwrap();
    assert!(sparse.len() == 1 << 20 && sparse.ends_with(b"\0end"));
    for absent in ["/loop", "/none", "/small/x", "/boot"] {
        assert!(volume.read(absent, 10).unwrap().is_none(), "{absent}");
    }
    assert!(volume.exists("/boot").unwrap() && !volume.exists("/loop").unwrap());
    let names: BTreeSet<String> = volume.list("/boot").unwrap().into_iter().collect();
    assert!(names.len() >= 503 && names.contains("file-499"));
    assert!(matches!(
        volume.read("/link", 1000),
        Err(BootError::TooLarge { len: 1_200_000, .. })
    ));
}

/// Feeds `script` to debugfs.
fn debugfs(image: &Path, script: &str) {
    let mut child = tool("debugfs")
        .arg("-w")
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.lines().count() <= 1, "debugfs: {said}");
}

/// Writes transactions to the journal of `image`: plain blocks, ones written
/// again, one that must be escaped, revoked ones, and one written after it
/// was revoked.
fn write_journal(directory: &Path, image: &Path, block: usize, checksums: &str) {
    let pattern = |name: &str, seed: u8, blocks: usize| {
        let mut bytes: Vec<u8> = (0..blocks * block)
            .map(|at| (at / 7) as u8 ^ seed)
            .collect();
        if name == "escaped" {
            bytes[..4].copy_from_slice(&0xC03B_3998u32.to_be_bytes());
        }
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let first = 5000 * 1024 / block * 2 / 3;
    let place = |from: usize, to: usize| format!("{}-{}", first + from, first + to);
    let script = format!(
        "jo {checksums}\n\
         jw -b {} {}\njw -b {} {}\njw -b {} {}\n\
         jw -r {}\njw -b {} {}\njw -r {}\njc\n",
        place(0, 19),
        pattern("one", 0x11, 20),
        place(5, 9),
        pattern("two", 0x22, 5),
        first + 30,
        pattern("escaped", 0x33, 1),
        place(7, 8),
        first + 8,
        pattern("three", 0x44, 1),
        first + 15,
    );
    debugfs(image, &script);
}

/// The image's blocks as they are after recovery by e2fsck, and as we see
/// them without.
fn compare(directory: &Path, image: &Path) {
    let recovered = directory.join("recovered");
    fs::copy(image, &recovered).unwrap();
    let fsck = tool("e2fsck")
        .args(["-y", "-E", "journal_only"])
        .arg(&recovered)
        .output()
        .unwrap();
    assert!(fsck.status.code().is_some_and(|code| code <= 1), "{fsck:?}");
    let expected = fs::read(&recovered).unwrap();
    let source = source(image);
    let superblock = Superblock::read(&source).unwrap();
    assert!(superblock.needs_recovery());
    let overlay = journal::read(&source, &superblock).unwrap();
    let before = fs::read(image).unwrap();
    let reader = Reader {
        source,
        block: superblock.block,
        overlay,
    };
    let size = superblock.block as usize;
    let mut changed = 0;
    for (number, wanted) in expected.chunks(size).enumerate() {
        let there = &before[number * size..][..size];
        // e2fsck marks the superblock and the journal's as clean.
        let is_ours = number * size <= 1024 && (number + 1) * size > 1024
            || there.starts_with(&0xC03B_3998u32.to_be_bytes());
        if is_ours {
            continue;
        }
        changed += usize::from(there != wanted);
        let mut bytes = vec![0; size];
        reader.read_block(number as u64, 0, &mut bytes).unwrap();
        assert!(bytes == wanted, "block {number} of {size}");
        reader
            .read_block(number as u64, 3, &mut bytes[3..])
            .unwrap();
        assert!(bytes == wanted, "block {number} in part");
    }
    assert!(
        (19..25).contains(&changed),
        "{changed} blocks were recovered"
    );
    assert!(
        Ext4Volume::open(&self::source(image))
            .unwrap()
            .exists("/hello")
            .unwrap()
    );
}

/// Turns the ring of the journal of `image` so that its log runs around the
/// end.
fn turn(image: &Path) {
    let source = source(image);
    let superblock = Superblock::read(&source).unwrap();
    let inode = superblock.journal_inode(&source).unwrap();
    let place = journal::places(&source, &superblock, &inode);
    let size = superblock.block as usize;
    let read = |number: u32| {
        let mut bytes = vec![0; size];
        assert!(
            source
                .read(place(number) * size as u64, &mut bytes)
                .unwrap()
        );
        bytes
    };
    let mut head = read(0);
    let (length, first) = (be32(&head, 16), be32(&head, 20));
    assert_eq!(be32(&head, 28), first);
    let ring: Vec<Vec<u8>> = (first..length).map(read).collect();
    let start = length - 9;
    let file = File::options().write(true).open(image).unwrap();
    let put = |number: u32, bytes: &[u8]| {
        file.write_all_at(bytes, place(number) * size as u64)
            .unwrap();
    };
    for (number, bytes) in (0..).zip(&ring) {
        put(first + (start - first + number) % (length - first), bytes);
    }
    head[28..32].copy_from_slice(&start.to_be_bytes());
    if be32(&head, 40) & 0x18 != 0 {
        head[0xFC..0x100].fill(0);
        let sum = checksum::crc32c(checksum::SEED, &head[..1024]);
        head[0xFC..0x100].copy_from_slice(&sum.to_be_bytes());
    }
    put(0, &head);
}

#[test]
fn journals_are_read_as_e2fsck_replays_them() {
    let cases: [(&[&str], usize, &str); 5] = [
        (&["-b", "4096", "-J", "size=4"], 4096, "-c"),
        (&["-b", "1024", "-J", "size=1"], 1024, "-c"),
        (
            &["-b", "4096", "-J", "size=4", "-O", "^64bit"],
            4096,
            "-c -v 2",
        ),
        (
            &["-b", "4096", "-J", "size=4", "-O", "^metadata_csum"],
            4096,
            "",
        ),
        (
            &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"],
            1024,
            "",
        ),
    ];
    for (options, block, checksums) in cases {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path(), options, |tree| {
            fs::write(tree.join("hello"), "hello").unwrap();
        });
        let Some(image) = image else { return };
        write_journal(directory.path(), &image, block, checksums);
        compare(directory.path(), &image);
        turn(&image);
        compare(directory.path(), &image);
    }
}

#[test]
fn a_damaged_journal_is_refused_or_ends() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), &["-b", "4096", "-J", "size=4"], |tree| {
        fs::write(tree.join("hello"), "hello").unwrap();
    });
    let Some(image) = image else { return };
    write_journal(directory.path(), &image, 4096, "-c");
    let bytes = fs::read(&image).unwrap();
    let magic = 0xC03B_3998u32.to_be_bytes();
    let blocks: Vec<usize> = (0..bytes.len())
        .step_by(4096)
        .filter(|at| bytes[*at..].starts_with(&magic))
        .collect();
    let open = |bytes: &[u8]| {
        let source = Source::new(disk(bytes), Limits::default());
        Ext4Volume::open(&source)
    };
    // A block of data within the first transaction.
    let mut damaged = bytes.clone();
    damaged[blocks[1] + 4096 + 100] ^= 1;
    let said = open(&damaged).map(drop).unwrap_err().to_string();
    assert!(said.contains("a checksum is wrong"), "{said}");
    // Every byte of the journal's own blocks.
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for at in blocks.iter().flat_map(|block| *block..*block + 64) {
        file.write_all_at(&[bytes[at] ^ 0x41], at as u64).unwrap();
        let disk = croft_disk::RawDisk::new(file.try_clone().unwrap(), true).unwrap();
        let source = Source::new(std::sync::Arc::new(disk), Limits::default());
        let _ = Ext4Volume::open(&source);
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
}

#[test]
fn a_superblock_that_asks_for_too_much_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["-O", "^metadata_csum"];
    let Some(image) = image(directory.path(), &options, |_| {}) else {
        return;
    };
    let bytes = fs::read(&image).unwrap();
    for (offset, value) in [
        (0x04, u32::MAX),
        (0x14, 7),
        (0x18, 60),
        (0x20, 1),
        (0x28, 0),
        (0x58, 1),
        (0x150, u32::MAX),
    ] {
        let mut damaged = bytes.clone();
        damaged[1024 + offset..][..4].copy_from_slice(&u32::to_le_bytes(value));
        assert_ne!(le32(&bytes, 1024 + offset), value);
        let opened = Ext4Volume::open(&Source::new(disk(&damaged), Limits::default()));
        assert!(opened.is_err(), "{offset:#x}");
    }
}
