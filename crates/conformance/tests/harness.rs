//! The harness must notice what it is there to notice.

use croft_conformance::layout::vector;
use croft_conformance::{Failure, Machine, guests};
use croft_engine_software::SoftwareEngine;

fn failure(outcome: Result<(), Failure>) -> String {
    outcome.expect_err("nothing was noticed").to_string()
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = guests::all().map(|guest| guest.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn an_exception_that_does_not_come_is_noticed() {
    let mut machine = Machine::long(&SoftwareEngine::new()).unwrap();
    machine
        .program(|p| {
            p.ud(|a| a.nop())?;
            p.done()
        })
        .unwrap();
    assert!(failure(machine.run()).contains("0 exceptions instead of 1"));
}

#[test]
fn an_exception_that_nobody_expects_is_noticed() {
    let mut machine = Machine::long(&SoftwareEngine::new()).unwrap();
    machine.program(|p| p.ud2()).unwrap();
    assert!(failure(machine.run()).contains("log is full"));
}

#[test]
fn a_wrong_error_code_or_address_is_noticed() {
    for (code, address) in [(1, 0), (0, 1)] {
        let mut machine = Machine::long(&SoftwareEngine::new()).unwrap();
        machine
            .program(|p| {
                p.mov(iced_x86::code_asm::rax, 0x8000_0000_0000u64)?;
                p.fault_at((vector::GP, code), None, 0x2000B + address, |a| {
                    a.mov(
                        iced_x86::code_asm::rax,
                        iced_x86::code_asm::qword_ptr(iced_x86::code_asm::rax),
                    )
                })?;
                p.done()
            })
            .unwrap();
        machine.run().expect_err("nothing was noticed");
    }
}

#[test]
fn a_triple_fault_is_noticed() {
    let mut machine = Machine::long(&SoftwareEngine::new()).unwrap();
    machine.state(|state| state.idtr.limit = 0).unwrap();
    machine.program(|p| p.ud2()).unwrap();
    assert!(failure(machine.run()).contains("triple fault"));
}

#[test]
fn a_guest_that_hangs_is_given_up() {
    let mut machine = Machine::long(&SoftwareEngine::new()).unwrap();
    machine.limit = std::time::Duration::from_millis(100);
    machine.program(|p| p.hlt()).unwrap();
    assert!(failure(machine.run()).contains("hangs"));
}
