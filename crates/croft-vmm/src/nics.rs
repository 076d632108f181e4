//! NICs, from what the monitor says to what the machine takes.

use std::os::fd::OwnedFd;

use croft_api::net as api;
use croft_api::net::{NicBackend, StartNic};
use croft_machine::{NicConfig, NicLimits, NicRate};
use croft_net::{Backend, Stream, Tap};

/// A NIC, with its backend's descriptors taken from `descriptors`.
pub fn config(nic: StartNic, descriptors: &mut impl Iterator<Item = OwnedFd>) -> NicConfig {
    let mtu = nic.mtu.clamp(api::MTU_MIN, api::MTU_MAX);
    NicConfig {
        name: nic.name,
        mac: nic.mac.bytes(),
        mtu,
        pairs: nic.queues.clamp(1, api::QUEUES_MAX),
        limits: limits(nic.limits),
        link: nic.link,
        backend: backend(nic.backend, mtu, descriptors),
    }
}

/// What carries frames of `mtu` bytes; nothing if a descriptor is missing.
pub fn backend(
    kind: NicBackend,
    mtu: u16,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Option<Backend> {
    let count = kind.descriptors();
    let mut taken = descriptors.take(count);
    match kind {
        NicBackend::Tap { .. } => {
            let queues: Vec<_> = taken.collect();
            (queues.len() == count && count > 0).then(|| Tap::new(queues).into())
        }
        NicBackend::Stream => taken.next().map(|socket| Stream::new(socket, mtu).into()),
        NicBackend::None => None,
    }
}

/// How much it may do.
pub fn limits(limits: api::NicLimits) -> NicLimits {
    NicLimits {
        inbound: rate(limits.inbound),
        outbound: rate(limits.outbound),
    }
}

fn rate(rate: api::NicRate) -> NicRate {
    NicRate {
        bytes_per_second: rate.bytes_per_second,
        frames_per_second: rate.frames_per_second,
    }
}
