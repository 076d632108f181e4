//! Saved states: apart from the runtime types, versioned one by one.
//!
//! A state carries the version of its writer. A reader refuses a newer one;
//! it understands its own and every older one.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::debug_exit::DebugExitState;
use crate::i8042::I8042State;
use crate::pci::PciHostState;
use crate::pm::PmState;
use crate::pvpanic::PvpanicState;
use crate::rtc::RtcState;
use crate::testdev::TestDevState;
use crate::uart::UartState;
use crate::virtio::balloon::VirtioBalloonState;
use crate::virtio::blk::VirtioBlkState;
use crate::virtio::console::VirtioConsoleState;
use crate::virtio::fs::VirtioFsState;
use crate::virtio::net::VirtioNetState;
use crate::virtio::rng::VirtioRngState;
use crate::virtio::vsock::VirtioVsockState;

/// Why a state was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Written by a later Croft.
    #[error(
        "the saved state of {device} has version {found}, this Croft understands up to {known}; restore it with a newer Croft"
    )]
    TooNew {
        /// Device kind.
        device: &'static str,
        /// Version in the state.
        found: u32,
        /// Latest version understood.
        known: u32,
    },
    /// A state of another kind of device.
    #[error(
        "the saved state of {found} was given to {device}; restore into a machine of the same configuration"
    )]
    WrongDevice {
        /// Device kind that was asked to restore.
        device: &'static str,
        /// Kind found.
        found: &'static str,
    },
    /// A value that the device cannot have.
    #[error("the saved state of {device} is damaged: {what}; use another snapshot")]
    Damaged {
        /// Device kind.
        device: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The saved machine had other devices.
    #[error(
        "the saved machine and this one differ in device '{name}'; restore into a machine of the same configuration"
    )]
    OtherDevices {
        /// A device that only one of the two has.
        name: String,
    },
}

/// Refuses a state newer than `known`.
pub(crate) fn check_version(
    device: &'static str,
    found: u32,
    known: u32,
) -> Result<(), StateError> {
    if found > known {
        return Err(StateError::TooNew {
            device,
            found,
            known,
        });
    }
    Ok(())
}

/// Shorthand for [`StateError::Damaged`].
pub(crate) fn damaged(device: &'static str, what: impl Into<String>) -> StateError {
    StateError::Damaged {
        device,
        what: what.into(),
    }
}

macro_rules! device_states {
    ($($(#[$doc:meta])* $kind:ident($state:ty) = $name:literal;)*) => {
        /// The state of one device of any kind.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum DeviceState {
            $($(#[$doc])* $kind($state),)*
        }

        impl DeviceState {
            /// Name of the device kind.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(DeviceState::$kind(_) => $name,)*
                }
            }
        }
    };
}

device_states! {
    /// See [`crate::uart`].
    Uart(UartState) = "uart";
    /// See [`crate::rtc`].
    Rtc(RtcState) = "rtc";
    /// See [`crate::pm`].
    Pm(PmState) = "pm";
    /// See [`crate::i8042`].
    I8042(I8042State) = "i8042";
    /// See [`crate::pci`].
    PciHost(PciHostState) = "pci host bridge";
    /// See [`crate::pvpanic`].
    Pvpanic(PvpanicState) = "pvpanic";
    /// See [`crate::debug_exit`].
    DebugExit(DebugExitState) = "debug exit";
    /// See [`crate::testdev`].
    TestDev(TestDevState) = "test device";
    /// See [`crate::virtio::blk`].
    VirtioBlk(VirtioBlkState) = "virtio-blk";
    /// See [`crate::virtio::net`].
    VirtioNet(VirtioNetState) = "virtio-net";
    /// See [`crate::virtio::rng`].
    VirtioRng(VirtioRngState) = "virtio-rng";
    /// See [`crate::virtio::console`].
    VirtioConsole(VirtioConsoleState) = "virtio-console";
    /// See [`crate::virtio::vsock`].
    VirtioVsock(VirtioVsockState) = "virtio-vsock";
    /// See [`crate::virtio::balloon`].
    VirtioBalloon(VirtioBalloonState) = "virtio-balloon";
    /// See [`crate::virtio::fs`].
    VirtioFs(VirtioFsState) = "virtio-fs";
}

/// A device's state under the name it was added by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedState {
    /// Name given to [`Bus::add`](crate::Bus::add).
    pub name: String,
    /// Its state.
    pub state: DeviceState,
}

/// The states of all devices of a bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState {
    /// Version of this list.
    pub version: u32,
    /// In the order in which they were added.
    pub devices: Vec<NamedState>,
}
