//! One vCPU's architectural state, laid out for the interpreter.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use croft_engine::{CpuIo, DebugControl};

use crate::block::Blocks;
use crate::decode::Scratch;
use crate::fault::Raised;
use crate::msr::Msrs;
use crate::rest::Rest;
use crate::shared::{Shared, VcpuShared};
use crate::statistics::Counting;
use crate::tlb::{AccessMode, Tlb};
use crate::translate::{Home, Hot, Lockstep, Translator};
use crate::vector::VectorState;

/// Index in [`Cpu::regs`] of a register that always reads zero: the base or
/// index of an address that has none.
pub const ZERO: u8 = 16;
/// Index in [`Cpu::regs`] of the instruction pointer. While a block runs it
/// is the address of the block's first instruction.
pub const RIP: u8 = 17;

#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
}

/// RFLAGS bits.
#[allow(missing_docs)]
pub mod flag {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0 bits.
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[allow(missing_docs)]
pub mod cr4 {
    #[cfg(test)]
    pub const VME: u64 = 1 << 0;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// IA32_EFER bits.
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// Segment numbers in encoding order; indices of [`Cpu::segs`].
#[allow(missing_docs)]
pub mod seg {
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
}

/// Segment attributes ([`Segment::attr`]), in the layout of descriptor bits
/// 55:40 (as VMX access rights).
#[allow(missing_docs)]
pub mod attr {
    pub const TYPE: u32 = 0xF;
    /// Data: writable; code: readable.
    pub const RW: u32 = 1 << 1;
    /// Data: expands down; code: conforming.
    pub const EC: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    pub const S: u32 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const P: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    /// Null or unusable.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// See [`attr`].
    pub attr: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// GDTR, IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Size of the code being executed; selects how bytes are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CodeSize {
    /// 16-bit code.
    #[default]
    Bits16 = 0,
    /// 32-bit code.
    Bits32 = 1,
    /// 64-bit code.
    Bits64 = 2,
}

/// What the vCPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// Waiting for INIT.
    Uninitialized,
    /// Waiting for start-up.
    WaitForStartup,
}

/// The vCPU.
#[repr(C)]
pub struct Cpu {
    /// RAX…R15 in encoding order, then [`ZERO`] and [`RIP`].
    pub regs: [u64; 18],
    /// RFLAGS, complete at every instruction boundary.
    pub rflags: u64,
    /// Derived: what a TLB tag must contain to be usable now. See
    /// [`Tlb`] and [`Cpu::update_mode`].
    pub tlb_key: u64,
    /// Derived: the same for instruction fetches.
    pub fetch_key: u64,
    /// Derived: current privilege level (SS.DPL; 0 in real mode).
    pub cpl: u8,
    /// Derived: size of the running code.
    pub code_size: CodeSize,
    /// Derived: IA-32e mode is active (EFER.LMA).
    pub long_mode: bool,
    /// Derived: stack-pointer mask (16, 32 or 64 bits).
    pub stack_mask: u64,
    /// Something changed that makes the run loop look for events (IF, TPR,
    /// an interrupt shadow, a pending trap) before the next block.
    pub recheck: bool,
    /// One instruction at a time: something is to be looked at after each.
    pub single: bool,
    /// TF was set before the instruction that runs alone.
    pub was_stepping: bool,
    /// RF was set before the instruction that runs alone.
    pub was_resuming: bool,
    /// The local APIC (or the PIC) may have something to deliver, or its
    /// timer has moved.
    pub look: bool,
    /// Guest TSC at which a timer is due next; `u64::MAX` without one.
    pub timer_due: u64,
    /// Blocks until the timer is compared with the clock.
    pub poll_in: u32,
    /// This vCPU stored to decoded code: the running block may be stale.
    pub code_changed: Cell<bool>,
    /// Interrupts are held back until the next instruction is done.
    pub shadow: bool,
    /// As `shadow`, by MOV SS or POP SS: debug traps are held back too.
    pub shadow_ss: bool,
    /// The next instruction stands behind such a MOV SS or POP SS.
    pub after_ss: bool,
    /// Translations of linear pages.
    pub tlb: Box<Tlb>,
    /// Decoded blocks.
    pub blocks: Blocks,
    /// x87, MMX, SSE, AVX state.
    pub vector: Box<VectorState>,
    /// The exception being raised; meaningful after an `Err(Fault)`.
    pub raised: Raised,
    /// The I/O callback while `run` is active.
    pub io: Option<std::ptr::NonNull<dyn CpuIo>>,
    /// The partition.
    pub shared: Arc<Shared>,
    /// This vCPU's part of the partition.
    pub own: Arc<VcpuShared>,
    /// vCPU index = APIC id.
    pub index: u32,

    /// Segment registers by [`seg`].
    pub segs: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table base and PCID.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PAE page-directory pointers, loaded by writes to CR3.
    pub pdpte: [u64; 4],
    /// DR0–DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6 bits collected by data breakpoints of the running instruction.
    pub debug_hits: u64,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Executing, halted, waiting.
    pub activity: Activity,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI is waiting to be delivered.
    pub nmi_pending: bool,
    /// An exception restored from a saved state, to deliver first.
    pub inject: Option<Raised>,
    /// An interrupt vector restored from a saved state, already acknowledged.
    pub inject_interrupt: Option<u8>,
    /// Instructions retired.
    pub retired: u64,
    /// The debugger's data breakpoints: address, length, reads too.
    pub watchpoints: Vec<(u64, u8, bool)>,
    /// A debugger's data breakpoint was hit by the running instruction.
    pub watch_hit: Option<(u64, u8, bool)>,
    /// What the debugger wants.
    pub debug: DebugControl,
    /// The debugger's code breakpoint at this address was reported: the next
    /// instruction runs.
    pub debug_resume: Option<u64>,
    /// The running instruction delivered an event or entered the kernel: no
    /// single-step trap follows it.
    pub step_cancelled: bool,
    /// RIP stands at a repeated instruction that has done some of its
    /// iterations: what comes in between pushes RF.
    pub between_iterations: bool,
    /// What translated code keeps here.
    pub hot: Hot,
    /// Where blocks are decoded.
    pub scratch: Scratch,
    /// How much it sleeps.
    pub rest: Rest,
    /// Counts, if somebody wants to know.
    pub counting: Option<Box<Counting>>,
    /// Makes translated code, unless everything is interpreted.
    pub translator: Option<Box<Translator>>,
    /// The next block must be interpreted, once.
    pub interpret_next: bool,
    /// Runs every block twice and compares, where that is wanted.
    pub lockstep: Option<Box<Lockstep>>,
    /// What the interpreter does is taken back: it takes note of its stores,
    /// and nobody else is told of them.
    pub recording: bool,
}

impl Cpu {
    /// vCPU `index` of a partition at power-on.
    pub fn power_up(shared: Arc<Shared>, index: u32, own: Arc<VcpuShared>) -> Home {
        let region = own.clone();
        let cpu = Cpu {
            regs: [0; 18],
            rflags: flag::FIXED,
            tlb_key: 0,
            fetch_key: 0,
            cpl: 0,
            code_size: CodeSize::Bits16,
            long_mode: false,
            stack_mask: 0xFFFF,
            recheck: true,
            single: false,
            was_stepping: false,
            was_resuming: false,
            look: true,
            timer_due: u64::MAX,
            poll_in: 0,
            code_changed: Cell::new(false),
            shadow: false,
            shadow_ss: false,
            after_ss: false,
            tlb: Tlb::new(),
            blocks: Blocks::default(),
            vector: Box::new(VectorState::new()),
            raised: Raised::default(),
            io: None,
            shared,
            own,
            index,
            segs: [Segment::default(); 6],
            tr: Segment::default(),
            ldtr: Segment::default(),
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            debug_hits: 0,
            msrs: Msrs::default(),
            activity: Activity::Running,
            nmi_blocked: false,
            nmi_pending: false,
            inject: None,
            inject_interrupt: None,
            retired: 0,
            watchpoints: Vec::new(),
            watch_hit: None,
            debug: DebugControl::default(),
            debug_resume: None,
            step_cancelled: false,
            between_iterations: false,
            hot: Hot::default(),
            scratch: Scratch::default(),
            rest: Rest::new(Instant::now()),
            counting: None,
            translator: None,
            interpret_next: false,
            lockstep: None,
            recording: false,
        };
        let mut cpu = Home::new(cpu, region);
        cpu.power_on();
        cpu
    }

    /// The guest's TSC as this vCPU reads it.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.shared.clock.tsc().wrapping_add(self.msrs.tsc_adjust)
    }

    /// The 64-bit register `index` (0–15).
    #[inline(always)]
    pub fn r64(&self, index: usize) -> u64 {
        self.regs[index & 15]
    }

    /// Writes the 64-bit register `index` (0–15).
    #[inline(always)]
    pub fn set_r64(&mut self, index: usize, value: u64) {
        self.regs[index & 15] = value;
    }

    /// Writes the low 32 bits of a register and clears the rest.
    #[inline(always)]
    pub fn set_r32(&mut self, index: usize, value: u32) {
        self.regs[index & 15] = u64::from(value);
    }

    /// Writes the low 16 bits of a register.
    #[inline(always)]
    pub fn set_r16(&mut self, index: usize, value: u16) {
        let reg = &mut self.regs[index & 15];
        *reg = *reg & !0xFFFF | u64::from(value);
    }

    /// Instruction pointer: of the block's start while one runs.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.regs[RIP as usize]
    }

    /// Sets the instruction pointer.
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[RIP as usize] = rip;
    }

    /// Protected mode is on.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Virtual-8086 mode is on.
    #[inline(always)]
    pub fn vm86(&self) -> bool {
        self.rflags & flag::VM != 0
    }

    /// Real or virtual-8086 mode: selectors are paragraph numbers.
    #[inline(always)]
    pub fn real_or_vm86(&self) -> bool {
        !self.protected() || self.vm86()
    }

    /// I/O privilege level.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }

    /// Running 64-bit code.
    #[inline(always)]
    pub fn code64(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// #GP(0) unless at CPL 0.
    #[inline(always)]
    pub fn require_cpl0(&mut self) -> crate::fault::Exec {
        if self.cpl != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Under which rules data accesses of the running code are made.
    fn data_mode(&self) -> AccessMode {
        let user = self.cpl == 3;
        let alignment = user && self.cr0 & cr0::AM != 0 && self.rflags & flag::AC != 0;
        if alignment || self.recording || self.data_breakpoints() {
            AccessMode::Slow
        } else if user {
            AccessMode::User
        } else if self.cr4 & cr4::SMAP != 0 && self.rflags & flag::AC == 0 {
            AccessMode::SupervisorSmap
        } else {
            AccessMode::Supervisor
        }
    }

    /// DR7 (or the debugger) watches data accesses.
    pub fn data_breakpoints(&self) -> bool {
        let dr7 = self.dr7;
        !self.watchpoints.is_empty()
            || (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 1 != 0)
    }

    /// Recomputes everything derived from CR0, CR4, EFER, RFLAGS, CS and SS.
    /// Call after any change to them (arithmetic flags excepted).
    pub fn update_mode(&mut self) {
        let cs = &self.segs[seg::CS as usize];
        let ss = &self.segs[seg::SS as usize];
        self.long_mode = self.efer & efer::LMA != 0;
        self.code_size = if self.long_mode && cs.attr & attr::L != 0 {
            CodeSize::Bits64
        } else if cs.attr & attr::DB != 0 && !self.vm86() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.stack_mask = if self.code_size == CodeSize::Bits64 {
            u64::MAX
        } else if ss.attr & attr::DB != 0 {
            0xFFFF_FFFF
        } else {
            0xFFFF
        };
        self.cpl = if self.cr0 & cr0::PE == 0 {
            0
        } else if self.vm86() {
            3
        } else {
            (ss.attr >> attr::DPL_SHIFT & 3) as u8
        };
        self.tlb_key = self.tlb.key(self.data_mode());
        self.fetch_key = self.tlb.key(if self.cpl == 3 {
            AccessMode::User
        } else {
            AccessMode::Supervisor
        });
        self.recheck = true;
    }
}
