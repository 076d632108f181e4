//! How guests end that are no Linux, or not a sane one.

use std::thread;
use std::time::Duration;

use croft_tests::{END, Ended, Stage, tiny};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use rustix::process::Signal;

fn run(code: &[u8], arguments: &[&str]) -> Ended {
    let stage = Stage::new();
    let mut command = stage.tiny(code);
    command.args(arguments);
    stage.start(command).wait_at_most(END)
}

#[test]
fn a_triple_fault_is_reported_with_registers() {
    let ended = run(tiny::TRIPLE_FAULT, &[]);
    assert_eq!(ended.code, Some(4), "{ended:#?}");
    assert_eq!(ended.stdout, "");
    let eax = format!("{:016x}", tiny::TRIPLE_FAULT_EAX);
    // The ud2 is at byte 12.
    let rip = format!("RIP {:016x}", tiny::BASE + 12);
    for text in ["three times", &eax, &rip, "CR0", "CR3", "GDT", "IDT"] {
        assert!(ended.stderr.contains(text), "no '{text}': {ended:#?}");
    }
}

#[test]
fn the_debug_exit_port_is_the_exit_code() {
    let code = [tiny::TO_DEBUG_EXIT, tiny::HALT].concat();
    let ended = run(&code, &["--test-devices"]);
    assert_eq!(ended.code, Some(0x10 * 2 + 1), "{ended:#?}");
}

#[test]
fn without_test_devices_there_is_no_debug_exit_port() {
    let stage = Stage::new();
    // It writes there, goes on and says so.
    let code = [tiny::TO_DEBUG_EXIT, tiny::HELLO].concat();
    let mut machine = stage.start(stage.tiny(&code));
    machine.stdout.wait_for("tiny\n", END);
    machine.signal("croft", Signal::TERM);
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(128 + 15), "{ended:#?}");
}

#[test]
fn a_guest_that_hears_nothing_can_be_ended() {
    for code in [tiny::SPIN, tiny::HALT] {
        let stage = Stage::new();
        let mut machine = stage.start(stage.tiny(code));
        machine.stderr.wait_for("engine", END);
        machine.signal("croft", Signal::TERM);
        let ended = machine.wait_at_most(END);
        assert_eq!(ended.code, Some(128 + 15), "{ended:#?}");
    }
}

/// Random code does what it does: croft must not fail, and must not hang
/// when it is told to end.
#[test]
fn garbage_does_no_harm() {
    for seed in 0..12 {
        let mut code = vec![0; 64 << 10];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut code);
        let stage = Stage::new();
        let mut machine = stage.start(stage.tiny(&code));
        machine.stderr.wait_for("engine", END);
        // Time to do it; with none of it the test would see less.
        thread::sleep(Duration::from_millis(300));
        // A child that nobody has waited for yet: its number is its own.
        let _ = rustix::process::kill_process(machine.pid(), Signal::TERM);
        let ended = machine.wait_at_most(END);
        let fine = [Some(0), Some(4), Some(128 + 15)];
        assert!(fine.contains(&ended.code), "seed {seed}: {ended:#?}");
        assert!(
            !ended.stderr.contains("panicked"),
            "seed {seed}: {ended:#?}"
        );
    }
}
