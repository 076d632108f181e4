//! Seccomp programs of the [`table`](crate::table).

use std::collections::BTreeMap;
use std::process;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::role::{Role, Roles};
use crate::table::{COMMON, KVM, Line, SHARES, WITHOUT, WITHOUT_ERROR, When};
use crate::threads::Wants;

/// What seccompiler makes of a table.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The program of `role` in a machine that wants what `wants` says: what has
/// no line traps.
///
/// A filter stays on for threads that are made later, so the two that make
/// threads may do what those may.
pub fn program(role: Role, wants: Wants) -> Result<BpfProgram, BackendError> {
    let who = match role {
        Role::Setup => Roles::all(),
        Role::Maker => Roles::all().difference(Roles::SETUP.union(Roles::OWNER)),
        other => other.set(),
    };
    let lines = lines(wants).filter(|line| line.who.intersects(who));
    build(rules(lines)?, SeccompAction::Trap, SeccompAction::Allow)
}

/// The program that answers what is asked for and can be done without. It
/// goes in front of the others, which let those calls through.
pub fn answers() -> Result<BpfProgram, BackendError> {
    let rules = WITHOUT.iter().map(|(call, _)| (number(*call), Vec::new()));
    build(
        rules.collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(WITHOUT_ERROR as u32),
    )
}

/// The tables that apply.
fn lines(wants: Wants) -> impl Iterator<Item = &'static Line> {
    let kvm = if wants.kvm { KVM } else { &[] };
    let shares = if wants.shares { SHARES } else { &[] };
    COMMON.iter().chain(kvm).chain(shares)
}

fn number(call: syscalls::Sysno) -> i64 {
    i64::from(call.id())
}

fn rules<'a>(lines: impl Iterator<Item = &'a Line>) -> Result<Rules, BackendError> {
    let mut rules: Rules = WITHOUT
        .iter()
        .map(|(call, _)| (number(*call), Vec::new()))
        .collect();
    let mut free = Vec::new();
    for line in lines {
        let number = number(line.call);
        if matches!(line.when, When::Always) {
            free.push(number);
        }
        for condition in conditions(line.when)? {
            let rule = SeccompRule::new(vec![condition])?;
            rules.entry(number).or_default().push(rule);
        }
    }
    // One line without a condition makes all others idle; no rule at all is
    // how seccompiler says so.
    for number in free {
        rules.insert(number, Vec::new());
    }
    Ok(rules)
}

/// Any of these.
fn conditions(when: When) -> Result<Vec<SeccompCondition>, BackendError> {
    let each = |argument: u8, values: &[u64], operator: SeccompCmpOp| {
        values
            .iter()
            .map(|value| {
                let operator = operator.clone();
                SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, *value)
            })
            .collect()
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::Is(argument, values) => each(argument, values, SeccompCmpOp::Eq),
        When::Masked(argument, mask, values) => {
            each(argument, values, SeccompCmpOp::MaskedEq(mask))
        }
        When::Own(argument) => each(argument, &[process::id().into()], SeccompCmpOp::Eq),
    }
}

fn build(
    rules: Rules,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::*;

    /// What must never be in any table.
    const NEVER: [Sysno; 22] = [
        Sysno::execve,
        Sysno::execveat,
        Sysno::fork,
        Sysno::vfork,
        Sysno::ptrace,
        Sysno::process_vm_readv,
        Sysno::process_vm_writev,
        Sysno::socket,
        Sysno::socketpair,
        Sysno::connect,
        Sysno::bind,
        Sysno::listen,
        Sysno::open,
        Sysno::open_by_handle_at,
        Sysno::kill,
        Sysno::tkill,
        Sysno::mount,
        Sysno::unshare,
        Sysno::setns,
        Sysno::bpf,
        Sysno::pkey_mprotect,
        Sysno::io_uring_enter,
    ];

    const EVERYTHING: Wants = Wants {
        kvm: true,
        shares: true,
    };

    #[test]
    fn some_calls_are_nobodys() {
        for line in lines(EVERYTHING) {
            assert!(!NEVER.contains(&line.call), "{line:?}");
            assert!(!line.who.is_empty() && !line.why.is_empty(), "{line:?}");
        }
    }

    #[test]
    fn files_are_opened_for_shares_only() {
        let opens = |call: Sysno| matches!(call, Sysno::openat | Sysno::openat2);
        for line in lines(EVERYTHING).filter(|line| opens(line.call)) {
            assert_eq!(line.who, Roles::SHARE, "{line:?}");
        }
        let plain = Wants {
            shares: false,
            ..EVERYTHING
        };
        assert!(!lines(plain).any(|line| opens(line.call)));
    }

    #[test]
    fn executable_memory_is_for_setup_only() {
        for line in lines(EVERYTHING) {
            if matches!(line.call, Sysno::mmap | Sysno::mprotect) && line.who != Roles::SETUP {
                assert!(matches!(line.when, When::Masked(2, 4, [0])), "{line:?}");
            }
        }
    }

    #[test]
    fn every_role_has_a_program_that_fits() {
        // The kernel's own limit, BPF_MAXINSNS.
        const MOST: usize = 4096;
        for role in Role::ALL {
            for wants in [Wants::default(), EVERYTHING] {
                let program = program(role, wants).unwrap();
                assert!(!program.is_empty() && program.len() < MOST, "{role:?}");
            }
        }
        assert!(!answers().unwrap().is_empty());
    }
}
