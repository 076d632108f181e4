//! Errors planted into translated code are caught, each by a test.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use croft_difftest::blocks::Blocks;
use croft_difftest::blocks::program::{Program, SPARE};
use croft_engine::Stop;
use croft_engine_software::{PlantedInCode, SoftwareEngine, plant_in_code};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, byte_ptr, dword_ptr, eax, ecx, edi, qword_ptr, r9, r9d, rax, rbx, rcx, rdi,
};

/// The report of a lockstep over random blocks with an error planted.
fn random_blocks(error: PlantedInCode) -> Option<String> {
    let mut blocks = Blocks::new(&SoftwareEngine::lockstep(), 1).unwrap();
    plant_in_code(error);
    let report = (0..40).find_map(|_| blocks.batch().err());
    plant_in_code(PlantedInCode::None);
    report.map(|error| error.to_string())
}

/// How a program ends in lockstep with an error planted.
fn program(
    error: PlantedInCode,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Stop {
    let mut program = Program::new(&SoftwareEngine::lockstep(), code).unwrap();
    plant_in_code(error);
    let stop = program.run(|| ());
    plant_in_code(PlantedInCode::None);
    stop
}

fn caught(stop: &Stop, what: &str) {
    match stop {
        Stop::Failed(text) => assert!(text.contains(what), "{text}"),
        other => panic!("not caught: {other:x?}"),
    }
}

#[test]
fn planted_wrong_flag_is_caught() {
    let report = random_blocks(PlantedInCode::WrongFlag).unwrap();
    assert!(report.contains("rflags: "), "{report}");
    assert_eq!(random_blocks(PlantedInCode::None), None);
}

#[test]
fn planted_lost_write_back_is_caught() {
    let report = random_blocks(PlantedInCode::WriteBack).unwrap();
    assert!(report.contains("differs"), "{report}");
}

/// A page is read, mapped to another, and read again.
#[test]
fn planted_stale_translation_is_caught() {
    let remap = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 4)?;
        a.set_label(&mut again)?;
        a.mov(rdi, SPARE.linear)?;
        // Twice: the first time brings it into the interpreter's TLB.
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(rbx, SPARE.entry)?;
        a.xor(qword_ptr(rbx), 0x1000)?;
        a.invlpg(byte_ptr(rdi))?;
        a.add(r9d, dword_ptr(rdi))?;
        a.mov(r9d, dword_ptr(rdi))?;
        a.dec(ecx)?;
        a.jnz(again)
    };
    assert_eq!(program(PlantedInCode::None, remap), Stop::Kicked);
    let stop = program(PlantedInCode::StaleTranslation, remap);
    caught(&stop, "differs");
}

/// A routine is called and overwritten in turn. Its page is written to before
/// it has any code, so that it may be stored to unseen.
#[test]
fn planted_missed_invalidation_is_caught() {
    let overwrite = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rdi, SPARE.linear)?;
        a.mov(r9, 0x0000_C300_0000_00B8_u64)?;
        a.mov(ecx, 6)?;
        a.set_label(&mut again)?;
        // mov eax, 0; ret
        a.mov(qword_ptr(rdi), r9)?;
        a.mov(qword_ptr(rdi + 64), r9)?;
        a.call(rdi)?;
        // Another number.
        a.add(r9, 0x100)?;
        a.dec(ecx)?;
        a.jnz(again)
    };
    assert_eq!(program(PlantedInCode::None, overwrite), Stop::Kicked);
    let stop = program(PlantedInCode::MissedInvalidation, overwrite);
    caught(&stop, "overwritten");
}

/// A long loop is left when somebody asks; true if it was.
fn leaves_loop(error: PlantedInCode) -> bool {
    // Who can be kicked goes on until the kick comes, however late that is;
    // who cannot has to end.
    let rounds: u64 = match error {
        PlantedInCode::None => 1 << 38,
        _ => 400_000_000,
    };
    let mut program = Program::new(&SoftwareEngine::new(), |a| {
        let mut again = a.create_label();
        a.mov(rcx, rounds)?;
        a.xor(edi, edi)?;
        a.set_label(&mut again)?;
        a.add(rax, 1)?;
        a.dec(rcx)?;
        a.jnz(again)
    })
    .unwrap();
    plant_in_code(error);
    let kicker = program.kicker();
    let started = AtomicBool::new(false);
    let left = thread::scope(|scope| {
        scope.spawn(|| {
            while !started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(
            program.run(|| started.store(true, Ordering::Relaxed)),
            Stop::Kicked
        );
        !program.is_over()
    });
    plant_in_code(PlantedInCode::None);
    left
}

#[test]
fn planted_missed_interrupt_is_caught() {
    assert!(leaves_loop(PlantedInCode::None));
    assert!(!leaves_loop(PlantedInCode::MissedInterrupt));
}
