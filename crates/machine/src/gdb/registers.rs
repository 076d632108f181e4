//! Between [`CpuState`] and gdb's register file.

use croft_engine::CpuState;
use croft_engine::state::SegmentIndex;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

/// gdb's order of the general registers, as indices of
/// [`CpuState::registers`]: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8–R15.
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];

// Offsets in the legacy region of the XSAVE area (Intel SDM vol. 1, 10.5.1).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FCS: usize = 12;
const FDP: usize = 16;
const FDS: usize = 20;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const SLOT: usize = 16;
/// XSTATE_BV in the XSAVE header: which components are not in their initial
/// state.
const XSTATE_BV: usize = 512;
/// x87 and SSE.
const LEGACY_COMPONENTS: u8 = 0b11;
/// Only these RFLAGS bits exist; bit 1 is always set.
const RFLAGS_WRITABLE: u64 = 0x3F_7FD5;
const RFLAGS_FIXED: u64 = 2;

fn bytes<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    let there = area.get(at..).and_then(|rest| rest.first_chunk());
    there.copied().unwrap_or([0; N])
}

fn half(area: &[u8], at: usize) -> u32 {
    u16::from_le_bytes(bytes(area, at)).into()
}

fn word(area: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(area, at))
}

/// The full tag word: two bits a register, 3 for empty. The XSAVE area keeps
/// one bit each.
fn tag_word(abridged: u8) -> u32 {
    (0..8).fold(0, |word, register| {
        let empty = abridged >> register & 1 == 0;
        word | (u32::from(empty) * 3) << (2 * register)
    })
}

/// What gdb sees.
pub fn to_gdb(state: &CpuState) -> X86_64CoreRegs {
    let selector = |index: SegmentIndex| u32::from(state.segments[index as usize].selector);
    let area = &state.xsave;
    let mut registers = X86_64CoreRegs {
        rip: state.rip,
        eflags: state.rflags as u32,
        mxcsr: word(area, MXCSR),
        ..X86_64CoreRegs::default()
    };
    for (slot, index) in registers.regs.iter_mut().zip(ORDER) {
        *slot = state.registers[index];
    }
    registers.segments.cs = selector(SegmentIndex::Cs);
    registers.segments.ss = selector(SegmentIndex::Ss);
    registers.segments.ds = selector(SegmentIndex::Ds);
    registers.segments.es = selector(SegmentIndex::Es);
    registers.segments.fs = selector(SegmentIndex::Fs);
    registers.segments.gs = selector(SegmentIndex::Gs);
    registers.fpu.fctrl = half(area, FCW);
    registers.fpu.fstat = half(area, FSW);
    registers.fpu.ftag = tag_word(bytes::<1>(area, FTW)[0]);
    registers.fpu.fop = half(area, FOP);
    registers.fpu.fioff = word(area, FIP);
    registers.fpu.fiseg = half(area, FCS);
    registers.fpu.fooff = word(area, FDP);
    registers.fpu.foseg = half(area, FDS);
    for (index, slot) in registers.st.iter_mut().enumerate() {
        *slot = bytes(area, ST + index * SLOT);
    }
    for (index, slot) in registers.xmm.iter_mut().enumerate() {
        *slot = u128::from_le_bytes(bytes(area, XMM + index * SLOT));
    }
    registers
}

/// Takes over what gdb changed. Segment registers stay as they are: gdb knows
/// nothing of their hidden parts.
pub fn from_gdb(registers: &X86_64CoreRegs, state: &mut CpuState) {
    for (value, index) in registers.regs.iter().zip(ORDER) {
        state.registers[index] = *value;
    }
    state.rip = registers.rip;
    state.rflags = u64::from(registers.eflags) & RFLAGS_WRITABLE | RFLAGS_FIXED;
    let before = to_gdb(state);
    let same = before.st == registers.st
        && before.xmm == registers.xmm
        && before.mxcsr == registers.mxcsr
        && before.fpu == registers.fpu;
    let area = &mut state.xsave;
    if same || area.len() <= XSTATE_BV {
        return;
    }
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(FCW, &(registers.fpu.fctrl as u16).to_le_bytes());
    put(FSW, &(registers.fpu.fstat as u16).to_le_bytes());
    let used = (0..8).filter(|register| registers.fpu.ftag >> (2 * register) & 3 != 3);
    put(FTW, &[used.fold(0, |tags, register| tags | 1 << register)]);
    put(MXCSR, &registers.mxcsr.to_le_bytes());
    for (index, value) in registers.st.iter().enumerate() {
        put(ST + index * SLOT, value);
    }
    for (index, value) in registers.xmm.iter().enumerate() {
        put(XMM + index * SLOT, &value.to_le_bytes());
    }
    area[XSTATE_BV] |= LEGACY_COMPONENTS;
}
