//! Profiles of a bundle: filters of system calls.
//!
//! Promised: a profile becomes a program or is refused; the program fits the
//! kernel's bound and answers every call with an action that the profile has,
//! or with the end of the process for an architecture that it has not.

use croft_isolate::seccomp::{compile, interpret::Call};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::input::Input;

const ACTIONS: [LinuxSeccompAction; 8] = [
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActTrap,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActNotify,
];
const OPERATORS: [LinuxSeccompOperator; 8] = [
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
    LinuxSeccompOperator::ScmpCmpEq,
];
const NAMES: [&str; 8] = [
    "read", "ioctl", "socket", "shmget", "clone3", "waitpid", "statx", "nothing",
];
const ARCHS: [Arch; 4] = [
    Arch::ScmpArchX86_64,
    Arch::ScmpArchX86,
    Arch::ScmpArchX32,
    Arch::ScmpArchAarch64,
];
/// `SECCOMP_RET_KILL_PROCESS`, `SECCOMP_RET_ERRNO` with `ENOSYS`.
const KILL: u32 = 0x8000_0000;
const NO_SUCH_CALL: u32 = 0x0005_0026;

/// Takes the data as a profile in JSON, or as choices of what is in one.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let profile = if input.u8() & 3 == 0 {
        match serde_json::from_slice(input.rest()) {
            Ok(profile) => profile,
            Err(_) => return,
        }
    } else {
        chosen(&mut input)
    };
    let program = match compile(&profile) {
        Ok(program) => program,
        Err(error) => {
            assert!(error.to_string().starts_with("seccomp: "), "{error}");
            return;
        }
    };
    assert!((1..=4096).contains(&program.len()));
    // What an action carries is bounded, so kinds are compared.
    let kind = |action: u32| action & 0xFFFF_0000;
    let rules = profile.syscalls().iter().flatten();
    let mut known: Vec<u32> = rules.map(|rule| kind(rule.action().as_u32(None))).collect();
    known.push(kind(profile.default_action().as_u32(None)));
    known.extend([KILL, kind(NO_SUCH_CALL)]);
    for _ in 0..16 {
        let mut word = || u64::from_le_bytes(std::array::from_fn(|_| input.u8()));
        let call = Call {
            number: (word() & 0x4000_03FF) as u32,
            arch: [0xC000_003E, 0x4000_0003, 7][(word() % 3) as usize],
            arguments: std::array::from_fn(|_| word()),
        };
        let answer = program.answer(&call).expect("an answer");
        assert!(known.contains(&kind(answer)), "{answer:#x} to {call:?}");
    }
}

fn chosen(input: &mut Input<'_>) -> LinuxSeccomp {
    let pick = |number: u8| usize::from(number & 7);
    let archs = ARCHS
        .into_iter()
        .filter(|_| input.u8() & 1 == 1)
        .collect::<Vec<_>>();
    let default = ACTIONS[pick(input.u8())];
    let count = input.u8();
    let entries = (0..count).map(|_| entry(input)).collect::<Vec<_>>();
    LinuxSeccompBuilder::default()
        .default_action(default)
        .architectures(archs)
        .listener_path("/listener")
        .syscalls(entries)
        .build()
        .expect("a profile")
}

fn entry(input: &mut Input<'_>) -> LinuxSyscall {
    let pick = |number: u8| usize::from(number & 7);
    let names = (0..=input.u8() & 3).map(|_| NAMES[pick(input.u8())].to_owned());
    let names = names.collect::<Vec<_>>();
    let conditions = (0..input.u8() & 7).map(|_| {
        let mut word = || u64::from_le_bytes(std::array::from_fn(|_| input.u8()));
        LinuxSeccompArgBuilder::default()
            .value(word())
            .value_two(word())
            .index(pick(input.u8()))
            .op(OPERATORS[pick(input.u8())])
            .build()
            .expect("a condition")
    });
    let conditions = conditions.collect::<Vec<_>>();
    let mut rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(ACTIONS[pick(input.u8())])
        .args(conditions);
    if input.u8() & 3 == 0 {
        rule = rule.errno_ret(u32::from(input.u8()) << 12);
    }
    rule.build().expect("a rule")
}

/// A profile in JSON, and choices.
pub fn seeds() -> Vec<Vec<u8>> {
    let arch = Arch::ScmpArchNative;
    let usual = croft_isolate::seccomp::default_profile(&[], arch);
    let text = serde_json::to_vec(&usual).expect("JSON");
    let mut json = vec![0];
    json.extend(text);
    vec![json, (1..=255).collect()]
}
