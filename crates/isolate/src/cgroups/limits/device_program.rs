//! The device rules of version 2: a BPF program that the kernel asks about
//! every use of a device (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux
//! `cgroup-v2.rst`, "Device controller").
//!
//! ```text
//! wanted = what is to be done
//! for each rule from the last to the first, if it is for this device:
//!     allow: wanted &= !access; nothing left: yes
//!     deny:  wanted & access: no
//! no
//! ```

use super::device_rules::Rule;

/// `struct bpf_insn` of `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the lower four bits, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Registers: 0 has the result, 1 the context at first.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const WANTED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Codes (Linux `bpf/standardization/instruction-set.rst`).
const LOAD: u8 = 0x61; // LDX | MEM | W
const MOVE: u8 = 0xB7; // ALU64 | MOV | K
const COPY: u8 = 0xBC; // ALU | MOV | X
const AND: u8 = 0x54; // ALU | AND | K
const SHIFT: u8 = 0x74; // ALU | RSH | K
const EXIT: u8 = 0x95; // JMP | EXIT
const UNLESS: u8 = 0x56; // JMP32 | JNE | K
const IF_ANY: u8 = 0x46; // JMP32 | JSET | K
const JUMP: u8 = 0x05; // JMP | JA

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate: immediate.cast_signed(),
    }
}

/// The end, with an answer.
const fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE, RESULT, 0, 0, allow as u32),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Makes the program of a list of rules.
pub fn compile(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: what and which kind in one, major, minor.
    let mut program = vec![
        instruction(LOAD, WANTED, CONTEXT, 0, 0),
        instruction(COPY, KIND, WANTED, 0, 0),
        instruction(AND, KIND, 0, 0, 0xFFFF),
        instruction(SHIFT, WANTED, 0, 0, 16),
        instruction(LOAD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = vec![(KIND, rule.kind as u32)];
        tests.extend(rule.major.map(|number| (MAJOR, number)));
        tests.extend(rule.minor.map(|number| (MINOR, number)));
        let access = rule.access.bits();
        let mut then = match rule.allow {
            true => vec![
                instruction(AND, WANTED, 0, 0, !access),
                instruction(UNLESS, WANTED, 0, 2, 0),
            ],
            false => vec![
                instruction(IF_ANY, WANTED, 0, 1, access),
                instruction(JUMP, 0, 0, 2, 0),
            ],
        };
        then.extend(answer(rule.allow));
        let count = tests.len();
        for (index, (register, value)) in tests.into_iter().enumerate() {
            // Over the tests that follow and what is done: seven at most.
            let over = (count - index - 1 + then.len()) as i16;
            program.push(instruction(UNLESS, register, 0, over, value));
        }
        program.extend(then);
    }
    program.extend(answer(false));
    program
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cgroups::limits::device_rules::{Access, Kind};

    /// Runs a program as the kernel does.
    fn run(program: &[Instruction], context: [u32; 3]) -> bool {
        let mut registers = [0_u32; 6];
        let mut at = 0_i64;
        loop {
            let one = program[usize::try_from(at).unwrap()];
            at += 1;
            let (to, from) = (usize::from(one.registers & 15), one.registers >> 4);
            let operand = one.immediate.cast_unsigned();
            let jump = i64::from(one.offset);
            match one.code {
                LOAD => registers[to] = context[usize::try_from(one.offset).unwrap() / 4],
                MOVE => registers[to] = operand,
                COPY => registers[to] = registers[usize::from(from)],
                AND => registers[to] &= operand,
                SHIFT => registers[to] >>= operand,
                UNLESS if registers[to] != operand => at += jump,
                IF_ANY if registers[to] & operand != 0 => at += jump,
                JUMP => at += jump,
                EXIT => return registers[0] == 1,
                UNLESS | IF_ANY => {}
                code => panic!("{code:#x}"),
            }
        }
    }

    /// Each bit by itself: the last rule that is for it decides.
    fn naive(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: Access) -> bool {
        access.iter().all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.kind == kind
                        && rule.major.is_none_or(|one| one == major)
                        && rule.minor.is_none_or(|one| one == minor)
                        && rule.access.contains(bit)
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    fn some_rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0_u32..3);
        let kind = prop_oneof![Just(Kind::Block), Just(Kind::Character)];
        (any::<bool>(), kind, number(), number(), 1_u32..8).prop_map(
            |(allow, kind, major, minor, access)| Rule {
                allow,
                kind,
                major,
                minor,
                access: Access::from_bits_truncate(access),
            },
        )
    }

    proptest! {
        #[test]
        fn programs_do_what_lists_say(rules in proptest::collection::vec(some_rule(), 0..12)) {
            let program = compile(&rules);
            for kind in Kind::ALL {
                for bits in 1..8 {
                    for (major, minor) in [(0, 0), (0, 1), (1, 2), (2, 2), (3, 3)] {
                        let access = Access::from_bits_truncate(bits);
                        let answer = run(&program, [bits << 16 | kind as u32, major, minor]);
                        prop_assert_eq!(answer, naive(&rules, kind, major, minor, access));
                    }
                }
            }
        }
    }
}
