//! From a tree to a disk: one ext4 file system over all of it, without
//! partitions.
//!
//! `mke2fs -d` copies the files, which belong to whoever runs it; `debugfs`
//! then writes into the file system what the ledger has: owners, set-id bits,
//! capabilities. No privilege and no loop device is needed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::program;
use crate::tree::{Attributes, Kind, Tree};
use crate::{Error, progress::Progress};

/// The label of file systems that are made here.
pub const LABEL: &str = "croft-root";
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Bytes of the journal: enough for a disk that has grown to hundreds of GiB.
const JOURNAL: u64 = 32 << 20;
/// Room in a disk beyond what is in it: for a first boot of an instance whose
/// disk was not made larger.
const ROOM: u64 = 192 << 20;

/// Makes a disk of a tree: its length in bytes. `scratch` is a directory for
/// files on the way.
pub fn make(
    tree: &Tree,
    disk: &Path,
    scratch: &Path,
    progress: &mut dyn Progress,
) -> Result<u64, Error> {
    let mke2fs = program::need("mke2fs", "e2fsprogs")?;
    let debugfs = program::need("debugfs", "e2fsprogs")?;
    let length = length(tree)?;
    progress.phase("making the file system");
    let mut command = program::command(mke2fs.as_os_str());
    let inodes = (tree.ledger().len() as u64)
        .saturating_mul(2)
        .max(length / 16384);
    command
        .args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", LABEL])
        // Nothing is left for the guest to initialise, which would fill its
        // overlay.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .args(["-J", &format!("size={}", JOURNAL >> 20)])
        .args(["-b", &BLOCK.to_string(), "-N", &inodes.to_string()])
        .arg("-d")
        .arg(tree.root())
        .arg(disk)
        .arg(format!("{}k", length >> 10));
    program::run("mke2fs", command, |_| ())?;

    progress.phase("setting owners and modes");
    let script = scratch.join("debugfs");
    let values = scratch.join("values");
    fs::create_dir(&values).map_err(Error::io("make directory", &values))?;
    write_script(tree, &script, &values)?;
    let mut complaints = String::new();
    let mut command = program::command(debugfs.as_os_str());
    command.args(["-w", "-f"]).arg(&script).arg(disk);
    program::run("debugfs", command, |line| {
        // It says its version, and otherwise only what is wrong, and ends as
        // if nothing had been.
        if !line.starts_with("debugfs ") && complaints.len() < 1000 {
            let _ = write!(complaints, "\n  {line}");
        }
    })?;
    if !complaints.is_empty() {
        return Err(Error::Tool {
            program: "debugfs".to_owned(),
            why: format!("failed:{complaints}"),
        });
    }
    Ok(length)
}

/// How long a disk for the tree must be.
fn length(tree: &Tree) -> Result<u64, Error> {
    let mut bytes = 0u64;
    for (path, attributes) in tree.ledger().iter() {
        let length = match attributes.kind {
            Kind::File | Kind::Directory => {
                let path = tree.root().join(path);
                let about = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
                // A name more of a file counts again: too much does no harm.
                about.len().next_multiple_of(BLOCK)
            }
            Kind::Symlink | Kind::Fifo => 0,
        };
        // An inode has 256 bytes, a name and the bitmaps some more.
        bytes = bytes.saturating_add(length).saturating_add(512);
    }
    // A sixteenth for what maps the blocks.
    let length = bytes
        .saturating_add(bytes / 16)
        .saturating_add(JOURNAL)
        .saturating_add(ROOM);
    Ok(length.next_multiple_of(64 << 20))
}

/// Writes debugfs's commands for what mke2fs cannot have known.
fn write_script(tree: &Tree, script: &Path, values: &Path) -> Result<(), Error> {
    let file = File::create(script).map_err(Error::io("make", script))?;
    let mut out = BufWriter::new(file);
    let mut count = 0u32;
    for (path, attributes) in tree.ledger().iter() {
        let host = tree.root().join(path);
        let about = fs::symlink_metadata(&host).map_err(Error::io("look at", &host))?;
        let name = quoted(path)?;
        inode(&mut out, &name, attributes, &about).map_err(Error::io("write", script))?;
        for (attribute, value) in &attributes.extended {
            // A value can be any bytes, so it is handed over in a file.
            count = count.saturating_add(1);
            let file = values.join(count.to_string());
            fs::write(&file, value).map_err(Error::io("write", &file))?;
            let file = quoted_whole(&file)?;
            writeln!(out, "ea_set -f {file} {name} {attribute}")
                .map_err(Error::io("write", script))?;
        }
    }
    out.flush().map_err(Error::io("write", script))
}

/// Commands for one file.
fn inode(
    out: &mut impl Write,
    name: &str,
    attributes: &Attributes,
    about: &fs::Metadata,
) -> io::Result<()> {
    // mke2fs takes the owners of all but the root.
    let is_root = name == "\"/\"";
    if attributes.uid != about.uid() || is_root {
        writeln!(out, "sif {name} uid {}", attributes.uid)?;
    }
    if attributes.gid != about.gid() || is_root {
        writeln!(out, "sif {name} gid {}", attributes.gid)?;
    }
    let format = match attributes.kind {
        Kind::File => 0o100_000,
        Kind::Directory => 0o040_000,
        Kind::Symlink => 0o120_000,
        Kind::Fifo => 0o010_000,
    };
    let mode = format | (attributes.mode & 0o7777);
    if mode != about.mode() {
        writeln!(out, "sif {name} mode 0{mode:o}")?;
    }
    if u64::try_from(about.mtime()).ok() != Some(attributes.mtime) {
        // A leading @ stands for seconds since 1970.
        writeln!(out, "sif {name} mtime @{}", attributes.mtime)?;
    }
    Ok(())
}

/// A path of the tree as debugfs reads it.
fn quoted(path: &Path) -> Result<String, Error> {
    quoted_whole(&Path::new("/").join(path))
}

fn quoted_whole(path: &Path) -> Result<String, Error> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    match text {
        Some(text) => Ok(format!("\"{}\"", text.replace('"', "\"\""))),
        None => Err(Error::Refused {
            path: path.to_owned(),
            why: "names that are not UTF-8 cannot be put into a disk; rename the file in the \
                  archive"
                .to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_disk_has_what_the_ledger_says() {
        if program::find("mke2fs").is_none() || program::find("debugfs").is_none() {
            eprintln!("skipped: mke2fs or debugfs is missing");
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let mut tree = Tree::create(&outer.path().join("tree")).unwrap();
        tree.write("usr/bin/su", 0o4755, b"su").unwrap();
        tree.write("etc/a \"b\" c", 0o000, b"x").unwrap();
        tree.link("bin", "usr/bin").unwrap();
        let mut owned = Attributes::new(Kind::File, 0o640);
        (owned.uid, owned.gid, owned.mtime) = (100_001, 42, 1_000_000_000);
        owned
            .extended
            .insert("security.capability".to_owned(), vec![1, 0, 0, 2, 0, 10]);
        tree.write("etc/shadow", 0o640, b"x").unwrap();
        *tree.ledger_mut().get_mut(Path::new("etc/shadow")).unwrap() = owned;

        let disk = outer.path().join("disk");
        let length = make(&tree, &disk, outer.path(), &mut Silent).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), length);
        let ask = |what: &str| {
            let debugfs = program::find("debugfs").unwrap();
            let output = Command::new(debugfs).args(["-R", what]).arg(&disk).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let su = ask("stat /usr/bin/su");
        assert!(
            su.contains("Mode:  04755") && su.contains("User:     0 "),
            "{su}"
        );
        let shadow = ask("stat /etc/shadow");
        for word in [
            "Mode:  0640",
            "User: 100001",
            "Group:    42",
            "mtime: 0x3b9aca00",
        ] {
            assert!(shadow.contains(word), "{word}: {shadow}");
        }
        assert!(shadow.contains("security.capability (6)"), "{shadow}");
        assert!(ask("stat /").contains("Mode:  0755"));
        assert!(ask("stat \"/etc/a \"\"b\"\" c\"").contains("Mode:  0000"));
        assert!(ask("stat /bin").contains("Fast link dest: \"usr/bin\""));
        let e2fsck = program::find("e2fsck").unwrap();
        let check = Command::new(e2fsck).arg("-fn").arg(&disk).output().unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        );
    }
}
