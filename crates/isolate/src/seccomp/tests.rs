//! The compiler against a naive reader of profiles, over random ones.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use proptest::prelude::*;

use super::interpret::Call;
use super::tree::{ARCH_I386, ARCH_X86_64, KILL};
use super::{Error, compile, names};

/// Calls of all kinds: the first, the last, with gaps beside them, only on one
/// architecture, multiplexed ones, and none.
const NAMES: [&str; 16] = [
    "read",
    "write",
    "open",
    "ioctl",
    "socket",
    "shmget",
    "semop",
    "socketcall",
    "ipc",
    "rt_sigaction",
    "clone3",
    "openat2",
    "uselib",
    "waitpid",
    "statx",
    "no_such_call",
];

const ACTIONS: [(LinuxSeccompAction, Option<u32>); 6] = [
    (LinuxSeccompAction::ScmpActAllow, None),
    (LinuxSeccompAction::ScmpActErrno, None),
    (LinuxSeccompAction::ScmpActErrno, Some(38)),
    (LinuxSeccompAction::ScmpActKillProcess, None),
    (LinuxSeccompAction::ScmpActTrap, None),
    (LinuxSeccompAction::ScmpActLog, None),
];

const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
];

/// Values on both sides of what the two halves of a word can be.
const VALUES: [u64; 8] = [
    0,
    1,
    15,
    0xFFFF_FFFF,
    0x1_0000_0000,
    0x1_0000_0001,
    0x8000_0000_0000_0000,
    u64::MAX,
];

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![proptest::sample::select(VALUES.to_vec()), any::<u64>()]
}

fn condition() -> impl Strategy<Value = LinuxSeccompArg> {
    let operator = proptest::sample::select(OPERATORS.to_vec());
    (0_usize..3, value(), value(), operator).prop_map(|(index, value, two, operator)| {
        let builder = LinuxSeccompArgBuilder::default().index(index).value(value);
        builder.value_two(two).op(operator).build().unwrap()
    })
}

fn entry() -> impl Strategy<Value = LinuxSyscall> {
    let names = proptest::collection::vec(proptest::sample::select(NAMES.to_vec()), 1..4);
    let action = proptest::sample::select(ACTIONS.to_vec());
    let conditions = proptest::collection::vec(condition(), 0..3);
    (names, action, conditions).prop_map(|(names, (action, errno), conditions)| {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
        if let Some(errno) = errno {
            builder = builder.errno_ret(errno);
        }
        builder.args(conditions).build().unwrap()
    })
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let archs = vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
    let archs = proptest::sample::subsequence(archs, 0..=3);
    let default = proptest::sample::select(ACTIONS.to_vec());
    let entries = proptest::collection::vec(entry(), 0..12);
    (default, archs, entries).prop_map(|((default, errno), archs, entries)| {
        let mut builder = LinuxSeccompBuilder::default().default_action(default);
        if let Some(errno) = errno {
            builder = builder.default_errno_ret(errno);
        }
        builder
            .architectures(archs)
            .syscalls(entries)
            .build()
            .unwrap()
    })
}

fn holds(condition: &LinuxSeccompArg, call: &Call) -> bool {
    let narrow = call.arch == ARCH_I386;
    let cut = |value: u64| if narrow { value & 0xFFFF_FFFF } else { value };
    let (value, two) = (
        cut(condition.value()),
        cut(condition.value_two().unwrap_or_default()),
    );
    let argument = cut(call.arguments[condition.index()]);
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpNe => argument != value,
        LinuxSeccompOperator::ScmpCmpLt => argument < value,
        LinuxSeccompOperator::ScmpCmpLe => argument <= value,
        LinuxSeccompOperator::ScmpCmpEq => argument == value,
        LinuxSeccompOperator::ScmpCmpGe => argument >= value,
        LinuxSeccompOperator::ScmpCmpGt => argument > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == two,
    }
}

/// What a profile says of a call: every rule is looked at, by name.
fn naive(profile: &LinuxSeccomp, call: &Call) -> u32 {
    let archs = profile.architectures().as_deref().unwrap_or_default();
    let x32 = call.arch == ARCH_X86_64 && call.number >= names::X32 && call.number != u32::MAX;
    let number = match call.arch {
        ARCH_X86_64 if x32 && archs.contains(&Arch::ScmpArchX32) => names::x32,
        ARCH_X86_64 if x32 => return KILL,
        ARCH_X86_64 => names::x86_64,
        ARCH_I386 if archs.contains(&Arch::ScmpArchX86) => names::x86,
        _ => return KILL,
    };
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let entries = profile.syscalls().iter().flatten();
    let mut greatest = 0;
    let mut first = None;
    for entry in entries {
        let action = entry.action().as_u32(entry.errno_ret());
        let conditions = entry.args().as_deref().unwrap_or_default();
        let mut indices: Vec<usize> = conditions.iter().map(LinuxSeccompArg::index).collect();
        indices.sort_unstable();
        let any = indices.windows(2).any(|two| two[0] == two[1]);
        for name in entry.names() {
            let mut matches = number(name) == Some(call.number);
            greatest = greatest.max(number(name).map_or(0, |number| number + 1));
            let mut said = match any {
                true => conditions.iter().any(|one| holds(one, call)),
                false => conditions.iter().all(|one| holds(one, call)),
            };
            let mut always = conditions.is_empty();
            let through = names::multiplexed(name).filter(|_| call.arch == ARCH_I386);
            if let Some((multiplexer, which)) = through
                && action != default
                && (conditions.is_empty() || (action as i32 & !0xFFFF) < (default as i32 & !0xFFFF))
            {
                greatest = greatest.max(multiplexer + 1);
                if call.number == multiplexer {
                    matches = true;
                    said = call.arguments[0] & 0xFFFF == which;
                    always = false;
                }
            }
            if matches && action != default {
                if always {
                    // The first of these wins over all that have conditions.
                    match first {
                        Some((_, true)) => {}
                        _ => first = Some((action, true)),
                    }
                } else if said && first.is_none() {
                    first = Some((action, false));
                }
            }
        }
    }
    // Beyond what an architecture has named, of the kind of this number.
    match first {
        Some((action, _)) => action,
        None if call.number < greatest => default,
        None if profile.default_action() == LinuxSeccompAction::ScmpActErrno => 0x5_0000 | 38,
        None => default,
    }
}

/// Numbers that a profile has something to say of, and their neighbours.
fn calls(profile: &LinuxSeccomp) -> Vec<(u32, u32)> {
    let mut all = vec![(ARCH_X86_64, u32::MAX), (0x1234, 0), (ARCH_I386, u32::MAX)];
    let names = profile.syscalls().iter().flatten();
    let names = names.flat_map(|entry| entry.names().iter().map(String::as_str));
    for name in names.chain(NAMES) {
        for (arch, number) in [
            (ARCH_X86_64, names::x86_64(name)),
            (ARCH_X86_64, names::x32(name)),
            (ARCH_I386, names::x86(name)),
        ] {
            for number in number.into_iter() {
                for near in [number.saturating_sub(1), number, number + 1] {
                    all.push((arch, near));
                }
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

proptest! {
    #[test]
    fn programs_answer_as_profiles_say(
        profile in profile(),
        some in proptest::collection::vec([value(), value(), value()], 1..4),
    ) {
        let program = compile(&profile).unwrap();
        let entries = profile.syscalls().iter().flatten();
        let conditions = entries.flat_map(|entry| entry.args().iter().flatten());
        // Values beside those that are compared with.
        let mut arguments = some;
        for condition in conditions {
            for value in [condition.value(), condition.value_two().unwrap_or_default()] {
                for value in [value.wrapping_sub(1), value, value.wrapping_add(1)] {
                    arguments.push([value; 3]);
                    arguments.push([0, value, 1 << 32]);
                }
            }
        }
        for (arch, number) in calls(&profile) {
            for three in &arguments {
                let call = Call {
                    number,
                    arch,
                    arguments: [three[0], three[1], three[2], 0, 0, 0],
                };
                let wanted = naive(&profile, &call);
                prop_assert_eq!(program.answer(&call), Some(wanted), "{:?}", call);
            }
        }
    }
}

#[test]
fn long_programs_jump_far_and_too_long_ones_are_refused() {
    let many = |count: u64| {
        let entries: Vec<LinuxSyscall> = (0..count)
            .map(|value| {
                let condition = LinuxSeccompArgBuilder::default();
                let condition = condition.index(0_usize).value(value);
                let condition = condition.op(LinuxSeccompOperator::ScmpCmpEq).build();
                LinuxSyscallBuilder::default()
                    .names(vec!["read".to_owned(), "ioctl".to_owned()])
                    .action(LinuxSeccompAction::ScmpActErrno)
                    .errno_ret((value % 4000) as u32)
                    .args(vec![condition.unwrap()])
                    .build()
                    .unwrap()
            })
            .collect();
        LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActAllow)
            .syscalls(entries)
            .build()
            .unwrap()
    };
    let profile = many(300);
    let program = compile(&profile).unwrap();
    for (number, value) in [(0, 0), (0, 299), (16, 299), (16, 300), (1, 5), (300, 5)] {
        let call = Call {
            number,
            arch: ARCH_X86_64,
            arguments: [value; 6],
        };
        assert_eq!(program.answer(&call), Some(naive(&profile, &call)));
    }
    assert!(matches!(compile(&many(1000)), Err(Error::TooLong(_))));
}

#[test]
fn wrong_profiles_are_refused() {
    let entry = |action, index: usize, errno: Option<u32>| {
        let condition = LinuxSeccompArgBuilder::default().index(index).value(1_u64);
        let condition = condition.op(LinuxSeccompOperator::ScmpCmpEq).build();
        let builder = LinuxSyscallBuilder::default().names(vec!["write".to_owned()]);
        let mut builder = builder.action(action).args(vec![condition.unwrap()]);
        if let Some(errno) = errno {
            builder = builder.errno_ret(errno);
        }
        builder.build().unwrap()
    };
    let of = |default, entry: LinuxSyscall| {
        let builder = LinuxSeccompBuilder::default().default_action(default);
        compile(&builder.syscalls(vec![entry]).build().unwrap()).unwrap_err()
    };
    use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno, ScmpActNotify};
    assert!(matches!(
        of(ScmpActErrno, entry(ScmpActAllow, 6, None)),
        Error::Index { .. }
    ));
    assert!(matches!(
        of(ScmpActErrno, entry(ScmpActAllow, 0, Some(1))),
        Error::NoErrno { .. }
    ));
    assert_eq!(
        of(ScmpActNotify, entry(ScmpActAllow, 0, None)),
        Error::NotifyDefault
    );
    assert!(matches!(
        of(ScmpActErrno, entry(ScmpActNotify, 0, None)),
        Error::NotifyWrite { .. }
    ));
}
