//! A guest's accesses to every device and interrupt controller.
//!
//! Promised: no access panics, blocks or makes anything grow without bound;
//! whatever state it leads to is saved, restored and saved the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_devices::bus::DetachedDevice;
use croft_devices::debug_exit::DebugExit;
use croft_devices::i8042::I8042;
use croft_devices::pci::{HotplugSink, PciHost, PciHostConfig};
use croft_devices::pm::{Pm, PmHandle};
use croft_devices::pvpanic::Pvpanic;
use croft_devices::rtc::Rtc;
use croft_devices::testdev::TestDev;
use croft_devices::uart::{Uart, UartHandle, UartNotify};
use croft_devices::{
    Alarm, Bus, Clock, InterruptSink, IrqLine, ManualClock, PowerSink, TimerWaker, platform,
};
use croft_irqchip::{Action, Chips, Lapic, Message, Msi, Outlet};

use crate::input::Input;

/// Most accesses of one input.
const ACCESSES: usize = 4096;
/// More console output than this is never held for the host.
const OUTPUT_MAX: usize = 1 << 20;
/// Ticks of the guest's TSC in a nanosecond, here.
const TSC_PER_NS: u64 = 2;

/// Places that answer, and their neighbours.
const PORTS: [u16; 24] = [
    0x20,
    0x40,
    0x43,
    platform::I8042_DATA_PORT,
    0x61,
    platform::I8042_COMMAND_PORT,
    platform::RTC_PORT,
    platform::RTC_PORT + 1,
    platform::PORT_92,
    0xA0,
    0xE0,
    platform::DEBUG_EXIT_PORT,
    platform::UART_PORT,
    platform::UART_PORT + 4,
    0x4D0,
    platform::PVPANIC_PORT,
    platform::PM1A_EVENT_PORT,
    platform::PM1A_CONTROL_PORT,
    platform::PM_TIMER_PORT,
    platform::GPE0_PORT,
    platform::PCI_ADDRESS_PORT,
    platform::PCI_DATA_PORT,
    platform::PCI_HOTPLUG_PORT,
    0x2000,
];
const SIZES: [usize; 4] = [1, 2, 4, 8];

/// The interrupt controllers with one local APIC, wired together.
struct Controllers {
    chips: Chips,
    lapic: Lapic,
}

/// What comes out of the chips; it reaches the local APIC afterwards.
#[derive(Default)]
struct Sent {
    messages: Vec<Message>,
    lower: bool,
}

impl Outlet for Sent {
    fn send(&mut self, message: Message) {
        self.messages.push(message);
    }

    fn ended(&mut self, _: u32) -> bool {
        self.lower
    }
}

impl Controllers {
    fn with_chips<R>(&mut self, work: impl FnOnce(&mut Chips, &mut Sent) -> R) -> R {
        let mut sent = Sent::default();
        let result = work(&mut self.chips, &mut sent);
        for message in sent.messages {
            self.offer(&message);
        }
        result
    }

    fn offer(&mut self, message: &Message) {
        if self.lapic.matches(&message.destination) {
            self.lapic.accept(message);
        }
    }

    fn act(&mut self, action: Action) {
        if let Some(message) = action.ipi {
            self.offer(&message);
        }
        if let Some(vector) = action.eoi {
            self.with_chips(|chips, out| chips.eoi(vector, out));
        }
    }
}

/// Everything that devices call.
struct Board {
    clock: ManualClock,
    controllers: Mutex<Controllers>,
    requests: AtomicU64,
}

impl Board {
    fn controllers(&self) -> MutexGuard<'_, Controllers> {
        self.controllers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl InterruptSink for Board {
    fn set_line(&self, gsi: u32, level: bool) {
        self.controllers()
            .with_chips(|chips, out| chips.set_line(gsi, level, out));
    }

    fn msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(Msi { address, data }) {
            self.controllers().offer(&message);
        }
    }
}

impl Clock for Board {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn unix_ns(&self) -> u64 {
        self.clock.unix_ns()
    }
}

impl TimerWaker for Board {
    fn wake(&self) {
        self.count();
    }
}

impl UartNotify for Board {
    fn output_ready(&self) {
        self.count();
    }

    fn input_room(&self) {
        self.count();
    }
}

impl PowerSink for Board {
    fn power_off(&self) {
        self.count();
    }

    fn reset(&self) {
        self.count();
    }

    fn panicked(&self, _: u8) {
        self.count();
    }

    fn debug_exit(&self, status: u32) {
        assert_eq!(status & 1, 1, "a status of debug-exit is odd");
        self.count();
    }
}

impl HotplugSink for Board {
    fn ejected(&self, _: u8, _: DetachedDevice) {
        self.count();
    }
}

/// The devices of a machine with the test devices.
struct Platform {
    board: Arc<Board>,
    bus: Arc<Bus>,
    uart: UartHandle,
    pm: PmHandle,
}

impl Platform {
    fn new(unix_ns: u64) -> Self {
        let board = Arc::new(Board {
            clock: ManualClock::new(unix_ns),
            controllers: Mutex::new(Controllers {
                chips: Chips::new(),
                lapic: Lapic::new(0, true),
            }),
            requests: AtomicU64::new(0),
        });
        let bus = Bus::new();
        let line = |gsi| IrqLine::new(board.clone(), gsi);
        let alarm = || Alarm::new(board.clone());
        let uart = Uart::new(platform::UART_PORT, line(platform::UART_IRQ), board.clone());
        let uart_handle = uart.handle();
        let pm = Pm::new(
            line(platform::SCI_IRQ),
            alarm(),
            board.clone(),
            board.clone(),
        );
        let pm_handle = pm.handle();
        let rtc = Rtc::new(
            platform::RTC_PORT,
            line(platform::RTC_IRQ),
            alarm(),
            board.clone(),
        );
        let pci = PciHost::new(
            &bus,
            PciHostConfig {
                ecam_base: platform::ECAM_BASE,
                ecam_size: platform::ECAM_SIZE,
                power: board.clone(),
                pm: pm_handle.clone(),
                hotplug: board.clone(),
            },
        );
        let i8042 = I8042::new(line(platform::KEYBOARD_IRQ), board.clone());
        let pvpanic = Pvpanic::new(platform::PVPANIC_PORT, board.clone());
        let exit = DebugExit::new(platform::DEBUG_EXIT_PORT, board.clone());
        let add = |name, device| {
            bus.add(name, device).expect("every device has its place");
        };
        add("com1", Box::new(uart) as Box<dyn croft_devices::Device>);
        add("pm", Box::new(pm));
        add("rtc", Box::new(rtc));
        add("i8042", Box::new(i8042));
        add("pci", Box::new(pci));
        add("pvpanic", Box::new(pvpanic));
        add("debug-exit", Box::new(exit));
        add("testdev", Box::new(TestDev::new(line)));
        bus.start();
        Platform {
            board,
            bus,
            uart: uart_handle,
            pm: pm_handle,
        }
    }

    fn now(&self) -> u64 {
        self.board.now_ns()
    }

    fn tsc(&self) -> u64 {
        self.now().wrapping_mul(TSC_PER_NS)
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        if Chips::claims_port(port) {
            let now = self.now();
            self.board
                .controllers()
                .with_chips(|chips, out| chips.port_read(port, data, now, out));
        } else {
            self.bus.port_read(port, data);
        }
    }

    fn port_write(&self, port: u16, data: &[u8], lower: bool) {
        if Chips::claims_port(port) {
            let now = self.now();
            self.board.controllers().with_chips(|chips, out| {
                out.lower = lower;
                chips.port_write(port, data, now, out);
            });
        } else {
            self.bus.port_write(port, data);
        }
    }

    /// Lets time pass and everything due happen.
    fn advance(&self, ns: u64) {
        self.board.clock.advance(ns);
        let (now, tsc) = (self.now(), self.tsc());
        self.bus.expire(now);
        let mut controllers = self.board.controllers();
        controllers.with_chips(|chips, out| chips.poll(now, out));
        controllers.lapic.poll_timer(now, tsc);
        let next = controllers.chips.next_event_ns(now);
        assert!(next.is_none_or(|next| next > now), "a timer that stays due");
    }

    /// The local APIC and the I/O APIC.
    fn controller_access(&self, input: &mut Input<'_>) {
        let (now, tsc) = (self.now(), self.tsc());
        let mut controllers = self.board.controllers();
        let controllers = &mut *controllers;
        match input.u8() % 12 {
            0 => {
                controllers.lapic.read(u64::from(input.u16()), now, tsc);
            }
            1 => {
                let (offset, value) = (u64::from(input.u8()) << 4, input.u32());
                let action = controllers.lapic.write(offset, value, now, tsc);
                controllers.act(action);
            }
            2 => {
                let msr = 0x800 + u32::from(input.u8() % 0x42);
                let _ = controllers.lapic.read_msr(msr, now, tsc);
            }
            3 => {
                let (msr, value) = (0x800 + u32::from(input.u8() % 0x42), input.u64());
                if let Ok(action) = controllers.lapic.write_msr(msr, value, now, tsc) {
                    controllers.act(action);
                }
            }
            4 => {
                let value = 0xFEE0_0000 | u64::from(input.u16() & 0xD00);
                let _ = controllers.lapic.set_apic_base(value);
            }
            5 => {
                let vector = controllers.lapic.acknowledge();
                assert!(vector.is_none_or(|v| v >= 16), "vector {vector:?}");
            }
            6 => {
                if let Some(vector) = controllers.lapic.eoi() {
                    controllers.with_chips(|chips, out| chips.eoi(vector, out));
                }
            }
            7 => {
                let (offset, len) = (u64::from(input.u8()), input.pick(&SIZES));
                controllers.chips.mmio_read(offset, &mut [0; 8][..len]);
            }
            8 => {
                let (offset, len) = (u64::from(input.u8()), input.pick(&SIZES));
                let bytes = input.u64().to_le_bytes();
                controllers.with_chips(|chips, out| {
                    out.lower = len == 1;
                    chips.mmio_write(offset, &bytes[..len], out);
                });
            }
            9 => {
                if controllers.chips.intr() {
                    controllers.with_chips(|chips, out| chips.acknowledge_pic(out));
                }
            }
            10 => controllers.lapic.write_tsc_deadline(input.u64(), now, tsc),
            _ => {
                controllers.lapic.set_cr8(input.u8() & 15);
                let _ = controllers.lapic.take_init();
                let _ = controllers.lapic.take_startup();
                let _ = controllers.lapic.take_nmi();
            }
        }
    }

    fn survives_saving(&self) {
        self.bus.pause();
        let saved = self.bus.save();
        let (chips, lapic) = {
            let controllers = self.board.controllers();
            (controllers.chips.save(), controllers.lapic.save())
        };
        {
            let mut controllers = self.board.controllers();
            controllers.chips.restore(&chips).expect("its own state");
            controllers.lapic.restore(&lapic).expect("its own state");
            assert_eq!(controllers.chips.save(), chips);
            assert_eq!(controllers.lapic.save(), lapic);
        }
        self.bus.restore(&saved).expect("its own state");
        assert_eq!(self.bus.save(), saved);
        self.bus.resume();
    }

    fn access(&self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=2 => {
                let port = port(input);
                let len = input.pick(&SIZES[..3]);
                self.port_read(port, &mut [0xFF; 4][..len]);
            }
            3..=6 => {
                let port = port(input);
                let len = input.pick(&SIZES[..3]);
                let bytes = input.u32().to_le_bytes();
                self.port_write(port, &bytes[..len], len == 2);
            }
            7 => {
                let (address, len) = (memory(input), input.pick(&SIZES));
                self.bus.mmio_read(address, &mut [0xFF; 8][..len]);
            }
            8 => {
                let (address, len) = (memory(input), input.pick(&SIZES));
                let bytes = input.u64().to_le_bytes();
                self.bus.mmio_write(address, &bytes[..len]);
            }
            9 => self.advance(u64::from(input.u32()) << (input.u8() % 16)),
            10 => {
                let len = usize::from(input.u8());
                self.uart.push_input(input.bytes(len));
            }
            11 => {
                let mut output = Vec::new();
                self.uart.take_output(&mut output);
                assert!(output.len() <= OUTPUT_MAX, "{} bytes", output.len());
            }
            12 => match input.u8() % 4 {
                0 => self.pm.press_power_button(),
                1 => self.pm.raise_gpe(input.u8()),
                2 => {
                    self.uart.push_break();
                }
                _ => self.bus.reset(),
            },
            13 => self.survives_saving(),
            _ => self.controller_access(input),
        }
    }
}

fn port(input: &mut Input<'_>) -> u16 {
    match input.u8() {
        0..=15 => input.u16(),
        near => {
            let base = input.pick(&PORTS);
            base.wrapping_add(u16::from(near & 15))
        }
    }
}

fn memory(input: &mut Input<'_>) -> u64 {
    match input.u8() % 4 {
        0 => platform::ECAM_BASE + u64::from(input.u32()) % platform::ECAM_SIZE,
        1 => platform::ECAM_BASE + u64::from(input.u16()),
        2 => platform::TESTDEV_MMIO_BASE + u64::from(input.u32() % 0x1_0010),
        _ => input.u64(),
    }
}

/// Makes the accesses that `data` stands for.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let platform = Platform::new(u64::from(input.u32()) << 32);
    for _ in 0..ACCESSES {
        if input.is_empty() {
            break;
        }
        platform.access(&mut input);
    }
    platform.survives_saving();
}
