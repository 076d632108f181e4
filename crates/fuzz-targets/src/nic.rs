//! A NIC: frames and commands of a driver, frames of a network, in any order.
//!
//! Promised: nothing panics or goes on without end; what reaches the network
//! are frames of a possible length; what reaches the driver are frames that
//! came, in their order, each as it was.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use croft_devices::virtio::VirtioDevice;
use croft_devices::virtio::net::{Limits, NicHost, NicOptions, VirtioNet};
use croft_net::Stream;

use crate::input::Input;
use crate::sockets::{Driver, streams};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Of a header and of the smallest frame.
const HEADER: usize = 12;
const ETHERNET: usize = 14;
/// What a frame of the network's begins with, behind its addresses: those of
/// the host itself go nowhere.
const KIND: [u8; 2] = [0x88, 0xB5];

struct Nobody;

impl NicHost for Nobody {
    fn lost(&self, name: &str) {
        assert_eq!(name, "net0");
    }
}

/// Target `nic`.
pub fn nic(data: &[u8]) {
    carry(data);
}

/// How many frames reached the driver, and the network.
fn carry(data: &[u8]) -> (usize, usize) {
    let mut input = Input::new(data);
    let (mut peer, theirs) = streams();
    let features = input.u64();
    let device = VirtioNet::new(
        NicOptions {
            name: "net0".to_owned(),
            mac: MAC,
            mtu: 1500,
            pairs: 1,
            limits: Limits::default(),
            link: true,
            backend: Some(Stream::new(theirs.into(), 1500).into()),
        },
        Arc::new(Nobody),
    );
    let accepted = features & device.features();
    let handle = device.handle();
    let mut services: Vec<_> = (0..3)
        .map(|queue| device.service(queue, accepted))
        .collect();
    let mut driver = Driver::new(3);
    let mut arrived = Arrived::default();
    let mut heard = Vec::new();
    let mut sent = 0;
    while !input.is_empty() {
        match input.u8() % 8 {
            0..=2 => {
                let frame = outgoing(&mut input);
                driver.offer(1, Some(&frame), 0);
            }
            3 => drop(driver.offer(0, None, u32::from(input.u16() % 2048))),
            4 => arrived.send(&mut input, &mut peer),
            5 => {
                let len = usize::from(input.u8());
                let bytes = input.bytes(len).to_vec();
                command(&mut driver, &bytes);
            }
            6 => handle.set_link(input.u8() & 1 != 0),
            _ => {
                let (ours, theirs) = streams();
                let backend = (input.u8() & 3 != 0).then(|| Stream::new(theirs.into(), 1500));
                handle.set_backend(backend.map(Into::into));
                peer = ours;
                arrived.pending.clear();
                heard.clear();
            }
        }
        for service in &mut services {
            if !driver.serve(&mut **service) {
                return (arrived.got, sent);
            }
        }
        sent += hear(&mut peer, &mut heard);
        driver.take(1);
        driver.take(2);
        let got = driver.take(0);
        arrived.check(got);
    }
    (arrived.got, sent)
}

/// A command and room for its answer.
fn command(driver: &mut Driver, bytes: &[u8]) {
    driver.offer_pair(2, bytes, 1);
}

/// A frame of the driver's behind its header.
fn outgoing(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.u8();
    let len = usize::from(input.u16() % 2000);
    let mut bytes = vec![0; HEADER];
    if choice & 1 != 0 {
        bytes = input.bytes(HEADER).to_vec();
        bytes.resize(HEADER, 0);
    } else {
        // To be cut: checksum at 34, a size that is often possible.
        let size = input.u16() % 600;
        bytes[..2].copy_from_slice(&[1, [1, 0x81, 4, 5][usize::from(choice >> 1 & 3)]]);
        bytes[4..6].copy_from_slice(&size.to_le_bytes());
        bytes[6] = 34;
        bytes[8] = 16;
    }
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0, 0x45];
    frame.resize(54, 0);
    frame[23] = if choice & 8 != 0 { 17 } else { 6 };
    frame[30] = 10;
    frame[46] = 0x50;
    frame.resize(54 + len, 7);
    // Some of it is the input's.
    for _ in 0..choice >> 6 {
        let at = usize::from(input.u8());
        if let Some(byte) = frame.get_mut(at) {
            *byte = input.u8();
        }
    }
    if choice & 0x10 != 0 {
        frame.truncate(usize::from(input.u8()));
    }
    bytes.extend(frame);
    bytes
}

/// Reads what reached the network, and counts the frames. What is not whole
/// stays in `bytes`.
fn hear(peer: &mut UnixStream, bytes: &mut Vec<u8>) -> usize {
    let mut count = 0;
    let mut space = [0; 4096];
    while let Ok(len @ 1..) = peer.read(&mut space) {
        bytes.extend(&space[..len]);
    }
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        assert!((ETHERNET..=65535).contains(&length), "{length} bytes");
        if rest.len() < length {
            break;
        }
        bytes.drain(..4 + length);
        count += 1;
    }
    count
}

/// Frames on their way to the driver.
#[derive(Default)]
struct Arrived {
    pending: Vec<Vec<u8>>,
    count: u8,
    /// How many reached the driver.
    got: usize,
    /// Buffers of a frame that is not complete.
    left: usize,
    frame: Vec<u8>,
}

impl Arrived {
    fn send(&mut self, input: &mut Input<'_>, peer: &mut UnixStream) {
        let len = ETHERNET + usize::from(input.u16() % 3000);
        let mut frame = if input.u8() & 1 != 0 { MAC } else { [0xFF; 6] }.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(KIND);
        // No two are the same.
        self.count = self.count.wrapping_add(1);
        frame.resize(len, self.count);
        let length = (frame.len() as u32).to_be_bytes();
        if peer.write_all(&[&length, &*frame].concat()).is_ok() {
            self.pending.push(frame);
        }
    }

    /// What the driver got is what came; some of it may be lost.
    fn check(&mut self, buffers: Vec<Vec<u8>>) {
        for buffer in buffers {
            if self.left == 0 {
                assert!(buffer.len() >= HEADER, "{} bytes", buffer.len());
                self.left = usize::from(u16::from_le_bytes([buffer[10], buffer[11]]));
                assert!(self.left > 0, "a frame in no buffer");
                self.frame = buffer[HEADER..].to_vec();
            } else {
                self.frame.extend(buffer);
            }
            self.left -= 1;
            if self.left == 0 {
                let known = self.pending.iter().position(|frame| *frame == self.frame);
                let index = known.expect("a frame that came");
                self.pending.drain(..=index);
                self.got += 1;
            }
        }
        assert_eq!(self.left, 0, "a part of a frame");
    }
}

/// Each kind of thing once, for [`nic`].
pub fn seeds() -> Vec<Vec<u8>> {
    let all = u64::MAX.to_le_bytes();
    let room = [3, 0, 6];
    let frames = [
        &all[..],
        &room,
        &room,
        // Two frames arrive; one is sent, one is cut.
        &[4, 100, 0, 1, 4, 0xB0, 4, 0, 0, 0, 20, 0, 0, 2],
        &[1, 0, 4, 200, 0],
        // Not promiscuous; a table; another address; what is taken over.
        &[5, 3, 0, 0, 0, 5, 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[5, 8, 1, 1, 2, 2, 2, 2, 2, 2],
        &[5, 10, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        // The link goes and comes; another network.
        &[6, 0, 6, 1, 7, 1, 4, 50, 0, 1, 7, 0],
    ]
    .concat();
    let poor = [&[0; 8][..], &room, &[4, 60, 0, 0, 0, 1, 30, 0]].concat();
    vec![frames, poor]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_served() {
        let carried: Vec<_> = seeds().iter().map(|seed| carry(seed)).collect();
        assert_eq!(carried, [(2, 5), (1, 1)]);
    }
}
