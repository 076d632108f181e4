use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use croft_devices::platform;
use croft_engine::{CpuModel, Stop};

use crate::events::Event;
use crate::loader::{BootFrom, Payload};
use crate::sync::lock;
use crate::testing::{Act, Cpu, FakeEngine};
use crate::{
    ConsoleBackend, DiskConfig, DiskFault, Machine, MachineConfig, MachineError, MachineHandle,
    NamedFile, Outcome, State,
};

/// Where the test kernel is loaded, and its entry.
const BASE: u64 = 0x10_0000;

/// A flat multiboot kernel of 64 bytes.
fn kernel() -> NamedFile {
    let base = BASE as u32;
    let flags = 1u32 << 16;
    let magic = 0x1BAD_B002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let mut bytes = Vec::new();
    for word in [magic, flags, sum, base, base, base + 64, base + 64, base] {
        bytes.extend_from_slice(&u32::to_le_bytes(word));
    }
    bytes.resize(64, 0x90);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    NamedFile {
        file,
        name: "kernel".to_owned(),
    }
}

fn payload(append: &str) -> Payload {
    Payload {
        boot: BootFrom::Files {
            kernel: kernel(),
            initrd: None,
        },
        append: append.to_owned(),
    }
}

pub fn config() -> MachineConfig {
    MachineConfig {
        name: "test".to_owned(),
        vcpus: 1,
        memory: 16 << 20,
        model: CpuModel::PortableV1,
        payload: payload("quiet"),
        disks: Vec::new(),
        nics: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        no_reboot: false,
        shares: Vec::new(),
        test_devices: false,
    }
}

#[derive(Default)]
pub struct Sink {
    pub output: Mutex<Vec<u8>>,
    log: Mutex<Vec<String>>,
    pub faults: Mutex<Vec<Option<DiskFault>>>,
    pub detached: Mutex<Vec<String>>,
}

impl ConsoleBackend for Sink {
    fn output(&self, bytes: &[u8]) {
        lock(&self.output).extend_from_slice(bytes);
    }

    fn disk_failed(&self, fault: Option<&DiskFault>) {
        lock(&self.faults).push(fault.cloned());
    }

    fn detached(&self, device: &str) {
        lock(&self.detached).push(device.to_owned());
    }

    fn log(&self, line: &str) {
        lock(&self.log).push(line.to_owned());
    }
}

pub fn machine(engine: &FakeEngine, config: MachineConfig) -> (Machine, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let machine = Machine::new(engine, config, sink.clone()).unwrap();
    (machine, sink)
}

fn run(engine: &FakeEngine, config: MachineConfig) -> Outcome {
    machine(engine, config).0.run()
}

/// `out` to PM1a control: S5.
pub fn power_off(cpu: &mut Cpu<'_>) -> Act {
    let value = u16::from(platform::SLEEP_TYPE_S5) << 10 | 1 << 13;
    cpu.io
        .port_write(platform::PM1A_CONTROL_PORT, &value.to_le_bytes());
    Act::Halt
}

#[test]
fn the_guest_starts_at_its_entry_and_powers_off() {
    let engine = FakeEngine::new(|cpu| {
        assert_eq!(cpu.state.rip, BASE);
        assert_eq!(cpu.state.registers[0], 0x2BAD_B002);
        power_off(cpu)
    });
    assert_eq!(run(&engine, config()), Outcome::PowerOff);
}

#[test]
fn resets_load_the_kernel_again() {
    let boots = Arc::new(AtomicU32::new(0));
    let counter = boots.clone();
    let engine = FakeEngine::new(move |cpu| {
        assert_eq!(cpu.state.rip, BASE);
        let mut byte = [0];
        cpu.ram.read(BASE + 40, &mut byte).unwrap();
        assert_eq!(byte, [0x90]);
        cpu.ram.write(BASE + 40, &[0xCC]).unwrap();
        match counter.fetch_add(1, Ordering::SeqCst) {
            // Reset control, keyboard controller, the engine's own.
            0 => cpu.io.port_write(platform::RESET_PORT, &[6]),
            1 => cpu.io.port_write(platform::I8042_COMMAND_PORT, &[0xFE]),
            2 => return Act::Stop(Stop::Reset),
            _ => return power_off(cpu),
        }
        Act::Halt
    });
    assert_eq!(run(&engine, config()), Outcome::PowerOff);
    assert_eq!(boots.load(Ordering::SeqCst), 4);
    assert_eq!(engine.log.resets.load(Ordering::SeqCst), 3);
}

#[test]
fn a_reset_ends_a_machine_that_must_not_reboot() {
    for port in [platform::RESET_PORT, platform::I8042_COMMAND_PORT] {
        let engine = FakeEngine::new(move |cpu| {
            cpu.io.port_write(port, &[0xFE]);
            Act::Next
        });
        let config = MachineConfig {
            no_reboot: true,
            ..config()
        };
        assert_eq!(run(&engine, config), Outcome::Reset);
    }
}

#[test]
fn a_triple_fault_is_reported_with_registers() {
    let engine = FakeEngine::new(|cpu| {
        let state = Box::new(cpu.state.clone());
        Act::Stop(Stop::TripleFault(state))
    });
    let Outcome::TripleFault(report) = run(&engine, config()) else {
        panic!("no triple fault");
    };
    assert!(report.contains("RIP 0000000000100000"), "{report}");
}

#[test]
fn failures_of_an_engine_and_bugs_end_the_machine() {
    let engine = FakeEngine::new(|_| Act::Stop(Stop::Failed("it broke".to_owned())));
    assert_eq!(
        run(&engine, config()),
        Outcome::Failed("vCPU 0: it broke".to_owned())
    );
    let engine = FakeEngine::new(|_| std::panic::resume_unwind(Box::new(())));
    assert!(matches!(run(&engine, config()), Outcome::Failed(_)));
}

#[test]
fn the_debug_exit_port_is_there_when_asked_for() {
    let engine = FakeEngine::new(|cpu| {
        cpu.io
            .port_write(platform::DEBUG_EXIT_PORT, &7u32.to_le_bytes());
        Act::Halt
    });
    let config = MachineConfig {
        shares: Vec::new(),
        test_devices: true,
        ..config()
    };
    assert_eq!(run(&engine, config), Outcome::DebugExit(15));
}

#[test]
fn output_arrives_whole_before_the_end() {
    const LEN: u32 = 300_000;
    let sent = AtomicU32::new(0);
    let engine = FakeEngine::new(move |cpu| {
        let at = sent.load(Ordering::Relaxed);
        if at == LEN {
            return power_off(cpu);
        }
        let mut status = [0];
        cpu.io.port_read(platform::UART_PORT + 5, &mut status);
        if status[0] & 0x20 != 0 {
            cpu.io.port_write(platform::UART_PORT, &[at as u8]);
            sent.store(at + 1, Ordering::Relaxed);
        }
        Act::Next
    });
    let (machine, sink) = machine(&engine, config());
    assert_eq!(machine.run(), Outcome::PowerOff);
    let expected: Vec<u8> = (0..LEN).map(|at| at as u8).collect();
    assert!(*lock(&sink.output) == expected);
}

#[test]
fn input_waits_for_a_slow_guest() {
    let engine = FakeEngine::new(|cpu| {
        let mut byte = [0];
        cpu.io.port_read(platform::UART_PORT + 5, &mut byte);
        if byte[0] & 1 == 0 {
            thread::sleep(Duration::from_micros(10));
            return Act::Next;
        }
        cpu.io.port_read(platform::UART_PORT, &mut byte);
        if byte[0] == b'q' {
            return power_off(cpu);
        }
        Act::Next
    });
    let (machine, _) = machine(&engine, config());
    let handle = machine.handle();
    let typist = thread::spawn(move || {
        let mut text = vec![b'x'; 20_000];
        text.push(b'q');
        handle.push_input(&text)
    });
    assert_eq!(machine.run(), Outcome::PowerOff);
    assert_eq!(typist.join().unwrap(), Ok(()));
}

/// Runs `control` beside the machine, which must end as `expected`.
fn beside(
    engine: &FakeEngine,
    config: MachineConfig,
    expected: Outcome,
    control: impl FnOnce(MachineHandle) + Send + 'static,
) {
    let (machine, _) = machine(engine, config);
    let handle = machine.handle();
    assert_eq!(handle.state(), State::Created);
    let control = thread::spawn(move || control(handle));
    let handle = machine.handle();
    assert_eq!(machine.run(), expected);
    control.join().unwrap();
    assert_eq!(handle.state(), State::Stopped);
    assert!(handle.pause().is_err() && handle.stop().is_err());
    assert!(handle.push_input(&[0; 100_000]).is_err());
}

#[test]
fn a_halted_machine_can_be_stopped() {
    let engine = FakeEngine::new(|_| Act::Halt);
    let config = MachineConfig {
        vcpus: 4,
        ..config()
    };
    beside(&engine, config, Outcome::Requested, |handle| {
        thread::sleep(Duration::from_millis(5));
        handle.stop().unwrap();
    });
}

#[test]
fn nothing_moves_while_paused() {
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let engine = FakeEngine::new(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Act::Next
    });
    let config = MachineConfig {
        vcpus: 2,
        ..config()
    };
    beside(&engine, config, Outcome::Requested, move |handle| {
        for _ in 0..50 {
            handle.pause().unwrap();
            assert_eq!(handle.state(), State::Paused);
            let before = count.load(Ordering::SeqCst);
            thread::sleep(Duration::from_micros(200));
            assert_eq!(count.load(Ordering::SeqCst), before);
            handle.resume().unwrap();
            assert_eq!(handle.state(), State::Running);
            while count.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        // Twice is as good as once, and a reset keeps the pause.
        handle.pause().unwrap();
        handle.pause().unwrap();
        handle.reset().unwrap();
        assert_eq!(handle.state(), State::Paused);
        handle.resume().unwrap();
        handle.resume().unwrap();
        handle.stop().unwrap();
    });
}

#[test]
fn requests_before_the_start_are_kept() {
    let engine = FakeEngine::new(|_| Act::Next);
    let (machine, _) = machine(&engine, config());
    machine.handle().stop().unwrap();
    assert_eq!(machine.run(), Outcome::Requested);
}

#[test]
fn handles_of_a_machine_that_never_ran_do_not_hang() {
    let engine = FakeEngine::new(|_| Act::Next);
    let handle = machine(&engine, config()).0.handle();
    assert!(handle.pause().is_err());
}

#[test]
fn device_timers_expire() {
    let engine = FakeEngine::new(|cpu| {
        // RTC: periodic interrupt at 1024 Hz.
        for (register, value) in [(0x0A, 0x26), (0x0B, 0x42)] {
            cpu.io.port_write(platform::RTC_PORT, &[register]);
            cpu.io.port_write(platform::RTC_PORT + 1, &[value]);
        }
        Act::Halt
    });
    let log = engine.log.clone();
    beside(&engine, config(), Outcome::Requested, move |handle| {
        until("an interrupt", || {
            lock(&log.lines).contains(&(platform::RTC_IRQ, true))
        });
        handle.stop().unwrap();
    });
}

#[test]
fn the_power_button_raises_the_sci() {
    let engine = FakeEngine::new(|cpu| {
        let port = platform::PM1A_EVENT_PORT + 2;
        cpu.io.port_write(port, &0x100u16.to_le_bytes());
        Act::Halt
    });
    let log = engine.log.clone();
    beside(&engine, config(), Outcome::Requested, move |handle| {
        handle.press_power_button();
        until("an interrupt", || {
            lock(&log.lines).contains(&(platform::SCI_IRQ, true))
        });
        handle.stop().unwrap();
    });
}

#[test]
fn bad_configurations_are_named() {
    let engine = FakeEngine::new(|_| Act::Halt);
    let error = |config| {
        let error = Machine::new(&engine, config, Arc::new(Sink::default())).unwrap_err();
        assert!(error.is_configuration());
        let text = error.to_string();
        assert!(text.lines().count() <= 2, "{text}");
        (error, text)
    };
    for vcpus in [0, 9, u32::MAX] {
        let (error, _) = error(MachineConfig { vcpus, ..config() });
        assert!(matches!(error, MachineError::Vcpus { most: 8, .. }));
    }
    for memory in [0, 1, 1 << 20, u64::MAX, 1 << 62, 1 << 45] {
        let (error, text) = error(MachineConfig { memory, ..config() });
        assert!(matches!(error, MachineError::Size(_)), "{error:?}");
        assert!(text.contains("--memory"), "{text}");
    }
    let (_, text) = error(MachineConfig {
        model: CpuModel::Host,
        ..config()
    });
    assert!(text.contains("avx2 (host), fma (fake)"), "{text}");
    let (_, text) = error(MachineConfig {
        payload: payload(&"x".repeat(100_000)),
        ..config()
    });
    assert!(text.starts_with("--append: "), "{text}");
}

/// A failed assertion must not leave the machine running for ever.
pub struct EndWhenPanicking(pub MachineHandle);

impl Drop for EndWhenPanicking {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.stop();
        }
    }
}

/// A machine whose disks fail when a test says so.
struct Failing<'a> {
    handle: MachineHandle,
    events: &'a dyn Fn(Event),
    sink: &'a Sink,
}

impl Failing<'_> {
    fn fail(&self, message: &str) {
        (self.events)(Event::DiskFailed {
            disk: "disk0".to_owned(),
            message: message.to_owned(),
        });
    }

    fn reach(&self, state: State) {
        until(&format!("it is {state}"), || self.handle.state() == state);
    }

    /// Waits until the operator was told so much: of faults, and `None` of
    /// their ends.
    fn told(&self, wanted: &[Option<&str>]) {
        until(&format!("{wanted:?} is told"), || {
            let faults = lock(&self.sink.faults);
            let told = faults.iter().map(|f| f.as_ref().map(|f| &*f.message));
            told.eq(wanted.iter().copied())
        });
    }
}

fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is() {
        assert!(Instant::now() < deadline, "not: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a machine that looks after its disks so often, and stops it when
/// `test` is over.
fn with_failing_disks(interval: Duration, test: impl FnOnce(&Failing<'_>)) {
    let engine = FakeEngine::new(|_| Act::Next);
    let (mut machine, sink) = machine(&engine, config());
    machine.fault_interval = interval;
    let (handle, events) = (machine.handle(), machine.events.clone());
    thread::scope(|scope| {
        let run = scope.spawn(|| machine.run());
        let failing = Failing {
            handle: handle.clone(),
            events: &|event| events.send(event).unwrap(),
            sink: &sink,
        };
        // Else whoever fails would wait for the machine's end.
        let tested = catch_unwind(AssertUnwindSafe(|| {
            failing.reach(State::Running);
            test(&failing);
        }));
        handle.stop().unwrap();
        assert_eq!(run.join().unwrap(), Outcome::Requested);
        tested.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// The host fails at a disk: the machine stands still, is not told twice, and
/// goes on when the operator says so.
#[test]
fn a_failed_disk_stops_the_machine_until_it_is_resumed() {
    // It does not go on by itself meanwhile, however late this thread is.
    with_failing_disks(Duration::from_secs(3600), |machine| {
        machine.fail("full");
        machine.reach(State::Paused);
        machine.fail("full");
        machine.handle.resume().unwrap();
        assert_eq!(machine.handle.state(), State::Running);
        machine.told(&[Some("full")]);
        machine.fail("full again");
        machine.reach(State::Paused);
        machine.told(&[Some("full"), Some("full again")]);
    });
}

/// Or by itself when nothing fails any more, unless it was paused.
#[test]
fn a_machine_whose_disk_works_again_goes_on() {
    with_failing_disks(Duration::from_secs(1), |machine| {
        machine.fail("full");
        machine.told(&[Some("full"), None]);
        machine.reach(State::Running);
        machine.fail("more");
        until("it is told", || lock(&machine.sink.faults).len() >= 3);
        machine.handle.pause().unwrap();
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(machine.handle.state(), State::Paused);
    });
}

#[test]
fn a_disk_is_resized() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let disk = DiskConfig::new("disk", vec![croft_disk::Layer::raw(file)]);
    let engine = FakeEngine::new(|_| Act::Next);
    let config = MachineConfig {
        disks: vec![disk],
        ..config()
    };
    beside(&engine, config, Outcome::Requested, |handle| {
        handle.resize_disk(0, 8192).unwrap();
        for (index, size, word) in [(0, 4096, "smaller"), (1, 8192, "no disk1")] {
            let error = handle.resize_disk(index, size).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        handle.stop().unwrap();
    });
}
