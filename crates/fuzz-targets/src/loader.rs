//! Random and damaged kernels through the loader.
//!
//! Promised: a kernel is loaded into guest RAM or refused with a message of
//! at most three lines; what is loaded can be entered.

use std::fs::File;
use std::io::{self, Write};

use croft_engine::{CpuModel, Engine, PartitionConfig, Topology};
use croft_engine_software::SoftwareEngine;
use croft_machine::NamedFile;
use croft_machine::boot::Boot;
use croft_machine::loader::{BootFrom, Payload};
use croft_memory::{GuestRam, Range};

use crate::corpus;
use crate::input::Input;

/// Guest RAM: small, so that a decompression bomb is one soon.
const RAM: Range = Range {
    start: 0,
    len: 32 << 20,
};
/// Where an RSDP would be.
const RSDP: u64 = 0xE_0000;

fn file(name: &str, contents: &[u8]) -> io::Result<NamedFile> {
    let mut file: File = tempfile::tempfile()?;
    file.write_all(contents)?;
    Ok(NamedFile {
        file,
        name: name.to_owned(),
    })
}

/// Loads the kernel that `data` stands for.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let extras = input.u8();
    let initrd = (extras & 1 != 0).then(|| vec![0x5A; usize::from(extras) << 8]);
    let append = "x".repeat(usize::from(extras >> 1) * usize::from(kind));
    let rest = input.rest();
    let kernel = match kind % 4 {
        0 => corpus::bzimage(rest),
        1 => corpus::elf(rest),
        _ => rest.to_vec(),
    };

    let payload = Payload {
        boot: BootFrom::Files {
            kernel: file("kernel", &kernel).expect("a temporary file"),
            initrd: initrd.map(|bytes| file("initrd", &bytes).expect("a temporary file")),
        },
        append,
    };
    let ram = GuestRam::new(&[RAM]).expect("a host has 32 MiB");
    match payload
        .check()
        .and_then(|()| payload.load(&ram, RSDP, None))
    {
        Ok(boot) => enter(&boot, ram),
        Err(error) => {
            let text = error.to_string();
            assert!(text.lines().count() <= 3, "too long: {text}");
        }
    }
}

/// The engine takes the state, or says why not.
fn enter(boot: &Boot, ram: GuestRam) {
    let engine = SoftwareEngine::new();
    let topology = Topology { vcpus: 1 };
    let Ok(profile) = engine.profile(CpuModel::SoftwareFast, topology) else {
        return;
    };
    let config = PartitionConfig {
        ram,
        profile,
        vcpus: 1,
    };
    let partition = engine.partition(config).expect("a partition");
    let mut vcpu = partition.vcpu(0).expect("its vCPU");
    let _ = boot.enter(&mut *vcpu);
}
