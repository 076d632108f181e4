//! What a guest was told to be on stable storage is there after a failure of
//! the power.
//!
//! The machine's process is killed, and with it goes what was not flushed: the
//! disk is over storage that keeps it in that process's memory only.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use croft_disk::{Format, IoMemory, Layer, OpenOptions, create};
use croft_tests::Stage;
use croft_tests::disk::{load, shell};
use rustix::process::Signal;

const BLOCK: u64 = 4096;
/// Blocks that are written in turn.
const BLOCKS: u64 = 16;
/// The last number that is waited for.
const LAST: u64 = 40;

/// Says a number when the block that has it was flushed.
const WRITER: &str = "n=0; while n=$((n + 1)); do printf '%-4096d' $n | \
    dd of=/dev/vda bs=4096 seek=$((n % 16)) conv=notrunc,fsync 2>/dev/null && echo wrote-$n.; done\n";

fn open(path: &Path, format: Format) -> Layer {
    let file = File::options().read(true).write(true).open(path);
    Layer {
        file: file.unwrap(),
        format,
        guessed: false,
    }
}

/// Runs a guest that writes until it is killed. The blocks whose last number
/// that was said is not there, nor a later one.
fn lost(format: Format, storage: &str) -> Vec<String> {
    let stage = Stage::new();
    let image = stage.file("disk", b"");
    create(open(&image, format).file, format, 4 << 20).unwrap();
    let disk = format!("{},test-storage={storage}", image.display());
    let mut machine = stage.start(shell(&stage, &disk));
    load(&mut machine);
    machine.type_in(WRITER);
    machine.expect(&format!("wrote-{LAST}."));
    machine.signal("croft-vmm", Signal::KILL);
    let ended = machine.wait();
    let said = ended.stdout.split("wrote-").skip(1);
    let said = said.filter_map(|text| text.split_once('.')?.0.parse::<u64>().ok());
    let last: BTreeMap<u64, u64> = said.map(|n| (n % BLOCKS, n)).collect();
    assert_eq!(last.len() as u64, BLOCKS, "{ended:#?}");
    let disk = croft_disk::open(vec![open(&image, format)], OpenOptions::default()).unwrap();
    let found = |block: u64| {
        let mut bytes = vec![0; BLOCK as usize];
        disk.read_at(&[IoMemory::of_bytes(&mut bytes)], block * BLOCK)
            .unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.trim_end().parse::<u64>()
    };
    let wrong = last.into_iter().map(|(block, n)| (block, n, found(block)));
    wrong
        .filter(|(_, n, found)| !found.as_ref().is_ok_and(|found| found >= n))
        .map(|(block, n, found)| format!("block {block}: {found:?}, not {n}"))
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
