//! Saved machines with some of their bytes changed, checksums made right.
//!
//! Promised: a file becomes a machine that can be run and saved again, or is
//! refused with a message of at most three lines. Bytes alone seldom get past
//! a checksum, so an input is a list of changes to a machine that was saved
//! in earnest.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use croft_api::saved::SavedRun;
use croft_disk::Layer;
use croft_engine::CpuModel;
use croft_engine_software::SoftwareEngine;
use croft_machine::{
    BootFrom, ConsoleBackend, DiskConfig, Machine, MachineConfig, MachineError, NamedFile, Outcome,
    Payload, SavedMachine,
};

use crate::corpus;
use crate::input::Input;

const MEMORY: u64 = 16 << 20;
const DISK: u64 = 64 << 10;
/// Bytes before the first section: magic number and version.
const STREAM_HEADER: usize = 12;
/// Kind, checksum, length.
const SECTION_HEADER: usize = 16;
/// Most changes of one input.
const CHANGES: usize = 32;

/// A part of the stream.
#[derive(Clone)]
struct Section {
    kind: u32,
    payload: Vec<u8>,
}

/// Hears nothing.
struct Nobody;

impl ConsoleBackend for Nobody {
    fn output(&self, _: &[u8]) {}

    fn log(&self, line: &str) {
        assert!(line.len() < 1000, "a long line: {line}");
    }
}

/// A sink that can be looked at after it was given away.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config() -> MachineConfig {
    // One of each for all inputs: what is in them does not change.
    static FILES: OnceLock<(File, File)> = OnceLock::new();
    let (kernel, disk) = FILES.get_or_init(|| {
        let kernel = corpus::kernel_that_halts();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&kernel).expect("a little space");
        let disk = tempfile::tempfile().expect("a temporary file");
        disk.set_len(DISK).expect("a little space");
        (file, disk)
    });
    let copy = |file: &File| file.try_clone().expect("a descriptor");
    MachineConfig {
        name: "fuzz".to_owned(),
        vcpus: 1,
        memory: MEMORY,
        model: CpuModel::PortableV1,
        payload: Payload {
            boot: BootFrom::Files {
                kernel: NamedFile {
                    file: copy(kernel),
                    name: "kernel".to_owned(),
                },
                initrd: None,
            },
            append: String::new(),
        },
        disks: vec![DiskConfig::new("disk", vec![Layer::raw(copy(disk))])],
        nics: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        no_reboot: true,
        test_devices: true,
        shares: Vec::new(),
    }
}

/// Saves a machine before it has run on.
fn save(machine: Machine) -> (Vec<u8>, Outcome) {
    let handle = machine.handle();
    let buffer = Buffer::default();
    let out = buffer.clone();
    let saver = std::thread::spawn(move || handle.save(Box::new(out)));
    let outcome = machine.run();
    let saved = saver.join().expect("no panic").is_ok();
    assert_eq!(saved, outcome == Outcome::Saved);
    let mut bytes = buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
    (std::mem::take(&mut *bytes), outcome)
}

/// The machine that is changed.
fn base() -> &'static [Section] {
    static BASE: OnceLock<Vec<Section>> = OnceLock::new();
    BASE.get_or_init(|| {
        let engine = SoftwareEngine::new();
        let machine = Machine::new(&engine, config(), Arc::new(Nobody)).expect("a machine");
        let (bytes, outcome) = save(machine);
        assert_eq!(outcome, Outcome::Saved);
        cut(&bytes)
    })
}

fn cut(stream: &[u8]) -> Vec<Section> {
    let mut rest = &stream[STREAM_HEADER..];
    let mut sections = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<SECTION_HEADER>() {
        let (words, _) = header.as_chunks::<4>();
        let len = u32::from_le_bytes(words[2]) as usize;
        sections.push(Section {
            kind: u32::from_le_bytes(words[0]),
            payload: behind[..len].to_vec(),
        });
        rest = &behind[len..];
    }
    sections
}

fn join(sections: &[Section]) -> Vec<u8> {
    let mut stream = b"CROFTVM\n\x01\0\0\0".to_vec();
    for section in sections {
        let len = (section.payload.len() as u64).to_le_bytes();
        let kind = section.kind.to_le_bytes();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&kind);
        hasher.update(&len);
        hasher.update(&section.payload);
        stream.extend(kind);
        stream.extend(hasher.finalize().to_le_bytes());
        stream.extend(len);
        stream.extend(&section.payload);
    }
    stream
}

/// Changes one thing.
fn change(sections: &mut Vec<Section>, input: &mut Input<'_>) {
    let Some(last) = sections.len().checked_sub(1) else {
        return;
    };
    let what = input.u8();
    let index = match what >> 6 {
        // Mostly description and state.
        0 => 0,
        1 | 2 => last.saturating_sub(1),
        _ => usize::from(input.u8()) % sections.len(),
    };
    let section = &mut sections[index];
    let place = input.u16();
    let at = usize::from(place) % section.payload.len().max(1);
    match what % 8 {
        0 | 1 => {
            if let Some(byte) = section.payload.get_mut(at) {
                *byte = input.u8();
            }
        }
        // Another digit, so that JSON stays what it was.
        2 | 3 => {
            let digits = section.payload.iter_mut().skip(at);
            if let Some(digit) = { digits }.find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + input.u8() % 10;
            }
        }
        // A larger number.
        4 => {
            let digit = section.payload[at.min(section.payload.len())..]
                .iter()
                .position(u8::is_ascii_digit);
            if let Some(offset) = digit {
                let digits = [b'1' + input.u8() % 9; 6];
                let place = at + offset;
                section.payload.splice(place..place, digits);
            }
        }
        5 => {
            let end = (at + usize::from(input.u8())).min(section.payload.len());
            section.payload.drain(at.min(end)..end);
        }
        6 => {
            let len = usize::from(input.u8() % 16);
            let bytes = input.bytes(len).to_vec();
            let at = at.min(section.payload.len());
            section.payload.splice(at..at, bytes);
        }
        _ => {
            let other = usize::from(input.u8()) % sections.len();
            match input.u8() % 3 {
                0 => sections.swap(index, other),
                1 => drop(sections.remove(index)),
                _ => {
                    let copy = sections[index].clone();
                    sections.insert(other, copy);
                }
            }
        }
    }
}

/// Target `saved`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.u8().is_multiple_of(16) {
        return bytes(input.rest());
    }
    let mut sections = base().to_vec();
    for _ in 0..CHANGES {
        if input.is_empty() {
            break;
        }
        change(&mut sections, &mut input);
    }
    restore(&join(&sections));
}

/// Whatever comes, as either part of the file.
fn bytes(data: &[u8]) {
    if let Err(error) = SavedRun::read(&mut &*data) {
        short(&error.to_string());
    }
    if let Err(error) = SavedMachine::open(data) {
        short(&error.to_string());
    }
}

fn short(text: &str) {
    assert!(text.lines().count() <= 3 && text.len() < 2000, "{text}");
}

/// Restores a machine; one that is accepted can be saved again. Returns
/// whether it was.
fn restore(stream: &[u8]) -> bool {
    let engine = SoftwareEngine::new();
    let restored = SavedMachine::open(stream)
        .map_err(MachineError::from)
        .and_then(|saved| Machine::restore(&engine, config(), saved, Arc::new(Nobody)));
    match restored {
        Ok(machine) => {
            save(machine);
            true
        }
        Err(error) => {
            short(&error.to_string());
            false
        }
    }
}

/// Changes of every kind, here and there.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![1], vec![0; 40]];
    for what in (0..=255).step_by(5) {
        for place in [0u16, 100, 3000, 9000] {
            let mut seed = vec![1, what];
            seed.extend(place.to_le_bytes());
            seed.extend([7, 3, 0, 0]);
            seeds.push(seed);
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_changes_it_is_accepted() {
        assert!(restore(&join(base())));
        assert!(!restore(&join(&base()[1..])));
    }
}
