//! A peer's bytes through the codec of the protocols between processes.
//!
//! Promised: bytes become messages or an error, and a message that was read
//! is written and read the same.

use std::fmt::Debug;

use croft_api::hello::Hello;
use croft_api::wire::{Decoder, Frame, MAX_DESCRIPTORS, MAX_PAYLOAD, encode};
use croft_api::{Status, control, monitor, vmm};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::input::Input;

/// Frames what `data` holds, or takes it as frames, and reads them.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let framed = input.u8() & 1 != 0;
    let piece = usize::from(input.u8()) + 1;
    let rest = input.rest();
    let mut stream = Vec::new();
    if framed {
        stream.extend_from_slice(&(rest.len() as u32).to_le_bytes());
        stream.extend_from_slice(&[0; 4]);
    }
    stream.extend_from_slice(rest);

    let mut decoder = Decoder::default();
    for piece in stream.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => read(&frame),
                Ok(None) => break,
                Err(error) => {
                    assert!(error.to_string().lines().count() <= 3);
                    return;
                }
            }
        }
    }
}

fn read(frame: &Frame) {
    assert!(frame.payload.len() <= MAX_PAYLOAD);
    assert!(frame.descriptors <= MAX_DESCRIPTORS);
    if let Ok(hello) = frame.message::<Hello>() {
        for protocol in [control::PROTOCOL, monitor::PROTOCOL, vmm::PROTOCOL] {
            if let Err(error) = hello.check(protocol, "peer") {
                assert!(error.to_string().len() < 400, "{error}");
            }
        }
    }
    survives::<Hello>(frame);
    survives::<monitor::Request>(frame);
    survives::<monitor::Event>(frame);
    survives::<control::Request>(frame);
    survives::<control::Event>(frame);
    survives::<Status>(frame);
    survives::<vmm::Request>(frame);
    survives::<vmm::Event>(frame);
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(frame: &Frame) {
    let Ok(message) = frame.message::<T>() else {
        return;
    };
    let Ok(bytes) = encode(&message, frame.descriptors) else {
        return;
    };
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    let again = decoder
        .next_frame()
        .expect("our own frame")
        .expect("all of it");
    assert_eq!(again.message::<T>().expect("our own message"), message);
}
