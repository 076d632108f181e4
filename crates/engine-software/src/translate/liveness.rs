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
