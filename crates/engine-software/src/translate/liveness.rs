//! Which arithmetic flags must be right where.
//!
//! A flag is needed after an instruction if a later one reads it, or if it
//! can be seen before it is overwritten: by an exception, by the interpreter,
//! or behind the end of the block.

use iced_x86::{Instruction, RflagsBits};

use super::classify::{Class, may_keep_flags};

/// CF, PF, AF, ZF, SF and OF, in iced's bits.
pub const ALL: u32 = RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::AF
    | RflagsBits::ZF
    | RflagsBits::SF
    | RflagsBits::OF;

/// What an instruction does to the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Looked at.
    pub reads: u32,
    /// Changed.
    pub changes: u32,
    /// Changed whatever the data.
    pub kills: u32,
    /// Needed after it.
    pub after: u32,
}

impl Flags {
    /// Host flags must be the guest's before the instruction: it reads some,
    /// or lets some pass that are needed later.
    pub fn wants_host(&self) -> bool {
        self.reads != 0 || self.changes != 0 && self.after & !self.kills != 0
    }
}

/// For each instruction of a block.
pub fn analyse(block: &[(Instruction, Class)]) -> Vec<Flags> {
    let mut flags = vec![Flags::default(); block.len()];
    let mut needed = ALL;
    for ((insn, class), flags) in block.iter().zip(&mut flags).rev() {
        let modified = insn.rflags_modified() & ALL;
        *flags = Flags {
            reads: insn.rflags_read() & ALL,
            changes: modified,
            kills: if may_keep_flags(insn) { 0 } else { modified },
            after: needed,
        };
        needed = match class {
            Class::Nothing | Class::Lea => needed,
            Class::Plain {
                memory: None,
                vector: 0,
                ..
            } => needed & !flags.kills | flags.reads,
            // Everything else can raise an exception, or ends the block.
            _ => ALL,
        };
    }
    flags
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::classify::classify;
    use super::*;

    fn flags(build: impl FnOnce(&mut CodeAssembler)) -> Vec<Flags> {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a);
        let bytes = a.assemble(0).unwrap();
        let block: Vec<_> = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE)
            .into_iter()
            .map(|insn| (insn, classify(&insn, false)))
            .collect();
        analyse(&block)
    }

    #[test]
    fn flags_that_are_overwritten_are_not_needed() {
        let flags = flags(|a| {
            a.add(rcx, rdx).unwrap();
            a.mov(rdx, rcx).unwrap();
            a.sub(rcx, rdx).unwrap();
        });
        assert_eq!(flags[0].after, 0);
        assert_eq!(flags[1].after, 0);
        assert_eq!(flags[2].after, ALL);
        assert!(flags.iter().all(|flags| !flags.wants_host()));
    }

    /// INC leaves CF alone, so somebody's CF must be there.
    #[test]
    fn a_flag_that_passes_must_be_in_place() {
        let flags = flags(|a| {
            a.inc(rcx).unwrap();
            a.adc(rdx, rdx).unwrap();
        });
        assert!(flags[0].after & RflagsBits::CF != 0);
        assert!(flags[0].wants_host());
        assert!(flags[1].wants_host());
    }

    /// Whoever handles an exception sees all flags.
    #[test]
    fn an_access_needs_all_flags() {
        let flags = flags(|a| {
            a.add(rcx, rdx).unwrap();
            a.mov(rax, qword_ptr(rcx)).unwrap();
            a.sub(rcx, rdx).unwrap();
        });
        assert_eq!(flags[0].after, ALL);
    }

    /// A shift by CL may be by nothing.
    #[test]
    fn a_shift_by_a_variable_count_may_keep_flags() {
        let flags = flags(|a| {
            a.add(rdx, rdx).unwrap();
            a.shl(rdx, cl).unwrap();
            a.shl(rdx, 3).unwrap();
        });
        assert_eq!(flags[1].kills, 0);
        assert!(flags[1].changes != 0);
        assert!(flags[2].kills != 0);
    }
}
