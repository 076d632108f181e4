use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use croft_devices::platform;
use croft_engine::state::PartitionState;
use croft_engine::{CpuModel, CpuProfile, CpuidLeaf};
use croft_memory::{PAGE_SIZE, Range};

use super::*;
use crate::handle::SaveError;
use crate::sync::lock;
use crate::testing::{Act, FakeEngine};
use crate::tests::{Sink, config, machine, power_off};
use crate::{DiskConfig, Machine, MachineConfig, MachineError, Outcome, State};
use croft_disk::Layer;

/// Where the tests' guest counts.
const COUNTER: u64 = 0x20_0000;

/// A sink that can be looked at after it was given away.
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

/// A sink that takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An engine whose guest counts in memory and on the console, and powers off
/// at 1000.
fn counting() -> FakeEngine {
    counting_past(Arc::new(AtomicBool::new(true)))
}

/// The same, but it stands at 500 until it may go on: for what has to be done
/// while it counts, however late that is.
fn counting_past(goes_on: Arc<AtomicBool>) -> FakeEngine {
    FakeEngine::new(move |cpu| {
        if cpu.index != 0 {
            return Act::Halt;
        }
        let mut bytes = [0; 8];
        cpu.ram.read(COUNTER, &mut bytes).unwrap();
        let count = u64::from_le_bytes(bytes) + 1;
        if count > 500 && !goes_on.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_micros(50));
            return Act::Next;
        }
        cpu.ram.write(COUNTER, &count.to_le_bytes()).unwrap();
        cpu.io.port_write(platform::UART_PORT, &[count as u8]);
        if count == 1000 {
            return power_off(cpu);
        }
        thread::sleep(Duration::from_micros(50));
        Act::Next
    })
}

fn with_disks(sizes: &[u64]) -> MachineConfig {
    let disk = |bytes: &u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(*bytes).unwrap();
        DiskConfig::new("disk", vec![Layer::raw(file)])
    };
    MachineConfig {
        vcpus: 2,
        disks: sizes.iter().map(disk).collect(),
        nics: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        ..config()
    }
}

/// Counts as [`counting`], but never comes to its end.
fn never_done() -> FakeEngine {
    counting_past(Arc::default())
}

/// A machine that was saved while it counted, and its output up to then. The
/// engine's must not end before.
fn saved(engine: &FakeEngine, config: MachineConfig) -> (Vec<u8>, Vec<u8>) {
    let (machine, sink) = machine(engine, config);
    let handle = machine.handle();
    let buffer = Buffer::default();
    let out = buffer.clone();
    let saver = thread::spawn(move || {
        while handle.state() != State::Running {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(5));
        handle.save(Box::new(out))
    });
    assert_eq!(machine.run(), Outcome::Saved);
    saver.join().unwrap().unwrap();
    let output = lock(&sink.output).clone();
    (std::mem::take(&mut lock(&buffer.0)), output)
}

fn restore(
    engine: &FakeEngine,
    config: MachineConfig,
    bytes: &[u8],
) -> Result<(Machine, Arc<Sink>), MachineError> {
    let sink = Arc::new(Sink::default());
    let machine = Machine::restore(engine, config, SavedMachine::open(bytes)?, sink.clone())?;
    Ok((machine, sink))
}

#[test]
fn a_saved_machine_goes_on_where_it_stood() {
    let engine = never_done();
    let (mut bytes, mut output) = saved(&engine, with_disks(&[4096]));
    // It moves until it is done, on engines of slightly different clocks.
    let mut moves = 0;
    loop {
        let other = FakeEngine {
            tsc_khz: 1_000_000 + 100 * (moves % 2),
            ..counting()
        };
        let (machine, sink) = restore(&other, with_disks(&[4096]), &bytes).unwrap();
        let handle = machine.handle();
        let buffer = Buffer::default();
        let out = buffer.clone();
        let saver = (moves < 5).then(|| thread::spawn(move || handle.save(Box::new(out))));
        let outcome = machine.run();
        output.extend_from_slice(&lock(&sink.output));
        if let Some(saver) = saver {
            let _ = saver.join().unwrap();
        }
        match outcome {
            Outcome::PowerOff => break,
            outcome => assert_eq!(outcome, Outcome::Saved),
        }
        bytes = std::mem::take(&mut lock(&buffer.0));
        moves += 1;
    }
    let expected: Vec<u8> = (1..=1000).map(|count| count as u8).collect();
    assert!(output == expected, "after {moves} moves: {output:?}");
}

#[test]
fn a_machine_that_cannot_be_saved_goes_on() {
    let goes_on = Arc::<AtomicBool>::default();
    let engine = counting_past(goes_on.clone());
    let (machine, sink) = machine(&engine, config());
    let handle = machine.handle();
    let saver = thread::spawn(move || {
        for room in [0, 7, 100, 5000] {
            match handle.save(Box::new(Full(room))) {
                Err(SaveError::Write(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                }
                other => panic!("{other:?}"),
            }
        }
        goes_on.store(true, Ordering::SeqCst);
        handle
    });
    assert_eq!(machine.run(), Outcome::PowerOff);
    let handle = saver.join().unwrap();
    let expected: Vec<u8> = (1..=1000).map(|count| count as u8).collect();
    assert!(*lock(&sink.output) == expected);
    let ended = handle.save(Box::new(Buffer::default()));
    assert!(matches!(ended, Err(SaveError::Ended(_))));
}

#[test]
fn what_the_guest_asked_for_comes_before_a_save() {
    let engine = FakeEngine::new(power_off);
    let (machine, _) = machine(&engine, config());
    let handle = machine.handle();
    let saver = thread::spawn(move || handle.save(Box::new(Buffer::default())));
    // Before the first instruction, or not at all.
    let outcome = machine.run();
    let saved = saver.join().unwrap();
    match outcome {
        Outcome::PowerOff => assert!(matches!(saved, Err(SaveError::Ended(_)))),
        outcome => assert_eq!((outcome, saved.is_ok()), (Outcome::Saved, true)),
    }
}

#[test]
fn another_machine_is_refused_by_name() {
    let engine = never_done();
    let (bytes, _) = saved(&engine, with_disks(&[4096, 8192]));
    let refused = |engine: &FakeEngine, config| {
        let error = restore(engine, config, &bytes).map(drop).unwrap_err();
        assert!(error.is_configuration());
        error.to_string()
    };
    let cases = [
        (
            MachineConfig {
                vcpus: 3,
                ..with_disks(&[4096, 8192])
            },
            "2 processors",
        ),
        (
            MachineConfig {
                memory: 32 << 20,
                ..with_disks(&[4096, 8192])
            },
            "16777216 bytes",
        ),
        (
            MachineConfig {
                test_devices: true,
                shares: Vec::new(),
                ..with_disks(&[4096, 8192])
            },
            "test devices",
        ),
        (with_disks(&[4096]), "2 disks"),
        (with_disks(&[4096, 4096]), "8192 bytes as disk1"),
    ];
    for (config, expected) in cases {
        let text = refused(&engine, config);
        assert!(text.contains(expected), "{text}");
    }
    let other = FakeEngine {
        leaf: 3,
        ..counting()
    };
    let text = refused(&other, with_disks(&[4096, 8192]));
    assert!(
        text.contains("portable-v1") && text.contains("leaf 0x0"),
        "{text}"
    );
}

#[test]
fn a_model_that_is_not_to_be_had_is_named() {
    let engine = never_done();
    let (bytes, _) = saved(&engine, config());
    let mut opened = SavedMachine::open(&*bytes).unwrap();
    opened.description.profile.model = CpuModel::Host;
    let sink = Arc::new(Sink::default());
    let error = Machine::restore(&engine, config(), opened, sink).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("CPU model host") && text.contains("fake engine"),
        "{text}"
    );
}

/// Every cut is refused, and so is every wrong byte, without a panic.
#[test]
fn damage_is_noticed() {
    let engine = counting();
    let config = || MachineConfig {
        vcpus: 2,
        ..config()
    };
    let (bytes, _) = saved(&engine, config());
    assert!(restore(&engine, config(), &bytes).is_ok());
    let step = (bytes.len() / 300).max(1);
    let ends = (0..40).chain(bytes.len() - 40..bytes.len());
    for at in ends.chain((40..bytes.len() - 40).step_by(step)) {
        let cut = restore(&engine, config(), &bytes[..at])
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(cut, MachineError::Saved(SavedError::Truncated)),
            "{at}: {cut}"
        );
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x04;
        let error = restore(&engine, config(), &damaged).map(drop);
        let text = error.unwrap_err().to_string();
        assert!(text.lines().count() == 1 && text.len() < 400, "{text}");
    }
}

fn ram(pages: u64) -> GuestRam {
    let len = pages * PAGE_SIZE;
    GuestRam::new(&[
        Range { start: 0, len },
        Range {
            start: 1 << 32,
            len,
        },
    ])
    .unwrap()
}

#[test]
fn memory_comes_back_without_its_zeros() {
    let full = ram(600);
    for page in [0, 1, 2, 255, 256, 257, 400, 599] {
        for start in [0, 1 << 32] {
            let bytes = [page as u8 + 1; 100];
            full.write(start + page * PAGE_SIZE + 3000, &bytes).unwrap();
        }
    }
    let mut stream = Vec::new();
    let mut writer = Writer::new(&mut stream).unwrap();
    memory::write(&mut writer, &full).unwrap();
    writer.end().unwrap();
    assert!(stream.len() < 20 * PAGE_SIZE as usize);
    let empty = ram(600);
    let mut reader = Reader::new(&*stream).unwrap();
    let mut loader = memory::Loader::new(&empty);
    while reader.next().unwrap() == Kind::Memory {
        loader.load(reader.payload()).unwrap();
    }
    for start in [0, 1 << 32] {
        let read = |ram: &GuestRam| {
            let mut bytes = vec![0; 600 * PAGE_SIZE as usize];
            ram.read(start, &mut bytes).unwrap();
            bytes
        };
        assert!(read(&full) == read(&empty));
    }
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let ram = ram(4);
    let page = [1; PAGE_SIZE as usize];
    let load = |loader: &mut memory::Loader<'_>, address: u64, bytes: &[u8]| {
        loader.load(&[&address.to_le_bytes(), bytes].concat())
    };
    for (address, bytes) in [
        (0, &page[..100]),
        (0, &[]),
        (8, &page),
        (4 * PAGE_SIZE, &page),
        (!(PAGE_SIZE - 1), &page),
    ] {
        let mut loader = memory::Loader::new(&ram);
        assert!(load(&mut loader, address, bytes).is_err(), "{address:#x}");
    }
    let mut loader = memory::Loader::new(&ram);
    assert!(loader.load(&[0; 3]).is_err());
    load(&mut loader, PAGE_SIZE, &page).unwrap();
    assert!(load(&mut loader, PAGE_SIZE, &page).is_err());
    assert!(load(&mut loader, 0, &page).is_err());
    load(&mut loader, 1 << 32, &page).unwrap();
}

fn profile(tsc_khz: u32) -> CpuProfile {
    let leaf = |function, eax| CpuidLeaf {
        function,
        eax,
        ..CpuidLeaf::default()
    };
    CpuProfile {
        model: CpuModel::PortableV1,
        leaves: vec![
            leaf(1, 7),
            leaf(0x16, tsc_khz / 1000),
            leaf(0x4000_0010, tsc_khz),
            leaf(0x8000_0008, 0x3027),
        ],
        xcr0: 7,
        arch_capabilities: 0,
        tsc_khz,
        physical_bits: 39,
    }
}

#[test]
fn a_processor_may_differ_in_frequency_alone() {
    let saved = profile(2_000_000);
    // As good as the same: the machine takes what is here.
    let close = fit(&saved, &profile(2_000_900)).unwrap();
    assert_eq!(close.profile.tsc_khz, 2_000_900);
    assert_eq!(close.profile.leaves, saved.leaves);
    let other = fit(&saved, &profile(3_000_000)).unwrap();
    assert_eq!(other.profile, saved);
    let mut wide = profile(2_000_000);
    wide.physical_bits = 46;
    wide.leaves[3].eax = 0x302E;
    assert_eq!(fit(&saved, &wide).unwrap().profile, saved);
    assert!(fit(&wide, &saved).unwrap_err().contains("46 physical"));
    let mut less = saved.clone();
    less.leaves[0].eax = 3;
    assert!(fit(&saved, &less).unwrap_err().contains("leaf 0x1"));
    less.leaves.pop();
    assert!(fit(&saved, &less).is_err());
}

#[test]
fn time_does_not_go_back() {
    for (from, to) in [(2_000_000, 2_000_900), (2_000_900, 2_000_000)] {
        let fit = fit(&profile(from), &profile(to)).unwrap();
        let before = PartitionState {
            clock_ns: 3_600_000_000_000,
            tsc: 3_600_000 * u64::from(from),
            tsc_khz: from,
            ..PartitionState::default()
        };
        let mut state = before.clone();
        fit.retime(&mut state);
        assert_eq!(state.tsc_khz, to);
        assert!(state.tsc >= before.tsc && state.clock_ns >= before.clock_ns);
        // An hour, and at most the difference.
        assert!(state.clock_ns - before.clock_ns < 3_600_000_000_000 / 2000);
        let ticks = state.clock_ns / 1000 * u64::from(to) / 1000;
        assert!(ticks.abs_diff(state.tsc) < 10_000, "{ticks} {}", state.tsc);
    }
}
