//! The first vCPU's registers at a kernel's entry, as a change of its reset
//! state, so that they hold for every engine.

use croft_engine::state::{CpuState, MpState, MsrState, SegmentIndex, SegmentState, TableState};
use croft_engine::{EngineError, Vcpu};

use crate::memory_map::{BOOT_GDT, PAGE_TABLES};

/// Selectors in [`GDT`]; the 64-bit boot protocol demands 0x10 and 0x18
/// (boot.rst, "64-bit Boot Protocol").
const CODE_32: u16 = 0x08;
const CODE_64: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Flat descriptors (Intel SDM vol. 3, 3.4.5): null, 32-bit code, 64-bit
/// code, data, and a busy 32-bit TSS of 104 bytes with an upper half of
/// zeros, so that it serves both modes.
pub const GDT: [u64; 6] = [
    0,
    0x00CF_9B00_0000_FFFF,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x0000_8B00_0000_0067,
    0,
];

// Access rights as in [`SegmentState::attributes`].
const RIGHTS_CODE_32: u32 = 0xC09B;
const RIGHTS_CODE_64: u32 = 0xA09B;
const RIGHTS_DATA: u32 = 0xC093;
const RIGHTS_TASK: u32 = 0x008B;

/// CR0: protection on; ET is always set.
const CR0_PROTECTED: u64 = 0x11;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const MSR_EFER: u32 = 0xC000_0080;
/// EFER.LME and EFER.LMA.
const EFER_LONG: u64 = 1 << 8 | 1 << 10;
/// RFLAGS with nothing but its fixed bit.
const RFLAGS: u64 = 2;

const RAX: usize = 0;
const RBX: usize = 3;
const RSI: usize = 6;

/// The mode in which a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode, flat, without paging.
    Protected,
    /// 64-bit mode on identity page tables.
    Long,
}

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The mode.
    pub mode: Mode,
    /// RIP.
    pub entry: u64,
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
}

impl Boot {
    /// Puts a vCPU that was just reset at the kernel's entry.
    pub fn enter(&self, vcpu: &mut dyn Vcpu) -> Result<(), EngineError> {
        let mut state = vcpu.save()?;
        self.apply(&mut state);
        vcpu.restore(&state)
    }

    /// Changes the first vCPU's reset state into the state at entry.
    pub fn apply(&self, state: &mut CpuState) {
        let flat = |selector, attributes| SegmentState {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
        };
        state.registers = [0; 16];
        state.registers[RAX] = self.rax;
        state.registers[RBX] = self.rbx;
        state.registers[RSI] = self.rsi;
        state.rip = self.entry;
        state.rflags = RFLAGS;
        state.segments = [flat(DATA, RIGHTS_DATA); 6];
        state.segments[SegmentIndex::Cs as usize] = match self.mode {
            Mode::Protected => flat(CODE_32, RIGHTS_CODE_32),
            Mode::Long => flat(CODE_64, RIGHTS_CODE_64),
        };
        state.tr = SegmentState {
            selector: TASK,
            base: 0,
            limit: 0x67,
            attributes: RIGHTS_TASK,
        };
        state.gdtr = TableState {
            base: BOOT_GDT,
            limit: (GDT.len() * 8 - 1) as u16,
        };
        state.idtr = TableState::default();
        match self.mode {
            Mode::Protected => {
                (state.cr0, state.cr3, state.cr4) = (CR0_PROTECTED, 0, 0);
                set_efer(state, 0);
            }
            Mode::Long => {
                state.cr0 = CR0_PROTECTED | CR0_PAGING;
                state.cr3 = PAGE_TABLES;
                state.cr4 = CR4_PAE;
                set_efer(state, EFER_LONG);
            }
        }
        state.mp_state = MpState::Running;
    }
}

fn set_efer(state: &mut CpuState, value: u64) {
    let msrs = &mut state.msrs;
    match msrs.binary_search_by_key(&MSR_EFER, |msr| msr.index) {
        Ok(at) => msrs[at].value = value,
        Err(at) => msrs.insert(
            at,
            MsrState {
                index: MSR_EFER,
                value,
            },
        ),
    }
}
