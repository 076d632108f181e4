//! What a guest was told to be on stable storage is there after a failure of
//! the power.
//!
//! The machine's process is killed, and with it goes what was not flushed: the
//! disk is over storage that keeps it in that process's memory only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;

use croft_disk::{Format, IoMemory, Layer, OpenOptions, create};
use croft_tests::sockets::{load, shell};
use croft_tests::{PATIENCE, Stage};
use rustix::process::Signal;

const BLOCK: u64 = 4096;
/// Blocks that are written in turn.
const BLOCKS: u64 = 16;
/// The last number that is waited for.
const LAST: u64 = 200;

fn open(path: &Path, format: Format) -> Layer {
    let file = File::options().read(true).write(true).open(path);
    Layer {
        file: file.unwrap(),
        format,
        guessed: false,
    }
}

/// Runs a guest that writes until it is killed. The blocks that have an older
/// number than the last that the guest told of.
fn lost(format: Format, storage: &str) -> Vec<String> {
    let stage = Stage::new();
    let image = stage.file("disk", b"");
    create(open(&image, format).file, format, 4 << 20).unwrap();
    let socket = stage.path("run/vsock");
    let mut command = shell(&stage);
    command.arg("--vsock").arg(&socket).arg("--disk");
    command.arg(format!("{},test-storage={storage}", image.display()));
    let mut machine = stage.start(command);
    load(&mut machine);
    let reports = stage.path("run/vsock_7000");
    let listener = UnixListener::bind(&reports).unwrap();
    machine.type_in("/socket-guest write 7000 /dev/vda\n");
    let mut number = [0; 8];
    // The guest may have given up waiting, and have come again.
    let mut stream = loop {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if stream.read_exact(&mut number).is_ok() {
            break stream;
        }
    };
    std::fs::remove_file(reports).unwrap();
    let first = u64::from_le_bytes(number);
    let mut told = BTreeMap::from([(first % BLOCKS, first)]);
    // What was on its way when the machine was killed was told, too.
    while stream.read_exact(&mut number).is_ok() {
        let number = u64::from_le_bytes(number);
        told.insert(number % BLOCKS, number);
        if number == LAST {
            machine.signal("croft-vmm", Signal::KILL);
        }
    }
    let ended = machine.wait();
    assert!(told.values().any(|number| *number >= LAST), "{ended:#?}");
    let disk = croft_disk::open(vec![open(&image, format)], OpenOptions::default()).unwrap();
    let found = |block: u64| {
        let mut bytes = vec![0; BLOCK as usize];
        disk.read_at(&[IoMemory::of_bytes(&mut bytes)], block * BLOCK)
            .unwrap();
        let words = bytes.chunks_exact(8).map(|word| word.try_into().unwrap());
        words.map(u64::from_le_bytes).min().unwrap()
    };
    let all = told.into_iter().map(|(block, n)| (block, n, found(block)));
    all.filter(|(_, n, found)| found < n)
        .map(|(block, n, found)| format!("block {block}: {found}, not {n}"))
        .collect()
}

#[test]
fn what_a_guest_flushed_survives() {
    for format in [Format::Raw, Format::Qcow2] {
        let lost = lost(format, "drop-unflushed");
        assert!(lost.is_empty(), "{format:?}: {lost:?}");
    }
}

/// The control: the same with a flush that does nothing.
#[test]
fn a_flush_that_does_nothing_is_noticed() {
    assert!(!lost(Format::Raw, "ignore-flushes").is_empty());
}
