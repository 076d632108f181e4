//! The platform: the bus and the devices behind it.
//!
//! Devices know no engine. They meet the rest of a machine in guest memory,
//! at the [`Bus`] (which the machine puts behind the engine's I/O callback),
//! on interrupt lines ([`IrqLine`]), and through three small traits that the
//! machine implements: [`Clock`], [`TimerWaker`] and [`PowerSink`].
//!
//! Each device has a folder of the same shape: `mod.rs` with the device and
//! its register table, `state.rs` with its saved types, `tests.rs`.
//!
//! # Locks
//!
//! Every device sits behind a lock of its own; accesses to different devices
//! run in parallel. A device may hold its lock while it calls a sink (an
//! interrupt, a waker, the power sink, a notifier), so sinks must return at
//! once and never call back into the bus or a device's handle.

pub mod bus;
pub mod clock;
pub mod debug_exit;
pub mod device;
pub mod i8042;
pub mod interrupt;
pub mod pci;
pub mod platform;
pub mod pm;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod saved;
pub mod testdev;
pub mod timer;
pub mod uart;
pub mod virtio;

#[cfg(test)]
mod testing;

pub use bus::{Bus, BusError, DetachedDevice, DeviceId, Unclaimed};
pub use clock::{Clock, ManualClock};
pub use device::{Device, MmioDevice, MmioRange, PortDevice, PortRange, TimerDevice};
pub use interrupt::{InterruptSink, IrqLine, LineInput, SharedLine};
pub use power::PowerSink;
pub use saved::{BusState, DeviceState, NamedState, StateError};
pub use timer::{Alarm, TimerWaker};

/// Takes a lock whose holder may have panicked: device state stays usable,
/// because every register write leaves it consistent.
pub(crate) fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
