//! The devices every machine has, on their bus.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use croft_devices::bus::DetachedDevice;
use croft_devices::debug_exit::DebugExit;
use croft_devices::i8042::I8042;
use croft_devices::pci::{HotplugSink, PciHandle, PciHost, PciHostConfig};
use croft_devices::pm::{Pm, PmHandle};
use croft_devices::pvpanic::Pvpanic;
use croft_devices::rtc::Rtc;
use croft_devices::testdev::TestDev;
use croft_devices::uart::{Uart, UartHandle};
use croft_devices::{
    Alarm, Bus, BusError, Clock, InterruptSink, IrqLine, PowerSink, TimerWaker, platform,
};
use croft_engine::Partition;
use croft_irqchip::Msi;

use crate::console::ConsoleSignal;
use crate::events::{Event, Events};
use crate::timers::TimerSignal;

/// A partition's interrupts and clock as devices see them.
pub struct PartitionSide(pub Arc<dyn Partition>);

impl InterruptSink for PartitionSide {
    fn set_line(&self, gsi: u32, level: bool) {
        self.0.set_line(gsi, level);
    }

    fn msi(&self, address: u64, data: u32) {
        self.0.msi(Msi { address, data });
    }
}

impl Clock for PartitionSide {
    fn now_ns(&self) -> u64 {
        self.0.clock_ns()
    }

    fn unix_ns(&self) -> u64 {
        // A host clock before 1970 counts as 1970, one after 2554 as 2554.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos().try_into().unwrap_or(u64::MAX))
    }
}

/// Hands ejected devices to the owner.
struct Ejector(Events);

impl HotplugSink for Ejector {
    fn ejected(&self, _slot: u8, device: DetachedDevice) {
        let _ = self.0.send(Event::Ejected(device));
    }
}

/// The devices, and those ends of them that the machine uses.
pub struct Chipset {
    pub bus: Arc<Bus>,
    pub clock: Arc<PartitionSide>,
    pub timers: Arc<TimerSignal>,
    pub console: Arc<ConsoleSignal>,
    pub uart: UartHandle,
    pub pm: PmHandle,
    pub pci: PciHandle,
}

impl Chipset {
    pub fn new(
        partition: Arc<dyn Partition>,
        power: &Arc<impl PowerSink + 'static>,
        events: Events,
        test_devices: bool,
    ) -> Result<Self, BusError> {
        let bus = Bus::new();
        let clock = Arc::new(PartitionSide(partition));
        let timers = Arc::new(TimerSignal::default());
        let console = Arc::new(ConsoleSignal::default());
        let line = |gsi| IrqLine::new(clock.clone(), gsi);
        let alarm = || Alarm::new(timers.clone() as Arc<dyn TimerWaker>);
        let power: Arc<dyn PowerSink> = power.clone();

        let uart = Uart::new(
            platform::UART_PORT,
            line(platform::UART_IRQ),
            console.clone(),
        );
        let uart_handle = uart.handle();
        let pm = Pm::new(
            line(platform::SCI_IRQ),
            alarm(),
            clock.clone(),
            power.clone(),
        );
        let pm_handle = pm.handle();
        let rtc = Rtc::new(
            platform::RTC_PORT,
            line(platform::RTC_IRQ),
            alarm(),
            clock.clone(),
        );
        let i8042 = I8042::new(line(platform::KEYBOARD_IRQ), power.clone());
        let pci = PciHost::new(
            &bus,
            PciHostConfig {
                ecam_base: platform::ECAM_BASE,
                ecam_size: platform::ECAM_SIZE,
                power: power.clone(),
                pm: pm_handle.clone(),
                hotplug: Arc::new(Ejector(events)),
            },
        );
        let pci_handle = pci.handle();
        bus.add("com1", Box::new(uart))?;
        bus.add("pm", Box::new(pm))?;
        bus.add("rtc", Box::new(rtc))?;
        bus.add("i8042", Box::new(i8042))?;
        bus.add("pci", Box::new(pci))?;
        bus.add(
            "pvpanic",
            Box::new(Pvpanic::new(platform::PVPANIC_PORT, power.clone())),
        )?;
        if test_devices {
            let exit = DebugExit::new(platform::DEBUG_EXIT_PORT, power);
            bus.add("debug-exit", Box::new(exit))?;
            bus.add("testdev", Box::new(TestDev::new(line)))?;
        }
        Ok(Chipset {
            bus,
            clock,
            timers,
            console,
            uart: uart_handle,
            pm: pm_handle,
            pci: pci_handle,
        })
    }
}
