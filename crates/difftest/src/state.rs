//! What goes into a test and what comes out of it.

/// Bytes of the XSAVE area: legacy region, header, upper halves of YMM.
pub const XSAVE: usize = 832;
/// Its header.
const HEADER: usize = 512;
/// Its upper halves of YMM registers.
const YMM_HIGH: usize = 576;
/// MXCSR after reset.
const MXCSR_DEFAULT: u32 = 0x1F80;

/// x87, SSE and AVX state in the standard XSAVE format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Xsave(pub [u8; XSAVE]);

impl Default for Xsave {
    /// The initial state, with every component marked as held.
    fn default() -> Self {
        let mut area = Xsave([0; XSAVE]);
        area.0[..2].copy_from_slice(&0x37Fu16.to_le_bytes());
        area.0[24..28].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
        area.0[28..32].copy_from_slice(&0xFFFFu32.to_le_bytes());
        area.0[HEADER] = 7;
        area
    }
}

impl Xsave {
    /// Puts bytes at `offset`.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    /// Replaces components that the header says are initial by their initial
    /// values, so that two areas can be compared.
    #[must_use]
    pub fn normal(mut self) -> Self {
        let held = self.0[HEADER];
        let initial = Xsave::default();
        if held & 1 == 0 {
            self.0[..24].copy_from_slice(&initial.0[..24]);
            self.0[32..160].copy_from_slice(&initial.0[32..160]);
        }
        if held & 2 == 0 {
            self.0[160..416].copy_from_slice(&initial.0[160..416]);
        }
        if held & 4 == 0 {
            self.0[YMM_HIGH..].copy_from_slice(&initial.0[YMM_HIGH..]);
        }
        // Tag word's reserved byte, MXCSR mask, software's bytes, header.
        self.0[5] = 0;
        self.0[28..32].copy_from_slice(&initial.0[28..32]);
        self.0[416..YMM_HIGH].fill(0);
        self
    }

    /// x87 control word.
    pub fn fcw(&self) -> u16 {
        self.u16(0)
    }

    /// x87 status word.
    pub fn fsw(&self) -> u16 {
        self.u16(2)
    }

    /// Abridged x87 tag word.
    pub fn ftw(&self) -> u8 {
        self.0[4]
    }

    /// Last x87 opcode.
    pub fn fop(&self) -> u16 {
        self.u16(6)
    }

    /// x87 instruction pointer.
    pub fn fip(&self) -> u64 {
        self.u64(8)
    }

    /// x87 data pointer.
    pub fn fdp(&self) -> u64 {
        self.u64(16)
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        self.u32(24)
    }

    /// ST(n), 80 bits.
    pub fn st(&self, n: usize) -> &[u8] {
        &self.0[32 + 16 * n..][..10]
    }

    /// The six bytes beside ST(n), which processors leave zero.
    pub fn st_padding(&self, n: usize) -> &[u8] {
        &self.0[32 + 16 * n + 10..][..6]
    }

    /// YMM(n).
    pub fn ymm(&self, n: usize) -> [u8; 32] {
        let mut ymm = [0; 32];
        ymm[..16].copy_from_slice(&self.0[160 + 16 * n..][..16]);
        ymm[16..].copy_from_slice(&self.0[YMM_HIGH + 16 * n..][..16]);
        ymm
    }

    /// Sets YMM(n).
    pub fn set_ymm(&mut self, n: usize, ymm: &[u8; 32]) {
        self.0[160 + 16 * n..][..16].copy_from_slice(&ymm[..16]);
        self.0[YMM_HIGH + 16 * n..][..16].copy_from_slice(&ymm[16..]);
    }
}

/// Everything an instruction starts from.
#[derive(Clone, Debug)]
pub struct Input {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15.
    pub regs: [u64; 16],
    /// Address of the instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// x87, SSE and AVX.
    pub xsave: Xsave,
    /// The instruction.
    pub code: Vec<u8>,
    /// Memory contents put in place first: linear address, bytes.
    pub memory: Vec<(u64, Vec<u8>)>,
}

/// How the run ended: always with an exception, #BP if nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Exception vector.
    pub vector: u8,
    /// Its error code; 0 where there is none.
    pub error: u32,
    /// CR2, for page faults; else 0.
    pub cr2: u64,
}

/// Everything an instruction leaves behind, except memory.
#[derive(Clone, Debug)]
pub struct Output {
    /// As in [`Input`].
    pub regs: [u64; 16],
    /// RIP that the exception pushed.
    pub rip: u64,
    /// RFLAGS that the exception pushed.
    pub rflags: u64,
    /// x87, SSE and AVX.
    pub xsave: Xsave,
    /// The exception.
    pub end: End,
    /// GS base.
    pub gs_base: u64,
}
