//! Translated code whose isolation does not hold must not run: errors planted
//! into the translator, each of which a guest could use to reach the host.

use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_conformance::layout::{CODE2, SLOTS};
use croft_conformance::{Failure, Machine};
use croft_engine_software::{PlantedCode, SoftwareEngine, SoftwareOptions, plant_code};
use iced_x86::code_asm::{qword_ptr, rcx, xmm0, xmmword_ptr};

/// Errors are planted for the whole process: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Takes the error out again.
struct Turn(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Drop for Turn {
    fn drop(&mut self) {
        plant_code(PlantedCode::None);
    }
}

/// How a guest with loads and stores of several sizes, calls and returns ends
/// when code is translated with `error`.
fn with(error: PlantedCode) -> Result<(), Failure> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    plant_code(error);
    let _turn = Turn(turn);
    let engine = SoftwareEngine::with_options(SoftwareOptions {
        verifies: true,
        ..SoftwareOptions::default()
    });
    let mut machine = Machine::long(&engine).unwrap();
    // ret
    machine.ram.write(CODE2, &[0xC3]).unwrap();
    machine
        .program(|p| {
            p.mov(rcx, qword_ptr(SLOTS))?;
            p.inc(rcx)?;
            p.mov(qword_ptr(SLOTS), rcx)?;
            p.movups(xmm0, xmmword_ptr(SLOTS))?;
            p.mov(rcx, CODE2)?;
            p.call(rcx)?;
            p.done()
        })
        .unwrap();
    machine.run()
}

fn refused(error: PlantedCode, why: &str) {
    let text = with(error).expect_err("nothing was noticed").to_string();
    assert!(text.contains("not isolated"), "{text}");
    assert!(text.contains(why), "{text}");
    // With the code, for whoever has to find the error.
    assert!(
        text.contains("=> 0x") && text.contains("[rsp+r11"),
        "{text}"
    );
}

#[test]
fn sound_code_is_accepted() {
    with(PlantedCode::None).unwrap();
}

#[test]
fn planted_check_without_a_jump_is_caught() {
    refused(PlantedCode::NoJump, "by an unchecked address");
}

#[test]
fn planted_store_checked_for_loads_is_caught() {
    refused(PlantedCode::Table, "checked for loads");
}

#[test]
fn planted_check_of_one_byte_is_caught() {
    refused(PlantedCode::Size, "at offsets 0 to 4095");
}

#[test]
fn planted_change_of_a_checked_pointer_is_caught() {
    refused(PlantedCode::Pointer, "by an unchecked address");
}

#[test]
fn planted_entry_out_of_the_table_is_caught() {
    refused(PlantedCode::Mask, "by an unchecked address");
}

#[test]
fn planted_jump_without_its_tag_is_caught() {
    refused(PlantedCode::Tag, "not a compared entry");
}
