//! The debugging part of the seam: what a gdb stub needs of an engine.

/// What kind of access a breakpoint or translation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// A breakpoint set from outside; the guest does not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// Stop before the instruction at this linear address executes.
    Code(u64),
    /// Stop after a write (or a read too) to these bytes, linear.
    Data {
        /// First linear address.
        address: u64,
        /// 1, 2, 4 or 8 bytes.
        len: u8,
        /// Reads stop too.
        reads: bool,
    },
}

/// What the debugger wants of one vCPU's next runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after one instruction.
    pub single_step: bool,
    /// Breakpoints; at most four of each kind are portable to hardware.
    pub breakpoints: Vec<Breakpoint>,
}

/// Why a vCPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// One instruction was executed.
    Step,
    /// A breakpoint was reached.
    Breakpoint(Breakpoint),
}

/// A translated virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub physical: u64,
    /// Writable at CPL 0.
    pub writable: bool,
    /// Executable.
    pub executable: bool,
    /// Accessible from CPL 3.
    pub user: bool,
}
