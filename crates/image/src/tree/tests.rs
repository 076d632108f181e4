use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;

/// An archive of entries: kind, path, link or contents. Paths go into the
/// header as they are, which the library would refuse to do.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, what) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mtime(1000);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let contents = if *kind == EntryType::Regular {
            *what
        } else {
            ""
        };
        header.set_size(contents.len() as u64);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..what.len()].copy_from_slice(what.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, contents.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Fixture {
    outer: tempfile::TempDir,
    tree: Tree,
}

fn fixture() -> Fixture {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("precious"), "precious").unwrap();
    let tree = Tree::create(&outer.path().join("tree")).unwrap();
    Fixture { outer, tree }
}

impl Fixture {
    fn unpack(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let limits = Limits {
            bytes: 1000,
            entries: 20,
            remembered: 1000,
        };
        self.tree
            .unpack(bytes, Path::new("x.tar"), limits, &mut |_| ())
    }

    fn refuse(&mut self, bytes: &[u8], word: &str) {
        let error = self.unpack(bytes).unwrap_err().to_string();
        assert!(error.contains("refused") && error.contains(word), "{error}");
        let precious = fs::read_to_string(self.outer.path().join("precious"));
        assert_eq!(precious.unwrap(), "precious");
        assert_eq!(fs::read_dir(self.outer.path()).unwrap().count(), 2);
    }
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn memory_for_what_is_remembered_is_bounded() {
    let deep = ["d".repeat(98); 1].concat();
    let paths: Vec<String> = (0..9).map(|number| format!("{number}{deep}")).collect();
    let entry = |path: &String| (EntryType::Directory, path.clone());
    let entries: Vec<_> = paths.iter().map(entry).collect();
    let of = |count: usize| {
        let entries = entries.iter().take(count);
        let entries: Vec<_> = entries.map(|(kind, path)| (*kind, &**path, "")).collect();
        archive(&entries)
    };
    fixture().unpack(&of(9)).unwrap();
    let long = format!("{}/x", paths[0]);
    let more = archive(&[(EntryType::Regular, &long[..90], "")]);
    fixture().unpack(&more).unwrap();
    let mut bytes = of(9);
    bytes.truncate(9 * 512);
    bytes.extend(archive(&[
        (EntryType::Regular, &"e".repeat(99), ""),
        (EntryType::Regular, &"f".repeat(99), ""),
    ]));
    fixture().refuse(&bytes, "paths and extended attributes");
}

#[test]
fn an_archive_becomes_a_tree_and_an_archive_again() {
    let bytes = archive(&[
        (Directory, "./", ""),
        (Directory, "./etc", ""),
        (Regular, "./etc/shadow", "root:*"),
        (Symlink, "./bin", "usr/bin"),
        (Regular, "usr/bin/su", "su"),
        (Link, "usr/bin/su2", "./usr/bin/su"),
        (Fifo, "run/pipe", ""),
        (Char, "./dev/null", ""),
    ]);
    let mut one = fixture();
    one.unpack(&bytes).unwrap();
    let su = one.tree.ledger().get(Path::new("usr/bin/su")).unwrap();
    assert_eq!(
        (su.mode, su.uid, su.gid, su.mtime),
        (0o4755, 1234, 5678, 1000)
    );
    // On the host it is nobody's set-id program.
    let host = fs::metadata(one.tree.root().join("usr/bin/su")).unwrap();
    assert_eq!((host.mode() & 0o7777, host.nlink()), (0o600, 2));
    // A directory that no entry names is there, the device is not.
    assert!(one.tree.has("usr/bin") && !one.tree.has("dev/null"));
    assert_eq!(one.tree.read("bin/su").unwrap(), b"su");

    let pack = |tree: &Tree| {
        let mut bytes = Vec::new();
        tree.pack(&mut bytes, Path::new("y.tar"), |_| true).unwrap();
        bytes
    };
    let packed = pack(&one.tree);
    let mut two = fixture();
    two.unpack(&packed).unwrap();
    assert!(one.tree.ledger().iter().eq(two.tree.ledger().iter()));
    assert_eq!(pack(&two.tree), packed);
}

#[test]
fn attributes_in_pax_headers_come_along() {
    let mut builder = Builder::new(Vec::new());
    let long = format!("d/{}", "n".repeat(200));
    let capability: &[u8] = &[1, 0, 0, 2, 0, 10, 13];
    builder
        .append_pax_extensions([
            ("path", long.as_bytes()),
            ("uid", b"100000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o755);
    header.set_path("short").unwrap();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut fixture = fixture();
    fixture.unpack(&builder.into_inner().unwrap()).unwrap();
    let about = fixture.tree.ledger().get(Path::new(&long)).unwrap();
    assert_eq!(about.uid, 100_000);
    assert_eq!(about.extended.len(), 1);
    assert_eq!(about.extended["security.capability"], capability);
}

#[test]
fn attacks_are_refused() {
    for (entries, word) in [
        (&[(Regular, "../precious", "x")][..], "'..'"),
        (&[(Regular, "a/../../precious", "x")], "'..'"),
        (&[(Regular, "/etc/passwd", "x")], "absolute"),
        (
            &[(Symlink, "a", ".."), (Regular, "a/precious", "x")],
            "goes through",
        ),
        (
            &[(Symlink, "a", "/"), (Directory, "a/etc", "")],
            "goes through",
        ),
        (
            &[(Symlink, "a", ".."), (Directory, "a", "")],
            "goes through",
        ),
        (
            &[(Regular, "a", "x"), (Regular, "a/b", "x")],
            "goes through",
        ),
        (
            &[(Directory, "a", ""), (Regular, "a", "x")],
            "place of a directory",
        ),
        (&[(Link, "a", "../precious")], "'..'"),
        (&[(Link, "a", "/etc/passwd")], "absolute"),
        (&[(Link, "a", "b")], "not in the archive"),
        (
            &[(Symlink, "a", "../precious"), (Link, "b", "a")],
            "no file",
        ),
        (&[(Char, "null", "")], "device"),
        (&[(Block, "etc/sda", "")], "device"),
        (&[(Regular, "a\nb", "x")], "control characters"),
        (&[(EntryType::GNUSparse, "a", "")], "sparse"),
        (&[(EntryType::new(b'V'), "a", "")], "kind"),
        (&[], "nothing"),
    ] {
        fixture().refuse(&archive(entries), word);
    }
    fixture().refuse(b"this is no archive", "no archive");
    let bytes = archive(&[(Regular, "a", &"x".repeat(600))]);
    fixture().refuse(&bytes[..600], "ends in the middle");
}

#[test]
fn bombs_are_refused() {
    let file = (Regular, "a", &*"x".repeat(400));
    fixture().refuse(&archive(&[file; 3]), "more than");
    fixture().refuse(&archive(&[(Directory, "a", ""); 21]), "20 entries");
    // Those on the way count, whoever names them.
    let deep = vec!["a"; 45].join("/");
    fixture().refuse(&archive(&[(Directory, &deep, "")]), "20 entries");
    let deep = vec!["a"; 15].join("/");
    fixture()
        .unpack(&archive(&[(Directory, &deep, "")]))
        .unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(2 << 20, b'a');
    fixture().refuse(&bytes, "longer than a mebibyte");
}

#[test]
fn edits_stay_in_the_tree() {
    let mut fixture = fixture();
    fixture
        .unpack(&archive(&[
            (Directory, "etc", ""),
            (Symlink, "lib", "usr/lib"),
            (Symlink, "out", "/../../precious"),
            (Symlink, "up", ".."),
        ]))
        .unwrap();
    let tree = &mut fixture.tree;
    tree.write("lib/croft/x", 0o755, b"x").unwrap();
    assert!(tree.root().join("usr/lib/croft/x").is_file());
    assert!(tree.write("up/precious", 0o644, b"x").is_err());
    tree.write("out", 0o644, b"x").unwrap();
    tree.link("etc/l", "/x").unwrap();
    tree.link("etc/l", "/y").unwrap();
    assert_eq!(
        fs::read_link(tree.root().join("etc/l")).unwrap(),
        Path::new("/y")
    );
    assert_eq!(tree.names("etc"), ["l"]);
    tree.remove("lib/croft").unwrap();
    assert!(!tree.has("usr/lib/croft/x") && tree.has("usr/lib"));
    tree.remove("nothing/there").unwrap();
    // What somebody else put there is not followed either.
    symlink("../../precious", tree.root().join("etc/m")).unwrap();
    assert_eq!(tree.read("etc/m"), None);
    let precious = fs::read_to_string(fixture.outer.path().join("precious"));
    assert_eq!(precious.unwrap(), "precious");
}
