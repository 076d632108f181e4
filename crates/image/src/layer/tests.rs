use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use tar::{Builder, EntryType, Header};

use super::*;

/// Layers of a test, each over those before it.
struct Layers {
    place: tempfile::TempDir,
    trees: Vec<PathBuf>,
    limits: Limits,
}

/// An archive of a layer.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Archive {
        Archive(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, contents: &[u8]) -> Archive {
        let mut header = header(kind, path, link);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
        self
    }

    fn raw(mut self, header: &mut Header, contents: &[u8]) -> Archive {
        header.set_cksum();
        self.0.append(header, contents).unwrap();
        self
    }

    fn file(self, path: &str, contents: &str) -> Archive {
        self.entry(EntryType::Regular, path, "", contents.as_bytes())
    }

    fn directory(self, path: &str) -> Archive {
        self.entry(EntryType::Directory, path, "", b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: EntryType, path: &str, link: &str) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    // The library's own way refuses what is to be refused here.
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Layers {
    fn new() -> Layers {
        Layers {
            place: tempfile::tempdir().unwrap(),
            trees: Vec::new(),
            limits: Limits::default(),
        }
    }

    fn add_bytes(
        &mut self,
        bytes: &[u8],
        compression: Compression,
        diff: Option<Digest>,
    ) -> Result<Left, Error> {
        let number = self.trees.len();
        let blob = self.place.path().join(format!("blob{number}"));
        fs::write(&blob, bytes).unwrap();
        let tree = self.place.path().join(format!("tree{number}"));
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir(&tree).unwrap();
        let source = Source {
            compression,
            blob: Digest::of(bytes),
            diff,
        };
        let below = Stack::open(&self.trees).unwrap();
        let rights = Rights { owners: is_root() };
        let left = unpack(
            &blob,
            &source,
            &tree,
            &below,
            rights,
            self.limits,
            &mut |_| (),
        )?;
        self.trees.push(tree);
        Ok(left)
    }

    fn add(&mut self, archive: Archive) -> Result<Left, Error> {
        let bytes = archive.bytes();
        let diff = Digest::of(&bytes);
        self.add_bytes(&bytes, Compression::None, Some(diff))
    }

    fn refused(&mut self, archive: Archive, word: &str) {
        let error = self.add(archive).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }

    fn top(&self) -> &Path {
        self.trees.last().unwrap()
    }

    fn read(&self, path: &str) -> Option<String> {
        let found = Stack::open(&self.trees).unwrap();
        let found = found.resolve(Path::new(path)).unwrap()?;
        std::io::read_to_string(found.open().unwrap()).ok()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let stack = Stack::open(&self.trees).unwrap();
        let found = stack.find(Path::new(path)).unwrap().unwrap();
        let names = found.names().unwrap().into_iter();
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

#[test]
fn files_are_as_the_archive_says() {
    let mut layers = Layers::new();
    let mut set_id = header(EntryType::Regular, "bin/su", "");
    set_id.set_mode(0o4755);
    set_id.set_uid(1000);
    set_id.set_gid(42);
    let pax = b"29 SCHILY.xattr.user.x=ab\ncd\n20 mtime=1000000.25\n";
    let archive = Archive::new()
        .directory("./")
        .raw(&mut set_id, b"")
        .entry(EntryType::XHeader, "p", "", pax)
        .file("etc/motd", "hello")
        .entry(EntryType::Link, "etc/motd2", "/etc/motd", b"")
        .entry(EntryType::Symlink, "lib", "usr/lib", b"")
        .entry(EntryType::Fifo, "run/pipe", "", b"");
    let mut closed = header(EntryType::Directory, "closed", "");
    closed.set_mode(0o1000);
    let archive = archive.raw(&mut closed, b"").file("closed/x", "x");
    let left = layers.add(archive).unwrap();
    assert_eq!(left, Left::default());
    let top = layers.top();
    let about = fs::metadata(top.join("etc/motd")).unwrap();
    assert_eq!((about.nlink(), about.mode() & 0o7777), (2, 0o755));
    assert_eq!(
        (about.mtime(), about.mtime_nsec()),
        (1_000_000, 250_000_000)
    );
    let mut value = [0u8; 16];
    let length = getxattr(top.join("etc/motd"), "user.x", &mut value).unwrap();
    assert_eq!(&value[..length], b"ab\ncd");
    let link = fs::symlink_metadata(top.join("lib")).unwrap();
    assert_eq!(link.mtime(), 1_000_000_000);
    let pipe = fs::symlink_metadata(top.join("run/pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    let closed = fs::metadata(top.join("closed")).unwrap();
    assert_eq!(
        (closed.mode() & 0o7777, closed.mtime()),
        (0o1000, 1_000_000_000)
    );
    // Nobody said anything of it.
    let run = fs::metadata(top.join("run")).unwrap();
    assert_eq!(run.mode() & 0o7777, 0o755);
    if !is_root() {
        eprintln!("skipped: owners, set-id bits and devices, which only root can make");
        return;
    }
    let su = fs::metadata(top.join("bin/su")).unwrap();
    assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (1000, 42, 0o4755));
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut record = b"55 SCHILY.xattr.security.capability=".to_vec();
    let length = (record.len() + capability.len() + 1).to_string();
    record[0..2].copy_from_slice(length.as_bytes());
    record.extend_from_slice(capability);
    record.push(b'\n');
    let mut owned = header(EntryType::Regular, "ping", "");
    owned.set_uid(5);
    let mut device = header(EntryType::Char, "dev/null", "");
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_mode(0o666);
    let archive = Archive::new()
        .entry(EntryType::XHeader, "p", "", &record)
        .raw(&mut owned, b"")
        .raw(&mut device, b"");
    layers.add(archive).unwrap();
    let length = getxattr(
        layers.top().join("ping"),
        "security.capability",
        &mut [0u8; 64],
    );
    assert_eq!(length.unwrap(), capability.len());
    match fs::symlink_metadata(layers.top().join("dev/null")) {
        Ok(null) => assert_eq!((null.rdev(), null.mode() & 0o7777), (0x103, 0o666)),
        Err(_) => eprintln!("skipped: this root cannot make devices"),
    }
}

#[test]
fn what_a_layer_deletes_is_gone_and_what_it_brings_is_not() {
    let mut layers = Layers::new();
    let first = Archive::new()
        .file("a/one", "1")
        .file("a/two", "2")
        .file("b/one", "1")
        .file("c/deep/one", "1")
        .file("d/one", "1")
        .file("e", "old");
    layers.add(first).unwrap();
    let second = Archive::new()
        .file("a/.wh.one", "")
        // Before and after what the same layer brings.
        .file("b/new", "n")
        .file("b/.wh..wh..opq", "")
        .file("c/.wh.deep", "")
        .file("c/deep/two", "2")
        .file("a/.wh..wh.plnk", "")
        .file(".wh.d", "")
        .file("e", "new")
        .file(".wh.e", "")
        .file(".wh.never-there", "");
    layers.add(second).unwrap();
    assert_eq!(layers.names("a"), ["two"]);
    assert_eq!(layers.names("b"), ["new"]);
    assert_eq!(layers.names("c/deep"), ["two"]);
    assert_eq!(layers.names(""), ["a", "b", "c", "e"]);
    assert_eq!(layers.read("e").unwrap(), "new");
    assert_eq!(layers.read("a/one"), None);
    assert_eq!(layers.read("d/one"), None);
    // And a third brings some of it back.
    layers
        .add(Archive::new().file("d/two", "2").file("a/one", "again"))
        .unwrap();
    assert_eq!(layers.names("d"), ["two"]);
    assert_eq!(layers.read("a/one").unwrap(), "again");
    overlay(&layers);
}

/// The kernel sees the same.
fn overlay(layers: &Layers) {
    let target = layers.place.path().join("merged");
    fs::create_dir(&target).unwrap();
    let lowers: Vec<&str> = layers
        .trees
        .iter()
        .rev()
        .map(|tree| tree.to_str().unwrap())
        .collect();
    for options in ["", ",userxattr"] {
        let mounted = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(r#"mount -t overlay overlay -o "$1" "$2" && cd "$2" && find . | sort"#)
            .args(["sh", &format!("lowerdir={}{options}", lowers.join(":"))])
            .arg(&target)
            .output()
            .unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            eprintln!("skipped: no overlay can be mounted here: {why}");
            return;
        }
        let seen = String::from_utf8(mounted.stdout).unwrap();
        let wanted = ".\n./a\n./a/one\n./a/two\n./b\n./b/new\n./c\n./c/deep\n./c/deep/two\n./d\n\
                      ./d/two\n./e\n";
        assert_eq!(seen, wanted, "{options}");
    }
}

#[test]
fn directories_on_the_way_stay_as_they_are_below() {
    let mut layers = Layers::new();
    let mut tmp = header(EntryType::Directory, "tmp", "");
    tmp.set_mode(0o1777);
    layers
        .add(Archive::new().raw(&mut tmp, b"").file("etc/x", "x"))
        .unwrap();
    layers
        .add(
            Archive::new()
                .file("tmp/y", "y")
                .entry(EntryType::Link, "etc/z", "etc/x", b""),
        )
        .unwrap();
    let about = fs::metadata(layers.top().join("tmp")).unwrap();
    assert_eq!(
        (about.mode() & 0o7777, about.mtime()),
        (0o1777, 1_000_000_000)
    );
    // A hard link to a file below copies it up.
    assert_eq!(fs::read(layers.top().join("etc/z")).unwrap(), b"x");
    assert_eq!(fs::metadata(layers.top().join("etc/x")).unwrap().nlink(), 2);
}

#[test]
fn nothing_leaves_the_tree() {
    let mut layers = Layers::new();
    let outside = layers.place.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    let out = outside.to_str().unwrap().to_owned();
    let link = |target: &str| Archive::new().entry(EntryType::Symlink, "l", target, b"");
    layers.refused(link(&out).file("l/file", "x"), "through a link");
    layers.refused(link(&out).directory("l/d"), "through a link");
    layers.refused(link(&out).file("l/.wh.file", ""), "through a link");
    layers.refused(link(&out).file("l/.wh..wh..opq", ""), "through a link");
    layers.refused(
        link(&out).entry(EntryType::Link, "h", "l/file", b""),
        "through a link",
    );
    layers.refused(
        link(&out)
            .file("x", "")
            .entry(EntryType::Link, "l/h", "x", b""),
        "through a link",
    );
    layers.refused(Archive::new().file("../file", "x"), "'..'");
    layers.refused(Archive::new().file("a/../../file", "x"), "'..'");
    layers.refused(
        Archive::new().entry(EntryType::Link, "h", "../outside/file", b""),
        "'..'",
    );
    layers.refused(Archive::new().file("a/.wh...", ""), "whiteout");
    layers.refused(Archive::new().file(".wh.", ""), "whiteout");
    let hard = Archive::new().entry(EntryType::Link, "h", "/etc/passwd", b"");
    layers.refused(hard, "not in the image");
    layers.refused(
        Archive::new().file("f", "").file("f/x", ""),
        "through a link or a file",
    );
    // A slash at the beginning means the tree's root.
    layers.add(Archive::new().file("/etc/abs", "x")).unwrap();
    assert!(layers.top().join("etc/abs").exists());
    // Links of a layer below lead nowhere either.
    layers.add(link(&out)).unwrap();
    layers.add(Archive::new().file("l/file", "mine")).unwrap();
    assert_eq!(layers.read("l/file").unwrap(), "mine");
    let stack = Stack::open(&layers.trees[1..2]).unwrap();
    assert!(stack.resolve(Path::new("l/file")).unwrap().is_none());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn what_is_no_layer_is_refused() {
    let mut layers = Layers::new();
    let mut odd = header(EntryType::new(b'Z'), "x", "");
    layers.refused(Archive::new().raw(&mut odd, b""), "unknown kind");
    layers.refused(
        Archive::new()
            .directory("d")
            .entry(EntryType::Link, "h", "d", b""),
        "hard link to a directory",
    );
    layers.refused(
        Archive::new().directory("d").file("d/x", "").file("d", ""),
        "in the place of a directory",
    );
    let mut bytes = Archive::new().file("x", &"y".repeat(2000)).bytes();
    let whole = Digest::of(&bytes);
    bytes[0] ^= 1;
    let error = layers
        .add_bytes(&bytes, Compression::None, None)
        .unwrap_err();
    assert!(error.to_string().contains("sum is wrong"), "{error}");
    bytes[0] ^= 1;
    let error = layers
        .add_bytes(&bytes[..1500], Compression::None, None)
        .unwrap_err();
    assert!(error.to_string().contains("in the middle"), "{error}");
    let other = Some(Digest::of(b"other"));
    let error = layers
        .add_bytes(&bytes, Compression::None, other)
        .unwrap_err();
    assert!(error.to_string().contains("have the digest"), "{error}");
    let error = layers
        .add_bytes(&bytes, Compression::Gzip, None)
        .unwrap_err();
    assert!(error.to_string().contains("no archive"), "{error}");
    layers.limits.bytes = 1000;
    layers.refused(Archive::new().file("x", &"y".repeat(2000)), "MiB");
    layers.limits = Limits {
        entries: 1,
        ..Limits::default()
    };
    layers.refused(Archive::new().file("x", "").file("y", ""), "entries");
    // Those that nobody names count too.
    layers.refused(Archive::new().file("a/b/x", ""), "entries");
    layers.limits = Limits::default();
    let mut nobody = header(EntryType::Regular, "x", "");
    nobody.set_uid(u32::MAX.into());
    layers.refused(Archive::new().raw(&mut nobody, b""), "owner");
    // An empty layer is one: of an image whose last step changed nothing.
    layers.add(Archive::new()).unwrap();
    layers
        .add_bytes(&bytes, Compression::None, Some(whole))
        .unwrap();
}

#[test]
fn memory_for_what_is_remembered_is_bounded() {
    let mut layers = Layers::new();
    layers.limits.remembered = 1 << 20;
    // Each is a few bytes of a compressed archive.
    let value = "x".repeat(700_000);
    let record = format!(" SCHILY.xattr.user.x={value}\n");
    let record = format!("{}{record}", record.len() + 6);
    let big = |archive: Archive, path: &str| {
        archive
            .entry(EntryType::XHeader, "p", "", record.as_bytes())
            .directory(path)
    };
    let archive = big(big(Archive::new(), "a"), "b");
    layers.refused(archive, "extended attributes have more than 1 MiB");
    layers.limits.remembered = 100;
    let long = "y".repeat(60);
    let whiteouts = Archive::new()
        .file(&format!(".wh.{long}"), "")
        .file(&format!(".wh.z{long}"), "");
    layers.refused(whiteouts, "paths and extended");
}

#[test]
fn compressed_layers_are_checked_to_their_end() {
    let plain = Archive::new().file("x", "y").bytes();
    let diff = Some(Digest::of(&plain));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
    for (compression, bytes) in [(Compression::Gzip, gzip), (Compression::Zstd, zstd)] {
        let mut layers = Layers::new();
        layers.add_bytes(&bytes, compression, diff).unwrap();
        assert_eq!(layers.read("x").unwrap(), "y");
        assert!(
            layers
                .add_bytes(&bytes[..bytes.len() - 5], compression, diff)
                .is_err()
        );
    }
    // More after the archive's end counts in its digest, and changes nothing.
    let mut longer = plain.clone();
    longer.extend_from_slice(&[7; 4096]);
    let mut layers = Layers::new();
    assert!(layers.add_bytes(&longer, Compression::None, diff).is_err());
    let diff = Some(Digest::of(&longer));
    layers.add_bytes(&longer, Compression::None, diff).unwrap();
}

#[test]
fn holes_stay_holes() {
    let mut layers = Layers::new();
    let mut zeros = vec![0u8; 4 << 20];
    zeros[2 << 20] = 1;
    layers
        .add(Archive::new().entry(EntryType::Regular, "z", "", &zeros))
        .unwrap();
    let about = fs::metadata(layers.top().join("z")).unwrap();
    assert_eq!(about.len(), 4 << 20);
    assert!(about.blocks() < 200, "{}", about.blocks());
    assert_eq!(fs::read(layers.top().join("z")).unwrap(), zeros);
}

#[test]
fn sparse_files_of_every_kind_are_taken() {
    let tar = std::process::Command::new("tar").arg("--version").output();
    if !tar.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("GNU tar")) {
        eprintln!("skipped: GNU tar is missing");
        return;
    }
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    // More pieces than a header has room for.
    for piece in 0..60u64 {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&[piece as u8 + 1; 3000], piece * (256 << 10))
            .unwrap();
    }
    file.set_len(20 << 20).unwrap();
    fs::write(from.path().join("after"), "after").unwrap();
    let wanted = fs::read(&path).unwrap();
    for format in [
        vec!["--format=gnu"],
        vec!["--format=posix", "--sparse-version=0.0"],
        vec!["--format=posix", "--sparse-version=0.1"],
        vec!["--format=posix", "--sparse-version=1.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(&format)
            .args(["--sparse", "-c", "-C"])
            .arg(from.path())
            .args(["sparse", "after"])
            .output()
            .unwrap();
        let mut layers = Layers::new();
        layers
            .add_bytes(&output.stdout, Compression::None, None)
            .unwrap();
        assert!(
            fs::read(layers.top().join("sparse")).unwrap() == wanted,
            "{format:?}"
        );
        assert_eq!(layers.read("after").unwrap(), "after");
        assert!(output.stdout.len() < 1 << 20, "{format:?}");
    }
}
