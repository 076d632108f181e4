use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::disk::Disk;
use crate::open::{Layer, OpenOptions, create, create_overlay, open};
use crate::probe::Format;
use crate::testing::{read, write};

/// A directory with images in it; `None` with a word of why where there is no
/// `qemu-img`.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: qemu-img is not installed");
            return None;
        }
        Some(Images(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a QEMU tool in the directory.
    fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(program);
        let output = command.args(arguments).current_dir(&self.0);
        let output = output.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn img(&self, arguments: &[&str]) {
        let (worked, text) = self.run("qemu-img", arguments);
        assert!(worked, "{arguments:?}: {text}");
    }

    fn io(&self, image: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", "qcow2"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        arguments.push(image);
        let (worked, text) = self.run("qemu-io", &arguments);
        assert!(worked && !text.contains("rror"), "{commands:?}: {text}");
    }

    fn check(&self, image: &str) {
        let (worked, text) = self.run("qemu-img", &["check", "-f", "qcow2", image]);
        assert!(worked && !text.contains("Leaked"), "{image}: {text}");
    }

    /// What the disk contains by QEMU's reading.
    fn contents(&self, image: &str) -> Vec<u8> {
        self.img(&["convert", "-f", "qcow2", "-O", "raw", image, "raw"]);
        std::fs::read(self.path("raw")).unwrap()
    }

    fn open(&self, names: &[(&str, Format)], read_only: bool) -> Arc<dyn Disk> {
        self.try_open(names, read_only).unwrap()
    }

    fn try_open(&self, names: &[(&str, Format)], read_only: bool) -> Result<Arc<dyn Disk>, String> {
        let layer = |(number, (name, format)): (usize, &(&str, Format))| Layer {
            file: file(&self.path(name), !read_only && number == 0),
            format: *format,
            guessed: false,
        };
        let layers = names.iter().enumerate().map(layer).collect();
        let options = OpenOptions {
            read_only,
            ..OpenOptions::default()
        };
        open(layers, options).map_err(|error| error.to_string())
    }
}

fn file(path: &Path, write: bool) -> File {
    let mut options = File::options();
    options.read(true).write(write).create(write);
    options.truncate(false).open(path).unwrap()
}

const QCOW2: Format = Format::Qcow2;
const RAW: Format = Format::Raw;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    bytes.take(len).collect()
}

#[test]
fn images_of_all_shapes_are_written_and_read() {
    let Some(images) = Images::new() else { return };
    let shapes = [
        ("compat=0.10", 65536),
        ("compat=1.1", 512),
        ("compat=1.1,refcount_bits=1", 4096),
        ("compat=1.1,refcount_bits=64", 65536),
        ("compat=0.10", 1024),
        ("compat=1.1", 2 << 20),
        ("compat=1.1,preallocation=metadata", 65536),
    ];
    for (options, cluster) in shapes {
        let options = format!("{options},cluster_size={cluster}");
        images.img(&["create", "-q", "-f", "qcow2", "-o", &options, "disk", "9M"]);
        let mut model = vec![0; 9 << 20];
        for round in 0..2 {
            let disk = images.open(&[("disk", QCOW2)], false);
            assert_eq!(disk.size(), 9 << 20);
            for i in 0..40u64 {
                let seed = round * 1000 + i;
                let at = (seed * 7919 % (9 << 11)) * 512;
                let len = ((seed * 31 % 200 + 1) * 512).min((9 << 20) - at) as usize;
                let place = at as usize..at as usize + len;
                match i % 8 {
                    6 => {
                        disk.write_zeroes(at, len as u64, i % 16 == 6).unwrap();
                        model[place].fill(0);
                    }
                    7 => {
                        disk.discard(at, len as u64).unwrap();
                        model[place.clone()].copy_from_slice(&read(&*disk, at, len));
                    }
                    _ => {
                        let bytes = noise(seed, len);
                        write(&*disk, at, &bytes).unwrap();
                        model[place].copy_from_slice(&bytes);
                    }
                }
            }
            assert!(read(&*disk, 0, 9 << 20) == model, "{options}");
            disk.flush().unwrap();
            // Lasting without an orderly end.
            images.check("disk");
            assert!(images.contents("disk") == model, "{options}");
            drop(disk);
            images.check("disk");
        }
    }
}

#[test]
fn chains_and_compressed_clusters() {
    let Some(images) = Images::new() else { return };
    let base = noise(1, 4 << 20);
    // Half of it can be compressed.
    let mut base: Vec<u8> = base
        .iter()
        .enumerate()
        .map(|(i, b)| if i % 8 < 4 { *b } else { 0 })
        .collect();
    std::fs::write(images.path("base.raw"), &base).unwrap();
    images.img(&[
        "convert", "-c", "-O", "qcow2", "-f", "raw", "base.raw", "base",
    ]);
    images.img(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "mid", "6M",
    ]);
    images.io(
        "mid",
        &[
            "write -P 0x55 100k 300k",
            "discard 2M 64k",
            "write -z 3M 128k",
        ],
    );
    images.img(&[
        "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top",
    ]);
    base.resize(6 << 20, 0);
    base[100 << 10..400 << 10].fill(0x55);
    base[2 << 20..(2 << 20) + (64 << 10)].fill(0);
    base[3 << 20..(3 << 20) + (128 << 10)].fill(0);
    let chain = [("top", QCOW2), ("mid", QCOW2), ("base", QCOW2)];
    let mid = std::fs::read(images.path("mid")).unwrap();
    let disk = images.open(&chain, false);
    assert!(read(&*disk, 0, 6 << 20) == base);
    let bytes = noise(2, 70 << 10);
    for at in [0, 399 << 10, (4 << 20) - 512, 5 << 20] {
        write(&*disk, at, &bytes).unwrap();
        base[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
    }
    // What is discarded does not show what is below.
    disk.discard(1 << 20, 128 << 10).unwrap();
    base[1 << 20..(1 << 20) + (128 << 10)].fill(0);
    assert!(read(&*disk, 0, 6 << 20) == base);
    disk.flush().unwrap();
    drop(disk);
    images.check("top");
    assert!(images.contents("top") == base);
    assert!(std::fs::read(images.path("mid")).unwrap() == mid);
    // A compressed image itself, written to; and the chain when its end is raw.
    let disk = images.open(&[("base", QCOW2)], false);
    write(&*disk, 64 << 10, &bytes).unwrap();
    disk.flush().unwrap();
    write(&*disk, 512 << 10, &bytes).unwrap();
    drop(disk);
    images.check("base");
    images.img(&[
        "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over",
    ]);
    let disk = images.open(&[("over", QCOW2), ("base.raw", RAW)], true);
    let raw = std::fs::read(images.path("base.raw")).unwrap();
    assert!(read(&*disk, 0, 4 << 20) == raw);
}

#[test]
fn a_chain_is_what_was_given() {
    let Some(images) = Images::new() else { return };
    images.img(&["create", "-q", "-f", "qcow2", "base", "1M"]);
    std::fs::write(images.path("secret"), [7; 1 << 20]).unwrap();
    images.img(&[
        "create", "-q", "-f", "qcow2", "-b", "secret", "-F", "raw", "top",
    ]);
    let refused = |names: &[(&str, Format)], word: &str| {
        let error = images.try_open(names, false).err().unwrap();
        assert!(error.contains(word), "{error}");
    };
    refused(&[("top", QCOW2)], "names the backing file 'secret'");
    refused(&[("base", QCOW2), ("secret", RAW)], "has no backing file");
    refused(&[("secret", RAW), ("base", QCOW2)], "raw and cannot have");
    refused(
        &[("top", QCOW2), ("secret", RAW), ("base", QCOW2)],
        "number 1) that is raw",
    );
    refused(
        &[("top", QCOW2), ("secret", QCOW2)],
        "number 1) that is a qcow2 image that cannot",
    );
    refused(
        &[("top", QCOW2), ("top", QCOW2)],
        "number 1) that is a qcow2",
    );
    refused(&[("base", QCOW2); 40], "40 layers");
    refused(&[], "no file");
    // Another file than the header names is what was asked for.
    std::fs::write(images.path("other"), [9; 1 << 20]).unwrap();
    let disk = images.open(&[("top", QCOW2), ("other", RAW)], false);
    assert_eq!(read(&*disk, 0, 512), [9; 512]);
}

#[test]
fn what_is_not_supported_is_named() {
    let Some(images) = Images::new() else { return };
    let refused = |options: &str, word: &str| {
        images.img(&["create", "-q", "-f", "qcow2", "-o", options, "disk", "1M"]);
        let error = images.try_open(&[("disk", QCOW2)], true).err().unwrap();
        assert!(error.contains(word), "{error}");
    };
    refused("extended_l2=on", "subclusters");
    refused("data_file=data", "in another file");
    refused("compression_type=zstd", "zstd");
    // qemu-img measures the processor to encrypt, and gives up where others use
    // it. The method stands in bytes 32 to 35 of the header: AES, LUKS.
    for method in [1u32, 2] {
        images.img(&["create", "-q", "-f", "qcow2", "disk", "1M"]);
        let disk = file(&images.path("disk"), true);
        disk.write_all_at(&method.to_be_bytes(), 32).unwrap();
        let error = images.try_open(&[("disk", QCOW2)], true).err().unwrap();
        assert!(error.contains("encrypted"), "{error}");
    }
}

#[test]
fn discarded_space_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(file(&path, true), QCOW2, 64 << 20).unwrap();
    let layer = || Layer {
        file: file(&path, true),
        format: QCOW2,
        guessed: false,
    };
    let disk = open(vec![layer()], OpenOptions::default()).unwrap();
    let size = || path.metadata().unwrap().blocks() * 512;
    let empty = size();
    write(&*disk, 0, &vec![3; 16 << 20]).unwrap();
    disk.flush().unwrap();
    assert!(size() >= 16 << 20);
    disk.discard(0, 8 << 20).unwrap();
    disk.write_zeroes(8 << 20, 8 << 20, true).unwrap();
    disk.flush().unwrap();
    if size() >= 16 << 20 {
        eprintln!("skipped: the file system makes no holes");
        return;
    }
    assert!(size() < empty + (1 << 20), "{} bytes", size());
    // And it is used again.
    let long = path.metadata().unwrap().len();
    write(&*disk, 32 << 20, &vec![4; 16 << 20]).unwrap();
    disk.flush().unwrap();
    assert!(path.metadata().unwrap().len() <= long + (1 << 20));
    assert_eq!(read(&*disk, 32 << 20, 16 << 20), vec![4; 16 << 20]);
    assert_eq!(read(&*disk, 0, 16 << 20), vec![0; 16 << 20]);
}

#[test]
fn images_are_made_and_grow() {
    let Some(images) = Images::new() else { return };
    std::fs::write(images.path("base"), noise(5, 3 << 20)).unwrap();
    let top = file(&images.path("top"), true);
    create_overlay(top, 2 << 20, "base", RAW).unwrap();
    images.check("top");
    let (_, info) = images.run("qemu-img", &["info", "top"]);
    assert!(
        info.contains("backing file: base") && info.contains("format: raw"),
        "{info}"
    );
    let disk = images.open(&[("top", QCOW2), ("base", RAW)], false);
    let mut model = noise(5, 2 << 20);
    assert!(read(&*disk, 0, 2 << 20) == model);
    // What the longer backing file has there is not shown.
    for size in [(2 << 20) + 512, 5 << 20, 40 << 30] {
        disk.resize(size).unwrap();
        assert_eq!(disk.size(), size);
        let visible = size.min(5 << 20) as usize;
        model.resize(visible, 0);
        assert!(read(&*disk, 0, visible) == model);
    }
    write(&*disk, (40 << 30) - 512, &[8; 512]).unwrap();
    disk.flush().unwrap();
    for bad in [0, 512, (40 << 30) + 1, u64::MAX - 511] {
        assert!(disk.resize(bad).is_err(), "{bad}");
    }
    drop(disk);
    images.check("top");
    let disk = images.open(&[("top", QCOW2), ("base", RAW)], true);
    assert_eq!(disk.size(), 40 << 30);
    assert_eq!(read(&*disk, (40 << 30) - 512, 512), [8; 512]);
    for (format, name) in [(RAW, "raw"), (QCOW2, "qcow2")] {
        create(file(&images.path("new"), true), format, 1 << 30).unwrap();
        let (_, info) = images.run("qemu-img", &["info", "-f", name, "new"]);
        assert!(info.contains("1 GiB"), "{info}");
        let error = create(file(&images.path("new"), true), format, 1000).unwrap_err();
        assert!(error.to_string().contains("1000 bytes"), "{error}");
    }
}

#[test]
fn a_shortened_image_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(file(&path, true), QCOW2, 64 << 20).unwrap();
    let layers = vec![Layer {
        file: file(&path, true),
        format: QCOW2,
        guessed: false,
    }];
    let disk = open(layers, OpenOptions::default()).unwrap();
    write(&*disk, 0, &vec![3; 4 << 20]).unwrap();
    disk.flush().unwrap();
    file(&path, true).set_len(1 << 20).unwrap();
    let mut bytes = vec![0; 4 << 20];
    let error = disk
        .read_at(&[crate::IoMemory::of_bytes(&mut bytes)], 0)
        .unwrap_err();
    assert!(error.to_string().contains("made shorter"), "{error}");
    let _ = disk.flush();
}

#[test]
fn it_grows_as_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    create(file(&path, true), QCOW2, 1 << 20).unwrap();
    let opened = |at_least, read_only| {
        let layers = vec![Layer {
            file: file(&path, true),
            format: QCOW2,
            guessed: false,
        }];
        let options = OpenOptions {
            at_least: Some(at_least),
            read_only,
            ..OpenOptions::default()
        };
        open(layers, options).map(|disk| disk.size())
    };
    assert_eq!(opened(3 << 20, false).unwrap(), 3 << 20);
    assert_eq!(opened(2 << 20, false).unwrap(), 3 << 20);
    assert_eq!(opened(2 << 20, true).unwrap(), 3 << 20);
    for (at_least, read_only) in [(4 << 20, true), ((4 << 20) + 1, false), (u64::MAX, false)] {
        let error = opened(at_least, read_only).unwrap_err().to_string();
        assert!(error.contains("cannot grow"), "{error}");
    }
}
