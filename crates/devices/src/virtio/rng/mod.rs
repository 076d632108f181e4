//! virtio-rng: random bytes for the guest (virtio 1.2, 5.4).
//!
//! | queue | request                                                        |
//! |-------|----------------------------------------------------------------|
//! | 0     | device-writable buffers, filled from the host's `getrandom(2)` |
//!
//! A request gets at most 64 KiB; a driver asks again for more.

mod state;
#[cfg(test)]
mod tests;

use croft_memory::GuestRam;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, Kind, QueueError, QueueHandler, TransportState, VirtioDevice};
use crate::saved::{DeviceState, StateError, check_version};
use state::VERSION;
pub use state::VirtioRngState;

const NAME: &str = "virtio-rng";
const QUEUE_SIZE: u16 = 64;
/// Most bytes of one request.
const REQUEST_MAX: u64 = 64 << 10;
/// Bytes asked of the host at once: up to this many come without being
/// interrupted (getrandom(2)).
const PIECE: usize = 256;

/// The device.
#[derive(Debug, Default)]
pub struct VirtioRng;

impl VirtioDevice for VirtioRng {
    const KIND: Kind = Kind {
        name: NAME,
        id: VIRTIO_ID_RNG as u16,
        // Of no class that there is.
        class: 0x00_FF_00,
    };

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn config_len(&self) -> usize {
        0
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn handler(&self, _queue: u16, _features: u64) -> Box<dyn QueueHandler> {
        Box::new(Source)
    }

    fn save(&self, transport: TransportState) -> DeviceState {
        DeviceState::VirtioRng(VirtioRngState {
            version: VERSION,
            transport,
        })
    }

    fn check<'a>(&self, state: &'a DeviceState) -> Result<&'a TransportState, StateError> {
        match state {
            DeviceState::VirtioRng(state) => {
                check_version(NAME, state.version, VERSION)?;
                Ok(&state.transport)
            }
            other => Err(StateError::WrongDevice {
                device: NAME,
                found: other.kind(),
            }),
        }
    }
}

/// Fills requests.
struct Source;

impl QueueHandler for Source {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> Result<u32, QueueError> {
        let wanted = chain.writable.len().min(REQUEST_MAX);
        let mut done = 0;
        while done < wanted {
            let mut bytes = [0; PIECE];
            let len = (wanted - done).min(PIECE as u64) as usize;
            // A host without entropy gives fewer bytes; the driver asks again.
            let Ok(count) = getrandom(&mut bytes[..len], GetRandomFlags::empty()) else {
                break;
            };
            if count == 0 {
                break;
            }
            chain.writable.write(ram, done, &bytes[..count])?;
            done += count as u64;
        }
        Ok(done as u32)
    }
}
