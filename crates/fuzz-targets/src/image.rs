//! Files that somebody wants to be images.
//!
//! Promised: an archive is unpacked below its directory or refused, and what
//! was unpacked packs and unpacks to the same; the header of a qcow2 file is
//! read or refused.

use std::fs;
use std::path::Path;

use croft_image::import::qcow2;
use croft_image::tree::{Limits, Tree};
use tar::{Builder, EntryType, Header};

use crate::input::Input;

/// Bytes of a block of an archive.
const BLOCK: usize = 512;

/// Takes the data as an archive, with the checksums made right, or as a
/// header.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.u8() & 1 == 0 {
        let length = u64::from_le_bytes(std::array::from_fn(|_| input.u8()));
        match qcow2::read(input.rest(), length) {
            Ok(header) => assert!((2..=3).contains(&header.version) && header.virtual_size > 0),
            Err(why) => assert!(!why.is_empty() && why.len() < 200),
        }
        return;
    }
    let mut bytes = input.rest().to_vec();
    mend(&mut bytes);
    let outer = tempfile::tempdir().expect("a directory");
    let first = unpack(&bytes, &outer.path().join("first"));
    if let Some(first) = first {
        let mut packed = Vec::new();
        first
            .pack(&mut packed, Path::new("x"), |_| true)
            .expect("what was unpacked can be packed");
        let second = unpack(&packed, &outer.path().join("second")).expect("and unpacked");
        assert!(first.ledger().iter().eq(second.ledger().iter()));
    }
    for entry in fs::read_dir(outer.path()).expect("the directory").flatten() {
        let name = entry.file_name();
        assert!(name == "first" || name == "second", "{name:?} is outside");
    }
}

fn unpack(bytes: &[u8], root: &Path) -> Option<Tree> {
    let mut tree = Tree::create(root).expect("a tree");
    let limits = Limits {
        bytes: 1 << 20,
        entries: 64,
        remembered: 1 << 20,
    };
    match tree.unpack(bytes, Path::new("x"), limits, &mut |_| ()) {
        Ok(()) => Some(tree),
        Err(error) => {
            assert!(error.to_string().contains("refused"), "{error}");
            None
        }
    }
}

/// Makes the checksums of an archive's headers right.
pub(crate) fn mend(bytes: &mut [u8]) {
    let mut place = 0usize;
    while let Some(block) = bytes.get_mut(place..place.saturating_add(BLOCK)) {
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        place = place
            .saturating_add(BLOCK)
            .saturating_add(size.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX));
    }
}

/// Archives with every kind of entry, and a header.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut builder = Builder::new(vec![1]);
    let mut entry = |kind: EntryType, path: &str, link: &str, contents: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(contents.len() as u64);
        let gnu = header.as_old_mut();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, contents).expect("an entry");
    };
    entry(EntryType::Directory, "./", "", b"");
    entry(EntryType::Regular, "a/b", "", b"contents");
    entry(EntryType::Symlink, "c", "a", b"");
    entry(EntryType::Link, "a/d", "a/b", b"");
    entry(EntryType::Fifo, "e", "", b"");
    entry(EntryType::Char, "dev/null", "", b"");
    entry(EntryType::GNULongName, "l", "", b"a/long\0");
    entry(EntryType::GNULongLink, "l", "", b"../x\0");
    entry(EntryType::Symlink, "f", "x", b"");
    entry(
        EntryType::XHeader,
        "p",
        "",
        b"9 path=g\n29 SCHILY.xattr.user.x=ab\ncd\n",
    );
    entry(EntryType::Regular, "h", "", b"");
    let archive = builder.into_inner().expect("an archive");

    let mut header = vec![0; 9 + qcow2::LENGTH];
    header[3] = 4;
    header[9..13].copy_from_slice(b"QFI\xfb");
    header[9 + 7] = 3;
    header[9 + 23] = 16;
    header[9 + 28] = 0x40;
    header[9 + 39] = 2;
    header[9 + 45] = 3;
    header[9 + 53] = 1;
    header[9 + 59] = 1;
    vec![archive, header]
}
