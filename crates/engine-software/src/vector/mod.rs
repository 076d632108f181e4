//! x87, MMX, SSE and AVX state, and the instructions that save and restore it.
//!
//! | part | where |
//! |---|---|
//! | x87/MMX registers, control, status and tag word | [`VectorState::x87`], an FXSAVE64 image that host stubs load and store |
//! | last x87 instruction and operand, opcode | [`VectorState::fip`], [`VectorState::fdp`], [`VectorState::fop`]; the image's own fields hold stubs' addresses |
//! | XMM0–15 with the upper halves of YMM0–15 | [`VectorState::ymm`] |
//! | MXCSR | [`VectorState::mxcsr`] |
//!
//! [`legacy`] has FXSAVE, FXRSTOR and the x87 environments, [`xsave`] the
//! XSAVE family.

#![allow(unsafe_code)]

pub mod legacy;
pub mod xsave;

use std::arch::asm;

use thiserror::Error;

/// Length of the legacy region and of the XSAVE header behind it
/// (SDM vol. 1, 13.4.1 and 13.4.2).
pub const LEGACY: usize = 512;
/// Offset of the AVX component in the standard format.
pub const AVX_OFFSET: usize = 576;
/// Length of the AVX component: 16 upper halves.
pub const AVX_SIZE: usize = 256;

/// XCR0 and XSTATE_BV bits of the state components held here.
pub mod component {
    /// x87 and MMX.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// All of them.
    pub const ALL: u64 = X87 | SSE | AVX;
}

/// MXCSR after reset: all exceptions masked.
pub const MXCSR_DEFAULT: u32 = 0x1F80;
/// MXCSR bits that may be set (with DAZ); FXSAVE reports it to the guest.
pub const MXCSR_MASK: u32 = 0xFFFF;

/// Offsets in the FXSAVE image (SDM vol. 1, table 10-2).
pub(crate) mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}

/// An XSAVE image that cannot be loaded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum XsaveError {
    /// Shorter than what its header announces.
    #[error("XSAVE image of {len} bytes is too short, {need} are needed; save the state again")]
    Short {
        /// Bytes there are.
        len: usize,
        /// Bytes there must be.
        need: usize,
    },
    /// Has components that this engine does not hold.
    #[error(
        "XSAVE image has state components {0:#x} that the software engine does not have; use a CPU model without them"
    )]
    Component(u64),
    /// Compacted, where the standard format is agreed on.
    #[error("XSAVE image is in compacted format; convert it to the standard format")]
    Compacted,
}

/// The state. Stubs address its fields, so its layout is fixed.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct VectorState {
    /// FXSAVE64 image of the x87/MMX state. Only the control, status and tag
    /// words and the registers count; the rest holds what the last stub left.
    pub x87: [u8; LEGACY],
    /// YMM0–15; the low halves are XMM0–15.
    pub ymm: [[u8; 32]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// MXCSR that Rust code runs with; a constant that stubs reload.
    pub(crate) host_mxcsr: u32,
    /// Offset of the last x87 instruction that is not a control instruction.
    pub fip: u64,
    /// Offset of its memory operand.
    pub fdp: u64,
    /// Its opcode, 11 bits.
    pub fop: u16,
}

impl Default for VectorState {
    fn default() -> Self {
        Self::new()
    }
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

impl VectorState {
    /// The state after power-on (SDM vol. 3, table 10-1).
    pub fn new() -> Self {
        let mut state = VectorState {
            x87: [0; LEGACY],
            ymm: [[0; 32]; 16],
            mxcsr: MXCSR_DEFAULT,
            host_mxcsr: MXCSR_DEFAULT,
            fip: 0,
            fdp: 0,
            fop: 0,
        };
        // RESET leaves FCW 0040H and the tags zero-valued; INIT and the
        // instructions below use 037FH. Images that stubs load need a valid
        // MXCSR whatever else they hold.
        state.init_x87();
        state.x87[at::FCW..at::FCW + 2].copy_from_slice(&0x0040u16.to_le_bytes());
        state.x87[at::FTW] = 0xFF;
        state.normalise();
        state
    }

    /// Returns to the power-on state.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// The initial x87 state, as FNINIT and XRSTOR make it. FNINIT keeps the
    /// data registers (see [`VectorState::fninit`]).
    pub fn init_x87(&mut self) {
        self.x87 = [0; LEGACY];
        self.x87[at::MXCSR..at::MXCSR + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
        self.fninit();
    }

    /// FNINIT: control, status and tag words and the pointers; register
    /// contents stay where they are (and become ST0–7 with TOP 0).
    pub fn fninit(&mut self) {
        let top = self.top();
        let mut registers = [0; 128];
        for n in 0..8 {
            let from = at::ST + 16 * ((n + 8 - top) & 7);
            registers[16 * n..16 * n + 16].copy_from_slice(&self.x87[from..from + 16]);
        }
        self.x87[at::ST..at::ST + 128].copy_from_slice(&registers);
        self.x87[at::FCW..at::FCW + 2].copy_from_slice(&0x037Fu16.to_le_bytes());
        self.x87[at::FSW..at::FSW + 2].fill(0);
        self.x87[at::FTW] = 0;
        (self.fip, self.fdp, self.fop) = (0, 0, 0);
    }

    /// Control word.
    pub fn fcw(&self) -> u16 {
        get16(&self.x87, at::FCW)
    }

    /// Status word.
    pub fn fsw(&self) -> u16 {
        get16(&self.x87, at::FSW)
    }

    /// Number of the physical register that is ST0.
    fn top(&self) -> usize {
        usize::from(self.fsw() >> 11 & 7)
    }

    /// An unmasked x87 exception is pending (FSW.ES).
    #[inline(always)]
    pub fn x87_pending(&self) -> bool {
        self.x87[at::FSW] & 0x80 != 0
    }

    /// Unmasked exception flags of the status word.
    pub(crate) fn x87_unmasked(&self) -> u16 {
        self.fsw() & !self.fcw() & 0x3F
    }

    /// What a touch of an MMX register does to the x87 state: TOP becomes 0
    /// and every tag valid (SDM vol. 1, 9.5.1).
    pub(crate) fn enter_mmx(&mut self) {
        let (fcw, fsw) = (self.fcw(), self.fsw());
        let pointers = (self.fip, self.fdp, self.fop);
        self.fninit();
        (self.fip, self.fdp, self.fop) = pointers;
        self.x87[at::FCW..at::FCW + 2].copy_from_slice(&fcw.to_le_bytes());
        self.x87[at::FSW..at::FSW + 2].copy_from_slice(&(fsw & !(7 << 11)).to_le_bytes());
        self.x87[at::FTW] = 0xFF;
    }

    /// MMX register `n`; [`VectorState::enter_mmx`] was called.
    pub(crate) fn mmx(&self, n: usize) -> u64 {
        get64(&self.x87, at::ST + 16 * (n & 7))
    }

    /// XMM register `n`.
    #[inline(always)]
    pub fn xmm(&self, n: usize) -> u128 {
        let ymm = &self.ymm[n & 15];
        let mut low = [0; 16];
        low.copy_from_slice(&ymm[..16]);
        u128::from_le_bytes(low)
    }

    /// Writes XMM register `n`; the upper half of the YMM register stays.
    #[cfg(test)]
    pub fn set_xmm(&mut self, n: usize, value: u128) {
        self.ymm[n & 15][..16].copy_from_slice(&value.to_le_bytes());
    }

    /// Clears the upper half of YMM register `n`, as VEX.128 writes do.
    #[inline(always)]
    pub fn clear_upper(&mut self, n: usize) {
        self.ymm[n & 15][16..].fill(0);
    }

    /// Makes the x87 image what the processor makes of it when it is loaded:
    /// ES and B follow the unmasked exceptions, fixed bits have their values.
    pub(crate) fn normalise(&mut self) {
        let image = self.x87.as_mut_ptr();
        let host_mxcsr = &raw const self.host_mxcsr;
        // SAFETY: `x87` is 512 bytes, 16-aligned as the first field of a
        // 64-aligned structure, and its MXCSR field holds a valid value. The
        // x87 and SSE registers it loads are declared clobbered; FNINIT and
        // LDMXCSR leave the control state that Rust expects.
        unsafe {
            asm!(
                "fxrstor64 [{image}]",
                "fxsave64 [{image}]",
                "fninit",
                "ldmxcsr [{mxcsr}]",
                image = in(reg) image,
                mxcsr = in(reg) host_mxcsr,
                clobber_abi("sysv64"),
            );
        }
    }

    /// Components that are not in their initial configuration (XINUSE; the
    /// value of MXCSR does not count, SDM vol. 1, 13.6).
    pub fn xinuse(&self) -> u64 {
        let mut used = 0;
        let x87_initial = self.fcw() == 0x037F
            && self.x87[at::FSW..at::FOP].iter().all(|&b| b == 0)
            && (self.fip, self.fdp, self.fop) == (0, 0, 0)
            && (0..8).all(|n| self.x87[at::ST + 16 * n..][..10].iter().all(|&b| b == 0));
        if !x87_initial {
            used |= component::X87;
        }
        if self.ymm.iter().any(|ymm| ymm[..16].iter().any(|&b| b != 0)) {
            used |= component::SSE;
        }
        if self.ymm.iter().any(|ymm| ymm[16..].iter().any(|&b| b != 0)) {
            used |= component::AVX;
        }
        used
    }

    /// The state as an XSAVE image in standard format, with every component
    /// of `xcr0` that is held here.
    pub fn to_xsave(&self, xcr0: u64) -> Vec<u8> {
        let avx = xcr0 & component::AVX != 0;
        let mut image = vec![0; AVX_OFFSET + if avx { AVX_SIZE } else { 0 }];
        image[..at::XMM].copy_from_slice(&self.legacy_head(true));
        for (n, ymm) in self.ymm.iter().enumerate() {
            image[at::XMM + 16 * n..][..16].copy_from_slice(&ymm[..16]);
            if avx {
                image[AVX_OFFSET + 16 * n..][..16].copy_from_slice(&ymm[16..]);
            }
        }
        let held = self.xinuse() & (xcr0 | component::X87 | component::SSE);
        image[LEGACY..LEGACY + 8].copy_from_slice(&held.to_le_bytes());
        image
    }

    /// Loads an XSAVE image in standard format. Components it leaves out get
    /// their initial configuration. Reserved bits of MXCSR are dropped.
    ///
    /// # Errors
    /// [`XsaveError`]; the state is then unchanged.
    #[allow(clippy::wrong_self_convention)] // the counterpart of `to_xsave`
    pub fn from_xsave(&mut self, image: &[u8]) -> Result<(), XsaveError> {
        let short = |need| XsaveError::Short {
            len: image.len(),
            need,
        };
        if image.len() < AVX_OFFSET {
            return Err(short(AVX_OFFSET));
        }
        let held = get64(image, LEGACY);
        if get64(image, LEGACY + 8) != 0 {
            return Err(XsaveError::Compacted);
        }
        if held & !component::ALL != 0 {
            return Err(XsaveError::Component(held & !component::ALL));
        }
        let need = AVX_OFFSET + AVX_SIZE;
        if held & component::AVX != 0 && image.len() < need {
            return Err(short(need));
        }
        if held & component::X87 != 0 {
            self.load_x87(image, true);
        } else {
            self.init_x87();
        }
        self.ymm = [[0; 32]; 16];
        for (n, ymm) in self.ymm.iter_mut().enumerate() {
            if held & component::SSE != 0 {
                ymm[..16].copy_from_slice(&get::<16>(image, at::XMM + 16 * n));
            }
            if held & component::AVX != 0 {
                ymm[16..].copy_from_slice(&get::<16>(image, AVX_OFFSET + 16 * n));
            }
        }
        self.mxcsr = get32(image, at::MXCSR) & MXCSR_MASK;
        Ok(())
    }

    /// The first 160 bytes of the legacy region: x87 state, MXCSR and its
    /// mask. `long`: 64-bit instruction and data pointers (REX.W forms),
    /// else 32-bit ones with selectors, which this processor leaves zero.
    pub(crate) fn legacy_head(&self, long: bool) -> [u8; at::XMM] {
        let mut head = [0; at::XMM];
        head[..at::FOP].copy_from_slice(&self.x87[..at::FOP]);
        head[at::FOP..at::FIP].copy_from_slice(&self.fop.to_le_bytes());
        let width = if long { 8 } else { 4 };
        head[at::FIP..at::FIP + width].copy_from_slice(&self.fip.to_le_bytes()[..width]);
        head[at::FDP..at::FDP + width].copy_from_slice(&self.fdp.to_le_bytes()[..width]);
        head[at::MXCSR..at::MXCSR_MASK].copy_from_slice(&self.mxcsr.to_le_bytes());
        head[at::MXCSR_MASK..at::ST].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for n in 0..8 {
            let st = at::ST + 16 * n;
            head[st..st + 10].copy_from_slice(&self.x87[st..st + 10]);
        }
        head
    }

    /// Loads the x87 state from a legacy region.
    pub(crate) fn load_x87(&mut self, region: &[u8], long: bool) {
        self.init_x87();
        self.x87[..at::FTW + 1].copy_from_slice(&get::<5>(region, 0));
        for n in 0..8 {
            let st = at::ST + 16 * n;
            self.x87[st..st + 10].copy_from_slice(&get::<10>(region, st));
        }
        self.fop = get16(region, at::FOP) & 0x7FF;
        if long {
            self.fip = get64(region, at::FIP);
            self.fdp = get64(region, at::FDP);
        } else {
            self.fip = u64::from(get32(region, at::FIP));
            self.fdp = u64::from(get32(region, at::FDP));
        }
        self.normalise();
    }
}

#[cfg(test)]
mod tests;
