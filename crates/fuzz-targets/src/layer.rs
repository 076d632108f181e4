//! Layers and descriptions of images that somebody wants to be run.
//!
//! Promised: a layer is unpacked below its directory or refused; manifests,
//! indexes and configurations are read or refused with a reason.

use std::fs;
use std::path::Path;

use croft_image::Digest;
use croft_image::container::ContainerConfig;
use croft_image::import::probe::Compression;
use croft_image::layer::{Rights, Source, Stack, unpack};
use croft_image::media;
use croft_image::oci::manifest::{Described, Wanted, Way};
use croft_image::tree::Limits;
use tar::{Builder, EntryType, Header};

use crate::input::Input;

/// Takes the data as a description, or as an archive with the checksums made
/// right, over a layer that has a bit of everything.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => {
            if let Err(why) = ContainerConfig::parse(input.rest()) {
                assert!(!why.is_empty());
            }
        }
        1 => {
            if let Ok(described) = Described::parse(input.rest(), media::MANIFEST) {
                assert!(described.layers.len() <= 500);
            }
        }
        2 => {
            let mut way = Way::from(input.rest().to_vec(), media::INDEX, &Wanted::default());
            if let Ok(Some(next)) = way.ahead() {
                assert!(way.follow(&next, b"other".to_vec()).is_err());
            }
        }
        _ => layer(input.rest()),
    }
}

fn layer(data: &[u8]) {
    let mut bytes = data.to_vec();
    crate::image::mend(&mut bytes);
    let outer = tempfile::tempdir().expect("a directory");
    let (below, tree) = (outer.path().join("below"), outer.path().join("tree"));
    fs::create_dir_all(below.join("a/b")).expect("a directory");
    fs::write(below.join("a/file"), "below").expect("a file");
    std::os::unix::fs::symlink(outer.path(), below.join("out")).expect("a link");
    fs::create_dir(&tree).expect("a directory");
    let blob = outer.path().join("blob");
    fs::write(&blob, &bytes).expect("a file");
    let source = Source {
        compression: Compression::None,
        blob: Digest::of(&bytes),
        diff: None,
    };
    let stack = Stack::open(&[&below]).expect("a layer");
    let limits = Limits {
        bytes: 1 << 20,
        entries: 64,
        remembered: 1 << 20,
    };
    let rights = Rights { owners: false };
    let done = unpack(&blob, &source, &tree, &stack, rights, limits, &mut |_| ());
    if let Err(error) = done {
        assert!(error.to_string().contains("refused"), "{error}");
    }
    for entry in fs::read_dir(outer.path()).expect("the directory").flatten() {
        let name = entry.file_name();
        let known = ["below", "tree", "blob"].iter().any(|known| name == *known);
        assert!(known, "{name:?} is outside");
    }
    assert_eq!(fs::read(below.join("a/file")).expect("it"), b"below");
    // Whatever was made can be looked through.
    let stack = Stack::open(&[below, tree]).expect("layers");
    for path in ["a/file", "out/blob", "a/b/../..", "x"] {
        if let Ok(Some(found)) = stack.resolve(Path::new(path)) {
            assert!(found.about.st_nlink > 0);
        }
    }
}

/// Descriptions, and an archive with every kind of member.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut builder = Builder::new(vec![3]);
    let mut entry = |kind: EntryType, path: &str, link: &str, contents: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(contents.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, contents).expect("a member");
    };
    entry(EntryType::Directory, "a/", "", b"");
    entry(EntryType::Regular, "a/.wh.file", "", b"");
    entry(EntryType::Regular, "a/b/.wh..wh..opq", "", b"");
    entry(EntryType::Link, "c", "a/file", b"");
    entry(EntryType::Symlink, "d", "../out", b"");
    entry(EntryType::Fifo, "e", "", b"");
    entry(EntryType::Char, "f", "", b"");
    entry(EntryType::XHeader, "p", "", b"20 mtime=1000000.25\n");
    entry(
        EntryType::XHeader,
        "p",
        "",
        b"22 GNU.sparse.major=1\n27 GNU.sparse.realsize=100\n",
    );
    entry(EntryType::Regular, "g", "", b"1\n2\n3\nabc");
    let archive = builder.into_inner().expect("an archive");
    let digest = Digest::of(b"x");
    let descriptor =
        |kind: &str| format!(r#"{{"mediaType":"{kind}","size":1,"digest":"sha256:{digest}"}}"#);
    let described = |first: u8, text: String| [vec![first], text.into_bytes()].concat();
    vec![
        archive,
        described(
            0,
            r#"{"config":{"Env":["A=b"],"ExposedPorts":{"80-90/tcp":{}},"Volumes":{"/d":{}}}}"#
                .to_owned(),
        ),
        described(
            1,
            format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
                descriptor("application/vnd.oci.image.config.v1+json"),
                descriptor("application/vnd.oci.image.layer.v1.tar+gzip")
            ),
        ),
        described(
            2,
            format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                descriptor(media::MANIFEST)
            ),
        ),
    ]
}
