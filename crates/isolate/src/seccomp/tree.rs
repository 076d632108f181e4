//! Rules made into instructions.
//!
//! ```text
//! architecture? ── i386 ─► number? ── tree of its ranges
//!   │ x86_64
//!   ▼
//! number ≥ middle? ── a tree over ranges of numbers with the same outcome,
//!   │                 so balanced that most calls are near its root
//!   ▼
//! action, or the conditions of each rule in turn
//! ```
//!
//! A tree, because the kernel runs the filter for every number when it is put
//! on (it keeps a table of what is always allowed), and before Linux 5.11 for
//! every call that is made.

use oci_spec::runtime::LinuxSeccompOperator;

use super::bpf::{
    ABOVE, AND, ARCH, AT_LEAST, EQUAL, Instruction, JUMP, LOAD, NUMBER, RETURN, argument, compare,
    plain,
};
use super::names::X32;
use super::rules::{Abi, Condition, Numbers, Outcome, Rules};

/// `AUDIT_ARCH_X86_64` (`linux/audit.h`).
pub const ARCH_X86_64: u32 = 0xC000_003E;
/// `AUDIT_ARCH_I386`.
pub const ARCH_I386: u32 = 0x4000_0003;
/// `SECCOMP_RET_KILL_PROCESS`: the answer to an architecture that the
/// profile has not.
pub const KILL: u32 = 0x8000_0000;

/// Numbers from `first` to the next range's, with the same outcome.
#[derive(Clone, Debug)]
struct Range<'a> {
    first: u32,
    outcome: Cow<'a>,
    /// How many calls of the profile are in it.
    calls: u32,
}

/// An outcome, borrowed if it has rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cow<'a> {
    Always(u32),
    First(&'a [usize]),
}

/// Makes the program.
pub fn program(rules: &Rules) -> Vec<Instruction> {
    let of = |abi: Abi| rules.numbers.iter().find(|one| one.abi == abi);
    let mut ranges = Vec::new();
    if let Some(numbers) = of(Abi::X86_64) {
        add(&mut ranges, rules, numbers, 0);
    }
    match of(Abi::X32) {
        Some(numbers) => add(&mut ranges, rules, numbers, X32),
        None => {
            push(&mut ranges, X32, Cow::Always(KILL), 0);
            // No call: a tracer has taken it away (ptrace(2)).
            push(&mut ranges, u32::MAX, Cow::Always(rules.newer), 0);
        }
    }
    let native = tree(&ranges, rules, Width::Whole);
    let mut program = vec![
        plain(LOAD, ARCH),
        compare(EQUAL, ARCH_X86_64, 1, 0),
        plain(JUMP, length(&native).saturating_add(1)),
        plain(LOAD, NUMBER),
    ];
    program.extend(native);
    if let Some(numbers) = of(Abi::X86) {
        let mut ranges = Vec::new();
        add(&mut ranges, rules, numbers, 0);
        program.extend([
            compare(EQUAL, ARCH_I386, 1, 0),
            plain(RETURN, KILL),
            plain(LOAD, NUMBER),
        ]);
        program.extend(tree(&ranges, rules, Width::Lower));
    } else {
        program.push(plain(RETURN, KILL));
    }
    program
}

/// How much of an argument there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// 64 bits.
    Whole,
    /// 32 bits.
    Lower,
}

fn length(program: &[Instruction]) -> u32 {
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}

/// Adds the ranges of an architecture, whose numbers begin with `start`.
fn add<'a>(ranges: &mut Vec<Range<'a>>, rules: &Rules, numbers: &'a Numbers, start: u32) {
    let default = Cow::Always(rules.default);
    push(ranges, start, default, 0);
    let mut next = start;
    for (number, outcome) in &numbers.calls {
        if *number > next {
            push(ranges, next, default, 0);
        }
        let outcome = match outcome {
            Outcome::Always(action) => Cow::Always(*action),
            Outcome::First(rules) => Cow::First(rules),
        };
        push(ranges, *number, outcome, 1);
        next = number.saturating_add(1);
    }
    push(ranges, next, default, 0);
    let newer = numbers.greatest.map_or(start, |one| one.saturating_add(1));
    push(ranges, newer.max(start), Cow::Always(rules.newer), 0);
}

/// Adds a range, or lets the last one go on.
fn push<'a>(ranges: &mut Vec<Range<'a>>, first: u32, outcome: Cow<'a>, calls: u32) {
    match ranges.last_mut() {
        // It turned out to be empty.
        Some(last) if last.first == first && last.calls == 0 => {
            ranges.pop();
            push(ranges, first, outcome, calls);
        }
        Some(last) if last.outcome == outcome => last.calls += calls,
        _ => ranges.push(Range {
            first,
            outcome,
            calls,
        }),
    }
}

/// A tree over ranges.
fn tree(ranges: &[Range<'_>], rules: &Rules, width: Width) -> Vec<Instruction> {
    let (one, split) = match ranges {
        [] => return vec![plain(RETURN, rules.default)],
        [one] => (one, 0),
        [one, ..] => (one, middle(ranges)),
    };
    if split == 0 {
        return match one.outcome {
            Cow::Always(action) => vec![plain(RETURN, action)],
            Cow::First(which) => first_of(which, rules, width),
        };
    }
    let (left, right) = ranges.split_at(split);
    let first = right.first().map(|range| range.first).unwrap_or_default();
    let (left, right) = (tree(left, rules, width), tree(right, rules, width));
    let mut code = match u8::try_from(left.len()) {
        Ok(over) => vec![compare(AT_LEAST, first, over, 0)],
        // A comparison jumps over 255 at most.
        Err(_) => vec![compare(AT_LEAST, first, 0, 1), plain(JUMP, length(&left))],
    };
    code.extend(left);
    code.extend(right);
    code
}

/// Where to split: both sides have about as many calls.
fn middle(ranges: &[Range<'_>]) -> usize {
    let weight = |range: &Range<'_>| u64::from(range.calls) + 1;
    let all: u64 = ranges.iter().map(weight).sum();
    let mut before = 0;
    for (index, range) in ranges.iter().enumerate() {
        let with = before + weight(range);
        if with * 2 >= all {
            // Which side this one is better on.
            let split = match all - before * 2 < with * 2 - all {
                true => index,
                false => index + 1,
            };
            return split.clamp(1, ranges.len() - 1);
        }
        before = with;
    }
    1
}

/// The action of the first rule that holds, or the default.
fn first_of(which: &[usize], rules: &Rules, width: Width) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in which.iter().filter_map(|rule| rules.rules.get(*rule)) {
        // From its end: what fails has to know how much it goes over.
        let mut all = vec![plain(RETURN, rule.action)];
        for condition in rule.conditions.iter().rev() {
            // At most 6 conditions of 5 instructions.
            let over = u8::try_from(all.len()).unwrap_or(u8::MAX);
            let mut code = test(condition, over, width);
            code.extend(all);
            all = code;
        }
        code.extend(all);
    }
    code.push(plain(RETURN, rules.default));
    code
}

/// Goes on behind itself if the condition holds, and `over` further if not.
fn test(condition: &Condition, over: u8, width: Width) -> Vec<Instruction> {
    use LinuxSeccompOperator::{
        ScmpCmpEq, ScmpCmpGe, ScmpCmpGt, ScmpCmpLe, ScmpCmpLt, ScmpCmpMaskedEq, ScmpCmpNe,
    };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    let lower = argument(condition.index);
    let upper = lower + 4;
    let wide = width == Width::Whole;
    let mut code = Vec::with_capacity(6);
    match condition.operator {
        ScmpCmpEq => {
            if wide {
                code.push(plain(LOAD, upper));
                code.push(compare(EQUAL, high, 0, over + 2));
            }
            code.push(plain(LOAD, lower));
            code.push(compare(EQUAL, low, 0, over));
        }
        ScmpCmpNe => {
            if wide {
                code.push(plain(LOAD, upper));
                code.push(compare(EQUAL, high, 0, 2));
            }
            code.push(plain(LOAD, lower));
            code.push(compare(EQUAL, low, over, 0));
        }
        ScmpCmpGt | ScmpCmpGe => {
            let last = match condition.operator {
                ScmpCmpGt => ABOVE,
                _ => AT_LEAST,
            };
            if wide {
                code.push(plain(LOAD, upper));
                code.push(compare(ABOVE, high, 3, 0));
                code.push(compare(EQUAL, high, 0, over + 2));
            }
            code.push(plain(LOAD, lower));
            code.push(compare(last, low, 0, over));
        }
        ScmpCmpLt | ScmpCmpLe => {
            let last = match condition.operator {
                ScmpCmpLt => AT_LEAST,
                _ => ABOVE,
            };
            if wide {
                code.push(plain(LOAD, upper));
                code.push(compare(ABOVE, high, over + 3, 0));
                code.push(compare(EQUAL, high, 0, 2));
            }
            code.push(plain(LOAD, lower));
            code.push(compare(last, low, over, 0));
        }
        ScmpCmpMaskedEq => {
            let (high_two, low_two) = halves(condition.value_two);
            if wide && (high, high_two) != (0, 0) {
                code.push(plain(LOAD, upper));
                code.push(plain(AND, high));
                code.push(compare(EQUAL, high_two, 0, over + 3));
            }
            code.push(plain(LOAD, lower));
            code.push(plain(AND, low));
            code.push(compare(EQUAL, low_two, 0, over));
        }
    }
    code
}
