//! A profile's rules, by number and architecture.
//!
//! What a profile means where the specification is silent is what it means
//! to libseccomp, which profiles are written for:
//! * a rule without conditions wins over those with, whatever their order;
//! * a rule with the default action says nothing;
//! * two conditions on one argument are rules of their own, any of which
//!   holds; conditions on different ones have to hold together;
//! * the native architecture is always in it, others than those of x86 never.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::error::Error;
use super::names;

/// An architecture's numbers of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// 64 bits.
    X86_64,
    /// 64-bit registers and 32-bit pointers: a bit in the numbers of x86_64.
    X32,
    /// 32 bits.
    X86,
}

/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
pub const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS.cast_unsigned();
/// The greatest error number (Linux `linux/err.h`, `MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
/// What else an action can carry (`SECCOMP_RET_DATA`).
const MAX_DATA: u32 = 0xFFFF;

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// How it is compared.
    pub operator: LinuxSeccompOperator,
    /// With what; the mask of a masked comparison.
    pub value: u64,
    /// With what after masking.
    pub value_two: u64,
}

/// An action under conditions that all have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// None: always.
    pub conditions: Vec<Condition>,
    /// What the filter returns.
    pub action: u32,
}

/// What is done about one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Always this.
    Always(u32),
    /// That of the first of these rules that holds, or the default.
    First(Vec<usize>),
}

/// The rules of one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of which.
    pub abi: Abi,
    /// By number, in order.
    pub calls: Vec<(u32, Outcome)>,
    /// The greatest number that the profile names, with any action.
    pub greatest: Option<u32>,
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What the filter returns where no rule holds.
    pub default: u32,
    /// What it returns for calls that are newer than the profile.
    pub newer: u32,
    /// Every rule.
    pub rules: Vec<Rule>,
    /// X86_64, then the others.
    pub numbers: Vec<Numbers>,
    /// Whether somebody is asked.
    pub asks: bool,
}

impl Rules {
    /// Reads a profile.
    pub fn new(profile: &LinuxSeccomp) -> Result<Self, Error> {
        let default_action = profile.default_action();
        if default_action == LinuxSeccompAction::ScmpActNotify {
            return Err(Error::NotifyDefault);
        }
        let default = action(default_action, profile.default_errno_ret())?;
        let mut all = Rules {
            default,
            newer: default,
            rules: Vec::new(),
            numbers: Vec::new(),
            asks: false,
        };
        if default_action == LinuxSeccompAction::ScmpActErrno {
            // A C library takes this for a reason to do without a new call,
            // and any other error for a failure.
            all.newer = NO_SUCH_CALL;
        }
        // Names with the rules that they have.
        let mut named: Vec<(&str, usize)> = Vec::new();
        let mut silent: Vec<&str> = Vec::new();
        for entry in profile.syscalls().iter().flatten() {
            let Some(first) = entry.names().first() else {
                return Err(Error::NoNames);
            };
            let value = action(entry.action(), entry.errno_ret())?;
            all.asks |= entry.action() == LinuxSeccompAction::ScmpActNotify;
            if entry.action() == LinuxSeccompAction::ScmpActNotify
                && entry.names().iter().any(|name| name == "write")
            {
                return Err(Error::NotifyWrite {
                    call: "write".to_owned(),
                });
            }
            let rules = conditions(entry, first)?;
            if value == default {
                silent.extend(entry.names().iter().map(String::as_str));
                continue;
            }
            for conditions in rules {
                let rule = all.rules.len();
                all.rules.push(Rule {
                    conditions,
                    action: value,
                });
                named.extend(entry.names().iter().map(|name| (name.as_str(), rule)));
            }
        }
        for abi in abis(profile) {
            all.add(abi, &named, &silent);
        }
        Ok(all)
    }

    fn add(&mut self, abi: Abi, named: &[(&str, usize)], silent: &[&str]) {
        let number = match abi {
            Abi::X86_64 => names::x86_64,
            Abi::X32 => names::x32,
            Abi::X86 => names::x86,
        };
        // Number, place in the profile, rule.
        let mut found: Vec<(u32, usize, usize)> = Vec::with_capacity(named.len());
        for (name, place) in named {
            found.extend(number(name).map(|number| (number, *place, *place)));
            if abi == Abi::X86
                && let Some((number, rule)) = self.multiplexed(name, *place)
            {
                found.push((number, *place, rule));
            }
        }
        found.sort_unstable();
        found.dedup();
        let silent = silent.iter().filter_map(|name| number(name)).max();
        let mut numbers = Numbers {
            abi,
            calls: Vec::new(),
            greatest: found.last().map(|(number, ..)| *number).max(silent),
        };
        for group in found.chunk_by(|one, two| one.0 == two.0) {
            let Some((number, ..)) = group.first() else {
                continue;
            };
            let rules = group.iter().filter_map(|(.., rule)| self.rules.get(*rule));
            let always = rules.into_iter().find(|rule| rule.conditions.is_empty());
            let outcome = match always {
                Some(rule) => Outcome::Always(rule.action),
                None => Outcome::First(group.iter().map(|(.., rule)| *rule).collect()),
            };
            numbers.calls.push((*number, outcome));
        }
        self.numbers.push(numbers);
    }

    /// The same rule for the call that this one can be made through.
    fn multiplexed(&mut self, name: &str, rule: usize) -> Option<(u32, usize)> {
        let (number, which) = names::multiplexed(name)?;
        let rule = self.rules.get(rule)?;
        // Its own arguments are in memory then, out of a filter's sight. A
        // rule that takes something away takes all of it there; one that
        // gives something gives nothing.
        if !rule.conditions.is_empty() && rank(rule.action) >= rank(self.default) {
            return None;
        }
        let condition = Condition {
            index: 0,
            // The upper half is a version (`ipc`).
            operator: LinuxSeccompOperator::ScmpCmpMaskedEq,
            value: 0xFFFF,
            value_two: which,
        };
        let action = rule.action;
        self.rules.push(Rule {
            conditions: vec![condition],
            action,
        });
        Some((number, self.rules.len().checked_sub(1)?))
    }
}

/// How much an action lets through: the kernel's own order
/// (seccomp(2): the least is the one that counts of several filters).
fn rank(action: u32) -> i32 {
    (action & 0xFFFF_0000).cast_signed()
}

/// What the filter returns for an action.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let errno = match (action, errno) {
        (LinuxSeccompAction::ScmpActErrno, errno) => errno.map(|errno| errno.min(MAX_ERRNO)),
        (LinuxSeccompAction::ScmpActTrace, errno) => errno.map(|errno| errno.min(MAX_DATA)),
        (_, None) => None,
        (_, Some(_)) => {
            return Err(Error::NoErrno {
                action: action.to_string(),
            });
        }
    };
    Ok(action.as_u32(errno))
}

/// The conditions of an entry: one set, or several any of which is enough.
fn conditions(entry: &LinuxSyscall, call: &str) -> Result<Vec<Vec<Condition>>, Error> {
    let arguments = entry.args().as_deref().unwrap_or_default();
    let all = arguments
        .iter()
        .map(|argument| condition(argument, call))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::new();
    let twice = !all.iter().all(|one| seen.insert(one.index));
    Ok(match twice {
        true => all.into_iter().map(|one| vec![one]).collect(),
        false => vec![all],
    })
}

fn condition(argument: &LinuxSeccompArg, call: &str) -> Result<Condition, Error> {
    let index = u8::try_from(argument.index()).ok().filter(|one| *one < 6);
    let index = index.ok_or_else(|| Error::Index {
        call: call.to_owned(),
        index: argument.index(),
    })?;
    Ok(Condition {
        index,
        operator: argument.op(),
        value: argument.value(),
        value_two: argument.value_two().unwrap_or_default(),
    })
}

fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let said = profile.architectures().as_deref().unwrap_or_default();
    let mut abis = vec![Abi::X86_64];
    for (arch, abi) in [(Arch::ScmpArchX32, Abi::X32), (Arch::ScmpArchX86, Abi::X86)] {
        if said.contains(&arch) {
            abis.push(abi);
        }
    }
    abis
}
