//! What is on stable storage after a failure of the host's power.
//!
//! The storage here forgets what was not flushed, or keeps any part of it.
//! Whatever it keeps, each block must have what it had at the last flush that
//! was completed, or something that was written later.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::Disk;
use crate::open::open_storage;
use crate::probe::Format;
use crate::qcow2;
use crate::storage::Storage;
use crate::testing::{MemoryStorage, read, write};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 640;
const SIZE: u64 = BLOCK * BLOCKS;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    // Few places, so that clusters and tables are used again.
    let at = prop_oneof![0..40u64, (0..BLOCKS / 16).prop_map(|n| n * 16)];
    let range = (at, 1..40u64).prop_map(|(at, count)| (at, count.min(BLOCKS - at)));
    prop_oneof![
        6 => range.clone().prop_map(|(at, count)| Step::Write(at, count)),
        2 => range.clone().prop_map(|(at, count)| Step::Discard(at, count)),
        1 => (range, any::<bool>()).prop_map(|((at, n), unmap)| Step::Zero(at, n, unmap)),
        2 => Just(Step::Flush),
    ]
}

/// What is tested.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Raw,
    Qcow2,
    Overlay,
}

/// A disk over storage that can fail, and what is below.
struct Rig {
    kind: Kind,
    storage: Arc<MemoryStorage>,
    base: Arc<MemoryStorage>,
}

impl Rig {
    fn new(kind: Kind) -> Self {
        let base: Vec<u8> = (0..BLOCKS).flat_map(|n| block(1 << 40 | n)).collect();
        let storage = match kind {
            Kind::Raw => MemoryStorage::new(&vec![0; SIZE as usize]),
            Kind::Qcow2 | Kind::Overlay => MemoryStorage::new(&[]),
        };
        match kind {
            Kind::Raw => {}
            Kind::Qcow2 => qcow2::create(storage.clone(), SIZE, None).unwrap(),
            Kind::Overlay => {
                let backing = ("base".to_owned(), Format::Raw);
                qcow2::create(storage.clone(), SIZE, Some(backing)).unwrap();
            }
        }
        Rig {
            kind,
            storage,
            base: MemoryStorage::new(&base),
        }
    }

    fn open(&self, storage: &Arc<MemoryStorage>) -> Arc<dyn Disk> {
        let top: Arc<dyn Storage> = storage.clone();
        let base: Arc<dyn Storage> = self.base.clone();
        let layers = match self.kind {
            Kind::Raw => vec![(top, Format::Raw)],
            Kind::Qcow2 => vec![(top, Format::Qcow2)],
            Kind::Overlay => vec![(top, Format::Qcow2), (base, Format::Raw)],
        };
        open_storage(&layers, false, false).unwrap()
    }

    fn first(&self, number: u64) -> u64 {
        match self.kind {
            Kind::Overlay => 1 << 40 | number,
            Kind::Raw | Kind::Qcow2 => 0,
        }
    }
}

fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// What each block may contain after a failure, newest last.
#[derive(Default)]
struct Model {
    may: BTreeMap<u64, Vec<u64>>,
    next: u64,
}

impl Model {
    fn values(&mut self, rig: &Rig, number: u64) -> &mut Vec<u64> {
        self.may
            .entry(number)
            .or_insert_with(|| vec![rig.first(number)])
    }

    fn apply(&mut self, rig: &Rig, disk: &dyn Disk, step: &Step) {
        match *step {
            Step::Write(at, count) => {
                let mut bytes = Vec::new();
                for number in at..at + count {
                    self.next += 1;
                    let value = self.next;
                    bytes.extend(block(value));
                    self.values(rig, number).push(value);
                }
                write(disk, at * BLOCK, &bytes).unwrap();
            }
            Step::Discard(at, count) => {
                disk.discard(at * BLOCK, count * BLOCK).unwrap();
                for number in at..at + count {
                    let now = read(disk, number * BLOCK, 8);
                    let now = u64::from_le_bytes(now.try_into().unwrap());
                    let values = self.values(rig, number);
                    assert!(now == 0 || Some(&now) == values.last());
                    values.push(0);
                    values.push(now);
                }
            }
            Step::Zero(at, count, unmap) => {
                disk.write_zeroes(at * BLOCK, count * BLOCK, unmap).unwrap();
                for number in at..at + count {
                    self.values(rig, number).push(0);
                }
            }
            Step::Flush => {
                disk.flush().unwrap();
                for values in self.may.values_mut() {
                    values.drain(..values.len() - 1);
                }
            }
        }
    }

    /// The first block that has what it may not have.
    fn wrong(&self, disk: &dyn Disk) -> Option<String> {
        let bytes = read(disk, 0, SIZE as usize);
        self.may.iter().find_map(|(number, values)| {
            let at = (number * BLOCK) as usize;
            let found = &bytes[at..at + BLOCK as usize];
            let good = values.iter().any(|value| found == block(*value));
            (!good).then(|| format!("block {number}: {:?} of {values:?}", &found[..8]))
        })
    }
}

/// Whether an image is whole, by QEMU; leaks are allowed.
fn check(storage: &MemoryStorage) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("top"), storage.contents()).unwrap();
    std::fs::write(directory.path().join("base"), [0; 512]).unwrap();
    let mut command = Command::new("qemu-img");
    let command = command.args(["check", "-f", "qcow2", "top"]);
    match command.current_dir(&directory).output() {
        Ok(output) if !matches!(output.status.code(), Some(0 | 3)) => Err(format!("{output:?}")),
        _ => Ok(()),
    }
}

/// Does `steps`, then fails in ways that `seed` says; what was wrong.
fn fail_after(rig: &Rig, steps: &[Step], seed: u64) -> Result<(), String> {
    let disk = rig.open(&rig.storage);
    let mut model = Model::default();
    for step in steps {
        model.apply(rig, &*disk, step);
    }
    let mut random = SmallRng::seed_from_u64(seed);
    for share in [0.0, 0.5, 0.9, 1.0] {
        let left = rig.storage.crash(|| random.random_bool(share));
        if !matches!(rig.kind, Kind::Raw) && seed.is_multiple_of(3) {
            check(&left)?;
        }
        if let Some(wrong) = model.wrong(&*rig.open(&left)) {
            return Err(format!("{share}: {wrong}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_was_flushed_is_there(
        kind in prop_oneof![Just(Kind::Raw), Just(Kind::Qcow2), Just(Kind::Overlay)],
        steps in prop::collection::vec(step(), 1..40),
        seed: u64,
    ) {
        let rig = Rig::new(kind);
        prop_assert_eq!(fail_after(&rig, &steps, seed), Ok(()));
    }
}

/// What was written over a base and flushed does not give way to the base's
/// again when it is discarded and zeroed.
#[test]
fn what_is_below_does_not_come_back() {
    let steps = [
        Step::Write(16, 17),
        Step::Flush,
        Step::Discard(0, 32),
        Step::Zero(15, 34, false),
    ];
    for seed in 0..200 {
        assert_eq!(fail_after(&Rig::new(Kind::Overlay), &steps, seed), Ok(()));
    }
}

/// The control: with a flush that does nothing the test above must fail.
#[test]
fn a_flush_that_does_nothing_is_noticed() {
    for kind in [Kind::Raw, Kind::Qcow2, Kind::Overlay] {
        let steps = [Step::Write(5, 3), Step::Flush];
        let rig = Rig::new(kind);
        rig.storage.lie();
        let wrong = fail_after(&rig, &steps, 1);
        assert!(wrong.is_err(), "{kind:?}");
        assert_eq!(fail_after(&Rig::new(kind), &steps, 1), Ok(()));
    }
}

/// A full host refuses and loses nothing, and when there is room again
/// everything goes on.
#[test]
fn a_full_host_loses_nothing() {
    for kind in [Kind::Raw, Kind::Qcow2, Kind::Overlay] {
        let rig = Rig::new(kind);
        let disk = rig.open(&rig.storage);
        let mut model = Model::default();
        for round in 0..4 {
            model.apply(&rig, &*disk, &Step::Write(round * 150, 30));
            rig.storage.set_full(true);
            let bytes = block(99).repeat(20);
            let error = write(&*disk, (round * 150 + 100) * BLOCK, &bytes).unwrap_err();
            assert!(error.is_full(), "{kind:?}: {error}");
            let _ = disk.flush();
            rig.storage.set_full(false);
            for number in 0..20 {
                model.values(&rig, round * 150 + 100 + number).push(99);
            }
            assert_eq!(model.wrong(&*disk), None);
            write(&*disk, (round * 150 + 100) * BLOCK, &bytes).unwrap();
            model.apply(&rig, &*disk, &Step::Flush);
        }
        let left = rig.storage.crash(|| false);
        if !matches!(kind, Kind::Raw) {
            check(&left).unwrap();
        }
        assert_eq!(model.wrong(&*rig.open(&left)), None);
    }
}

/// Writes over data that are there cost one flush of the host's.
#[test]
fn flushes_are_not_multiplied() {
    let rig = Rig::new(Kind::Overlay);
    let disk = rig.open(&rig.storage);
    let flushes = || {
        let before = rig.storage.flushes();
        write(&*disk, 0, &block(1).repeat(64)).unwrap();
        disk.flush().unwrap();
        rig.storage.flushes() - before
    };
    assert!(flushes() <= 5);
    assert_eq!(flushes(), 1);
}
