//! Random and damaged qcow2 images as disks.
//!
//! Promised: an image is refused with a message of a few lines, or it is a
//! disk whose operations succeed or fail; nothing panics, nothing is allocated
//! without bound, and no operation waits for another one for ever.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use croft_disk::{Disk, Format, IoMemory, Layer, OpenOptions, create, open};

use crate::input::Input;

const CLUSTER: u64 = 64 << 10;
/// Size of the disk in an image.
const SIZE: u64 = 8 << 20;
/// Most bytes of one operation.
const PIECE: u64 = 256 << 10;

/// An image with some data, as it is in its file.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let file = tempfile::tempfile().expect("a file");
        let copy = file.try_clone().expect("a descriptor");
        create(file, Format::Qcow2, SIZE).expect("an image");
        let disk = disk(copy.try_clone().expect("a descriptor"), false).expect("a disk");
        for at in [0, 3 * CLUSTER, 5 * CLUSTER] {
            transfer(&*disk, at, 4096, true);
        }
        let _ = disk.write_zeroes(5 * CLUSTER, 2 * CLUSTER, false);
        disk.flush().expect("a flush");
        let mut bytes = vec![0; copy.metadata().expect("a file").len() as usize];
        copy.read_exact_at(&mut bytes, 0).expect("an image");
        bytes
    })
}

fn disk(file: File, read_only: bool) -> Result<std::sync::Arc<dyn Disk>, String> {
    let layer = Layer {
        file,
        format: Format::Qcow2,
        guessed: false,
    };
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    open(vec![layer], options).map_err(|error| error.to_string())
}

fn transfer(disk: &dyn Disk, offset: u64, len: u64, write: bool) {
    let mut bytes = vec![0xA5; len as usize];
    let buffers = [IoMemory::of_bytes(&mut bytes)];
    let _ = match write {
        true => disk.write_at(&buffers, offset),
        false => disk.read_at(&buffers, offset),
    };
}

/// Works on the image that `data` stands for: how it differs from a good one,
/// and what is done with it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(image(), 0).expect("a file");
    for _ in 0..input.u8() % 16 {
        // Most of what matters is at the start of a cluster.
        let cluster = u64::from(input.u8() % 12);
        let within = match input.u8() {
            place @ 0..=0xBF => u64::from(place) & !7,
            place => u64::from(place) << 8,
        };
        let value = match input.u8() {
            kind @ 0..=0x7F => {
                let target = u64::from(kind & 0xF) * CLUSTER;
                target | u64::from(kind >> 4) << 61 | u64::from(kind & 1)
            }
            _ => input.u64(),
        };
        let bytes = value.to_be_bytes();
        let at = cluster * CLUSTER + within + u64::from(flags >> 4 & 3);
        file.write_all_at(&bytes, at).expect("a file");
    }
    if flags & 2 != 0 {
        let _ = file.set_len(u64::from(input.u16()) << 5);
    }
    let disk = match disk(file, flags & 1 != 0) {
        Ok(disk) => disk,
        Err(text) => {
            assert!(text.lines().count() <= 3 && text.len() < 1000, "{text}");
            return;
        }
    };
    while !input.is_empty() {
        let kind = input.u8();
        let offset = u64::from(input.u16()) << 9;
        let len = (u64::from(input.u8()) << 9).min(PIECE);
        match kind % 8 {
            0 | 1 => transfer(&*disk, offset, len, false),
            2 | 3 => transfer(&*disk, offset, len, true),
            4 => drop(disk.discard(offset, len << 4)),
            5 => drop(disk.write_zeroes(offset, len << 2, kind & 0x80 != 0)),
            6 => drop(disk.flush()),
            _ => drop(disk.resize(SIZE + offset)),
        }
    }
}
