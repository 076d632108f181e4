//! Guest exceptions raised while an instruction executes.

use crate::cpu::Cpu;

/// Says that an exception was raised; what it is stands in
/// [`Cpu::raised`]. Empty, so that `Exec<T>` costs no more than `Option<T>`.
#[derive(Debug)]
pub struct Fault;

/// What an instruction or a part of it returns.
pub type Exec<T = ()> = Result<T, Fault>;

/// An exception: vector, error code, and what else delivery needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// Vector 0–31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// Faulting linear address of a page fault (to CR2).
    pub cr2: u64,
    /// DR6 bits of a debug exception.
    pub dr6: u64,
    /// A #GP(0) for a non-canonical address: it is #SS(0) when the access
    /// went through SS.
    pub non_canonical: bool,
    /// A trap: RIP already stands after the instruction.
    pub trap: bool,
}

/// Exception vectors (SDM vol. 3, table 6-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

impl Cpu {
    /// Raises an exception without an error code.
    #[cold]
    pub fn raise(&mut self, vector: u8) -> Fault {
        self.raised = Raised {
            vector,
            ..Raised::default()
        };
        Fault
    }

    /// Raises an exception with an error code.
    #[cold]
    pub fn raise_code(&mut self, vector: u8, error: u32) -> Fault {
        self.raised = Raised {
            vector,
            error: Some(error),
            ..Raised::default()
        };
        Fault
    }

    /// #GP(`error`).
    #[cold]
    pub fn gp(&mut self, error: u32) -> Fault {
        self.raise_code(vector::GP, error)
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Fault {
        self.raise(vector::UD)
    }

    /// #NM.
    #[cold]
    pub fn nm(&mut self) -> Fault {
        self.raise(vector::NM)
    }

    /// #GP(0), or #SS(0) where the access went through SS, for a
    /// non-canonical address.
    #[cold]
    pub fn non_canonical(&mut self) -> Fault {
        self.raised = Raised {
            vector: vector::GP,
            error: Some(0),
            non_canonical: true,
            ..Raised::default()
        };
        Fault
    }

    /// #PF at `address`.
    #[cold]
    pub fn page_fault(&mut self, address: u64, error: u32) -> Fault {
        self.raised = Raised {
            vector: vector::PF,
            error: Some(error),
            cr2: address,
            ..Raised::default()
        };
        Fault
    }
}
