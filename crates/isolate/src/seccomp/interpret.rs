//! Runs a filter as the kernel does: what its compiler is tested against.

use super::bpf::{ABOVE, AND, ARCH, AT_LEAST, EQUAL, Instruction, JUMP, LOAD, NUMBER, RETURN};

/// A system call: `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            NUMBER => Some(self.number),
            ARCH => Some(self.arch),
            16..64 if offset.is_multiple_of(4) => {
                let index = usize::try_from((offset - 16) / 8).ok()?;
                let whole = self.arguments.get(index)?;
                let shift = (offset % 8) * 8;
                Some((whole >> shift) as u32)
            }
            _ => None,
        }
    }
}

/// What the program answers; `None` if it is none that the kernel takes.
pub fn run(program: &[Instruction], call: &Call) -> Option<u32> {
    let mut accumulator = 0;
    let mut at = 0_usize;
    // There are no jumps backwards.
    loop {
        let one = program.get(at)?;
        at += 1;
        let holds = match one.code {
            LOAD => {
                accumulator = call.word(one.k)?;
                continue;
            }
            AND => {
                accumulator &= one.k;
                continue;
            }
            JUMP => {
                at = at.checked_add(usize::try_from(one.k).ok()?)?;
                continue;
            }
            RETURN => return Some(one.k),
            EQUAL => accumulator == one.k,
            ABOVE => accumulator > one.k,
            AT_LEAST => accumulator >= one.k,
            _ => return None,
        };
        at += usize::from(if holds { one.yes } else { one.no });
    }
}
