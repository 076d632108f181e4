use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use croft_devices::platform;
use croft_devices::virtio::transport::layout;
use croft_disk::{Layer, lock as locks};
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::loader::{BootFrom, Payload};
use crate::saved::SavedMachine;
use crate::sync::lock;
use crate::testing::{Act, Cpu, FakeEngine};
use crate::tests::{EndWhenPanicking, Sink, config, machine};
use crate::{Machine, MachineConfig, MachineHandle, Outcome, SaveError, State};

const PATIENCE: Duration = Duration::from_secs(120);
/// Where the guest has the rings of its queues, a page for each slot.
const RINGS: u64 = 0x40_0000;

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has a driver bind to the function in `slot`: one queue is in use, and has
/// a thread.
fn drive(cpu: &Cpu<'_>, slot: u8) {
    let ecam = platform::ECAM_BASE + (u64::from(slot) << 15);
    let bar = *platform::PCI_MMIO.start() + u64::from(slot) * layout::BAR_SIZE;
    cpu.io.mmio_write(ecam + 0x10, &(bar as u32).to_le_bytes());
    cpu.io.mmio_write(ecam + 0x04, &6u32.to_le_bytes());
    let common = bar + layout::COMMON;
    let ring = RINGS + u64::from(slot) * 0x1000;
    cpu.io.mmio_write(common + 0x14, &[0]);
    cpu.io.mmio_write(common + 0x14, &[3]);
    // VIRTIO_F_VERSION_1 is bit 32.
    cpu.io.mmio_write(common + 0x08, &1u32.to_le_bytes());
    cpu.io.mmio_write(common + 0x0C, &1u32.to_le_bytes());
    cpu.io.mmio_write(common + 0x14, &[0xB]);
    cpu.io.mmio_write(common + 0x16, &0u16.to_le_bytes());
    cpu.io.mmio_write(common + 0x18, &8u16.to_le_bytes());
    for (register, part) in [(0x20, 0), (0x28, 0x400), (0x30, 0x800)] {
        let place = ring + part;
        cpu.io
            .mmio_write(common + register, &(place as u32).to_le_bytes());
        cpu.io.mmio_write(common + register + 4, &[0; 4]);
    }
    cpu.io.mmio_write(common + 0x1C, &1u16.to_le_bytes());
    cpu.io.mmio_write(common + 0x14, &[0xF]);
}

/// A guest that binds drivers to what appears and, if it `answers`, releases
/// what it is asked for.
fn guest(answers: &Arc<AtomicBool>) -> FakeEngine {
    let answers = answers.clone();
    FakeEngine::new(move |cpu| {
        let read = |port| {
            let mut word = [0; 4];
            cpu.io.port_read(port, &mut word);
            u32::from_le_bytes(word)
        };
        let up = read(platform::PCI_HOTPLUG_PORT);
        for slot in (0..32).filter(|slot| up >> slot & 1 != 0) {
            drive(cpu, slot);
        }
        if answers.load(Ordering::SeqCst) {
            let down = read(platform::PCI_HOTPLUG_PORT + 4);
            if down != 0 {
                let eject = platform::PCI_HOTPLUG_PORT + 8;
                cpu.io.port_write(eject, &down.to_le_bytes());
            }
        }
        thread::sleep(Duration::from_micros(50));
        Act::Next
    })
}

/// A disk whose file is locked as long as any descriptor of it is open.
fn disk(index: Option<u8>) -> (NamedTempFile, DiskConfig) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let open = file.reopen().unwrap();
    locks::lock(&open, false).unwrap();
    let config = DiskConfig {
        index,
        ..DiskConfig::new("disk", vec![Layer::raw(open)])
    };
    (file, config)
}

fn is_open(file: &NamedTempFile) -> bool {
    locks::lock(&file.reopen().unwrap(), false).is_err()
}

/// Threads of disks in this process, by their disks.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let disks = names.filter_map(|name| {
        let (disk, _) = name.trim_end().split_once('-')?;
        disk.starts_with("disk").then(|| disk.to_owned())
    });
    disks.collect()
}

#[derive(Clone, Debug)]
enum Step {
    Attach(Option<u8>),
    Detach(usize, bool),
    Answers(bool),
    Pause,
    Resume,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::option::of(0u8..18).prop_map(Step::Attach),
        4 => (0usize..6, any::<bool>()).prop_map(|(which, force)| Step::Detach(which, force)),
        1 => any::<bool>().prop_map(Step::Answers),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Reset),
    ]
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the places of a machine should have.
#[derive(Default)]
struct Model {
    there: BTreeMap<u8, NamedTempFile>,
    leaving: Vec<u8>,
    pulled: Vec<u8>,
    gone: Vec<NamedTempFile>,
}

impl Model {
    fn leaves(&mut self, index: u8) {
        self.leaving.retain(|leaving| *leaving != index);
        self.gone.extend(self.there.remove(&index));
    }

    /// Those whose removal was asked for, when it is completed.
    fn all_leave(&mut self) {
        for index in std::mem::take(&mut self.leaving) {
            self.leaves(index);
        }
    }

    /// Does it to both and sees that they agree.
    fn take(&mut self, step: Step, handle: &MachineHandle, answers: &AtomicBool) {
        match step {
            Step::Attach(index) => {
                let (file, config) = disk(index);
                let free = |index: &u8| !self.there.contains_key(index);
                let expected = match index {
                    Some(index) => Some(index).filter(free).filter(|index| *index < 16),
                    None => (0..16).find(|index| free(index) && !self.pulled.contains(index)),
                };
                let attached = handle.attach_disk(config);
                assert_eq!(attached.as_ref().ok(), expected.as_ref(), "{attached:?}");
                match expected {
                    Some(index) => drop(self.there.insert(index, file)),
                    None => assert!(!is_open(&file)),
                }
            }
            Step::Detach(which, force) => {
                let Some(index) = self.there.keys().copied().nth(which) else {
                    let refused = handle.detach("disk99", force).unwrap_err();
                    assert!(matches!(refused, DetachError::None { .. }), "{refused}");
                    return;
                };
                handle.detach(&disk_name(index), force).unwrap();
                if force {
                    self.pulled.push(index);
                    self.leaves(index);
                } else if !self.leaving.contains(&index) {
                    self.leaving.push(index);
                }
            }
            Step::Answers(does) => answers.store(does, Ordering::SeqCst),
            Step::Pause => handle.pause().unwrap(),
            Step::Resume => handle.resume().unwrap(),
            Step::Reset => {
                handle.reset().unwrap();
                self.pulled.clear();
                self.all_leave();
            }
        }
        if answers.load(Ordering::SeqCst) && handle.state() == State::Running {
            self.all_leave();
        }
        for file in self.gone.drain(..) {
            eventually("a detached disk is closed", || !is_open(&file));
        }
        for (index, file) in &self.there {
            assert!(is_open(file), "disk{index} is not open");
        }
        let names = self.there.keys().map(|index| disk_name(*index));
        let names: Vec<String> = names.collect();
        eventually("only disks that are there have threads", || {
            threads().iter().all(|disk| names.contains(disk))
        });
    }
}

/// Whatever is done in whatever order: places, threads and files agree, and a
/// machine that is saved with holes between its disks goes on with them.
#[test]
fn disks_come_and_go() {
    let config_of = |cases| ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config_of(12), |(steps in proptest::collection::vec(step(), 1..24))| {
        let answers = Arc::new(AtomicBool::new(true));
        let engine = guest(&answers);
        let (machine, _) = machine(&engine, config());
        let handle = machine.handle();
        let mut model = Model::default();
        let buffer = Buffer::default();
        thread::scope(|scope| {
            let run = scope.spawn(|| machine.run());
            let _end = EndWhenPanicking(handle.clone());
            eventually("it runs", || handle.state() == State::Running);
            for step in steps {
                model.take(step, &handle, &answers);
            }
            let names: Vec<String> = model.there.keys().rev().copied().map(disk_name).collect();
            let other = ["disk99".to_owned()].into_iter().chain(names.clone()).collect();
            let changed = handle.save_with(other, Box::new(io::sink())).unwrap_err();
            assert!(matches!(changed, SaveError::Changed), "{changed}");
            handle.save_with(names, Box::new(buffer.clone())).unwrap();
            assert_eq!(run.join().unwrap(), Outcome::Saved);
        });
        for file in model.there.values() {
            assert!(!is_open(file));
        }
        let bytes = lock(&buffer.0).clone();
        let restore = |indices: Vec<u8>| {
            let disks = indices.into_iter().map(|index| disk(Some(index)).1).collect();
            let config = MachineConfig { disks, ..config() };
            let saved = SavedMachine::open(&*bytes)?;
            Machine::restore(&engine, config, saved, Arc::new(Sink::default()))
        };
        let indices: Vec<u8> = model.there.keys().copied().collect();
        restore(indices.clone()).unwrap();
        let moved: Vec<u8> = indices.iter().map(|index| 15 - index).rev().collect();
        prop_assert_eq!(restore(moved.clone()).is_ok(), moved == indices);
    });
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let answers = Arc::new(AtomicBool::new(false));
    let engine = guest(&answers);
    let refused = |disks: Vec<DiskConfig>| {
        let config = MachineConfig { disks, ..config() };
        let error = Machine::new(&engine, config, Arc::new(Sink::default())).unwrap_err();
        error.to_string()
    };
    assert!(refused(vec![disk(Some(3)).1, disk(Some(3)).1]).contains("two disks are to be disk3"));
    assert!(refused(vec![disk(Some(16)).1]).contains("disk0 to disk15"));
    let (machine, sink) = machine(&engine, config());
    let handle = machine.handle();
    thread::scope(|scope| {
        let run = scope.spawn(|| machine.run());
        let _end = EndWhenPanicking(handle.clone());
        for index in 0..16 {
            assert_eq!(handle.attach_disk(disk(None).1).unwrap(), index);
        }
        let full = handle.attach_disk(disk(None).1).unwrap_err().to_string();
        assert!(full.contains("all 16 places for disks are taken"), "{full}");
        let taken = handle.attach_disk(disk(Some(7)).1).unwrap_err().to_string();
        assert!(taken.contains("disk7"), "{taken}");
        // A guest that does not answer is asked again, and then no more.
        handle.detach("disk7", false).unwrap();
        handle.detach("disk7", false).unwrap();
        assert!(lock(&sink.detached).is_empty());
        handle.detach("disk7", true).unwrap();
        assert_eq!(*lock(&sink.detached), ["disk7"]);
        let none = handle.detach("disk7", true).unwrap_err().to_string();
        assert!(
            none.contains("'disk7'") && none.contains("disk6, disk8"),
            "{none}"
        );
        // What is in the place may still be the guest's.
        assert!(handle.attach_disk(disk(None).1).is_err());
        assert_eq!(handle.attach_disk(disk(Some(7)).1).unwrap(), 7);
        let file = tempfile::tempfile().unwrap();
        let empty = DiskConfig::new("'empty'", vec![Layer::raw(file)]);
        handle.detach("disk7", true).unwrap();
        handle.reset().unwrap();
        let error = handle.attach_disk(empty).unwrap_err().to_string();
        assert!(error.contains("'empty'"), "{error}");
        assert_eq!(handle.attach_disk(disk(None).1).unwrap(), 7);
        handle.stop().unwrap();
        assert_eq!(run.join().unwrap(), Outcome::Requested);
    });
    assert!(handle.attach_disk(disk(None).1).is_err());
    assert!(handle.detach("disk0", true).is_err());
}

#[test]
fn what_is_booted_from_stays() {
    let mut places = Places::default();
    let answers = Arc::new(AtomicBool::new(false));
    let engine = guest(&answers);
    let (machine, _) = machine(&engine, config());
    for boots in [true, false] {
        let disks = vec![disk(Some(u8::from(!boots))).1];
        let plugged = machine.plugger.plug_disks(disks, boots, &machine.events);
        places.disks.extend(plugged.unwrap());
    }
    assert!(matches!(places.slot("disk0"), Err(DetachError::Boots(_))));
    assert_eq!(places.slot("disk1").unwrap(), disk_slot(1));
    assert_eq!(places.names(), "disk1");
    let payload = Payload {
        boot: BootFrom::Disk,
        append: String::new(),
    };
    let config = MachineConfig {
        payload,
        ..config()
    };
    assert!(Machine::new(&engine, config, Arc::new(Sink::default())).is_err());
}

fn nic(name: &str) -> NicOptions {
    NicOptions {
        name: name.to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        pairs: 1,
        limits: Default::default(),
        link: true,
        backend: None,
    }
}

/// NICs keep the places that their names tell, holes and all.
#[test]
fn nics_come_and_go() {
    let answers = Arc::new(AtomicBool::new(false));
    let engine = guest(&answers);
    let config_of = |names: &[&str]| MachineConfig {
        nics: names.iter().map(|name| nic(name)).collect(),
        ..config()
    };
    let (machine, sink) = machine(&engine, config_of(&["uplink", "net0"]));
    let handle = machine.handle();
    let buffer = Buffer::default();
    thread::scope(|scope| {
        let run = scope.spawn(|| machine.run());
        let _end = EndWhenPanicking(handle.clone());
        handle.attach_nic(nic("net3")).unwrap();
        for name in ["net3", "uplink", "net1"] {
            // "uplink" has the place of net1.
            let taken = handle.attach_nic(nic(name)).unwrap_err();
            assert!(matches!(taken, AttachError::Taken(_)), "{taken}");
        }
        handle.attach_nic(nic("other")).unwrap();
        let held = handle.nic("uplink").unwrap();
        handle.detach("uplink", true).unwrap();
        assert!(handle.nic("uplink").is_none() && !held.is_up());
        handle.detach("other", false).unwrap();
        answers.store(true, Ordering::SeqCst);
        eventually("the guest lets it go", || handle.nic("other").is_none());
        eventually("that is told", || {
            *lock(&sink.detached) == ["uplink", "other"]
        });
        for name in ["net2", "net4", "net5", "net6", "net1"] {
            handle.attach_nic(nic(name)).unwrap();
        }
        assert!(handle.attach_nic(nic("more")).is_err());
        handle.detach("net5", true).unwrap();
        let names = ["net0", "net1", "net2", "net3", "net4", "net6"].map(str::to_owned);
        handle
            .save_with(names.to_vec(), Box::new(buffer.clone()))
            .unwrap();
        assert_eq!(run.join().unwrap(), Outcome::Saved);
    });
    let bytes = lock(&buffer.0).clone();
    let restore = |names: &[&str]| {
        let saved = SavedMachine::open(&*bytes)?;
        Machine::restore(&engine, config_of(names), saved, Arc::new(Sink::default()))
    };
    restore(&["net6", "net0", "net1", "net2", "net3", "net4"]).unwrap();
    // Another name takes the first place that is free.
    restore(&["net6", "first", "net1", "net2", "net3", "net4"]).unwrap();
    let error = restore(&["net0", "net1", "net2", "net3", "net4", "net5"]).unwrap_err();
    assert!(error.to_string().contains("in place 6"), "{error}");
}
