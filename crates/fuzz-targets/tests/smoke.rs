//! Every fuzz target on pseudo-random inputs, the same at each run.
//!
//! `CROFT_FUZZ_INPUTS` is the number of inputs of each target,
//! `CROFT_FUZZ_SEED` another sequence of them, `CROFT_FUZZ_FIRST` where in
//! it to begin.

use std::panic::{AssertUnwindSafe, catch_unwind};

use croft_fuzz_targets::corpus::Target;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => otherwise,
    }
}

fn smoke(name: &str, inputs: u64) {
    let target = Target::named(name).expect("a target");
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    let seed = number("CROFT_FUZZ_SEED", 1);
    let first = number("CROFT_FUZZ_FIRST", 0);
    for index in first..first + number("CROFT_FUZZ_INPUTS", inputs) {
        let input = target.input(&seeds, seed, index);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            panic!("{name}, seed {seed}, input {index}: {input:02x?}");
        }
    }
}

#[test]
fn execute() {
    smoke("execute", 1000);
}

#[test]
fn loader() {
    smoke("loader", 2000);
}

#[test]
fn devices() {
    smoke("devices", 2000);
}

#[test]
fn protocol() {
    smoke("protocol", 20_000);
}

#[test]
fn virtqueue() {
    smoke("virtqueue", 5000);
}

#[test]
fn virtio() {
    smoke("virtio", 1000);
}

#[test]
fn vsock() {
    smoke("vsock", 3000);
}

#[test]
fn console() {
    smoke("console", 3000);
}

#[test]
fn nic() {
    smoke("nic", 3000);
}

#[test]
fn qcow2() {
    smoke("qcow2", 2000);
}

#[test]
fn saved() {
    smoke("saved", 1000);
}

#[test]
fn image() {
    smoke("image", 1000);
}

#[test]
fn layer() {
    smoke("layer", 1000);
}

#[test]
fn bootdisk() {
    smoke("bootdisk", 3000);
}

#[test]
fn seccomp() {
    smoke("seccomp", 2000);
}
