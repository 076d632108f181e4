//! A small assembler for the fixed sequences of translated code. Guest
//! instructions are re-encoded by iced; these, several to each memory access,
//! are written directly.

/// Host registers by number.
#[allow(missing_docs)]
pub mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R9: u8 = 9;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R12: u8 = 12;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;
}

use reg::{R11, RSP};

/// Condition codes of Jcc.
#[allow(missing_docs)]
pub mod cc {
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
}

/// Code under construction.
pub struct Asm {
    /// The bytes so far.
    pub bytes: Vec<u8>,
    /// Where the first of them will be executed.
    pub base: usize,
}

/// A 32-bit displacement of a jump that is not known yet: where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Fixup(pub usize);

impl Asm {
    /// Nothing yet.
    pub fn new(base: usize) -> Self {
        Asm {
            bytes: Vec::with_capacity(1024),
            base,
        }
    }

    /// Bytes so far.
    #[inline(always)]
    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes as they are.
    #[inline(always)]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    #[inline(always)]
    fn head(&mut self, wide: bool, opcode: &[u8], reg: u8, index: u8, base: u8) {
        let rex = u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
        if rex != 0 {
            self.bytes.push(0x40 | rex);
        }
        self.raw(opcode);
    }

    /// `opcode reg, rm` (or the other way round, as the opcode says).
    #[inline(always)]
    pub fn rr(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.head(wide, opcode, reg, 0, rm);
        self.bytes.push(0xC0 | (reg & 7) << 3 | rm & 7);
    }

    /// `opcode reg, [base + disp]`.
    pub fn rm(&mut self, wide: bool, opcode: &[u8], reg: u8, base: u8, disp: i32) {
        self.head(wide, opcode, reg, 0, base);
        self.modrm(reg, base, disp);
    }

    fn modrm(&mut self, reg: u8, base: u8, disp: i32) {
        let low = base & 7;
        let mode = match disp {
            0 if low != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        self.bytes.push(mode << 6 | (reg & 7) << 3 | low);
        if low == 4 {
            self.bytes.push(0x24);
        }
        match mode {
            1 => self.bytes.push(disp as u8),
            2 => self.imm32(disp),
            _ => {}
        }
    }

    /// `opcode reg, [base + index << scale + disp]`.
    pub fn rx(
        &mut self,
        wide: bool,
        opcode: &[u8],
        reg: u8,
        (base, index, scale): (u8, u8, u8),
        disp: i32,
    ) {
        self.head(wide, opcode, reg, index, base);
        let mode = match disp {
            0 if base & 7 != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        self.bytes.push(mode << 6 | (reg & 7) << 3 | 4);
        self.bytes.push(scale << 6 | (index & 7) << 3 | base & 7);
        match mode {
            1 => self.bytes.push(disp as u8),
            2 => self.imm32(disp),
            _ => {}
        }
    }

    /// `opcode reg, [index << scale + disp]`, without a base.
    pub fn ri(&mut self, wide: bool, opcode: &[u8], reg: u8, index: u8, scale: u8, disp: i32) {
        self.head(wide, opcode, reg, index, 0);
        self.bytes.push((reg & 7) << 3 | 4);
        self.bytes.push(scale << 6 | (index & 7) << 3 | 5);
        self.imm32(disp);
    }

    /// `opcode reg, [vCPU + disp]`.
    #[inline(always)]
    pub fn state(&mut self, wide: bool, opcode: &[u8], reg: u8, disp: i32) {
        self.rm(wide, opcode, reg, RSP, disp);
    }

    /// `opcode reg, [vCPU + r11 + disp]`: an entry of a table.
    #[inline(always)]
    pub fn entry(&mut self, wide: bool, opcode: &[u8], reg: u8, disp: i32) {
        self.rx(wide, opcode, reg, (RSP, R11, 0), disp);
    }

    /// Copies a 64-bit register; nothing for a copy to itself.
    pub fn mov(&mut self, to: u8, from: u8) {
        if to != from {
            self.rr(true, &[0x8B], to, from);
        }
    }

    /// Loads a 64-bit constant.
    pub fn mov_imm64(&mut self, to: u8, value: u64) {
        if let Ok(short) = u32::try_from(value) {
            return self.mov_imm32(to, short);
        }
        self.head(true, &[0xB8 | to & 7], 0, 0, to);
        self.raw(&value.to_le_bytes());
    }

    /// Loads a constant, zero-extended.
    pub fn mov_imm32(&mut self, to: u8, value: u32) {
        self.head(false, &[0xB8 | to & 7], 0, 0, to);
        self.raw(&value.to_le_bytes());
    }

    /// `opcode /digit rm, imm32`.
    pub fn rr_imm32(&mut self, wide: bool, opcode: u8, digit: u8, rm: u8, imm: i32) {
        self.rr(wide, &[opcode], digit, rm);
        self.imm32(imm);
    }

    /// `opcode /digit [vCPU + disp], imm8`.
    pub fn state_imm8(&mut self, wide: bool, opcode: u8, digit: u8, disp: i32, imm: i8) {
        self.state(wide, &[opcode], digit, disp);
        self.bytes.push(imm as u8);
    }

    /// `opcode /digit [vCPU + disp], imm32`.
    pub fn state_imm32(&mut self, wide: bool, opcode: u8, digit: u8, disp: i32, imm: i32) {
        self.state(wide, &[opcode], digit, disp);
        self.imm32(imm);
    }

    /// A conditional jump, to be fixed.
    pub fn jcc(&mut self, cc: u8) -> Fixup {
        self.raw(&[0x0F, 0x80 | cc]);
        self.imm32(0);
        Fixup(self.here() - 4)
    }

    /// A jump, to be fixed.
    pub fn jmp(&mut self) -> Fixup {
        self.raw(&[0xE9]);
        self.imm32(0);
        Fixup(self.here() - 4)
    }

    /// Makes a jump lead to byte `to`.
    pub fn fix(&mut self, fixup: Fixup, to: usize) {
        let disp = to.wrapping_sub(fixup.0 + 4) as i32;
        if let Some(bytes) = self.bytes.get_mut(fixup.0..fixup.0 + 4) {
            bytes.copy_from_slice(&disp.to_le_bytes());
        }
    }

    /// Makes a jump lead here.
    pub fn fix_here(&mut self, fixup: Fixup) {
        self.fix(fixup, self.here());
    }

    /// A jump to byte `to` of this code.
    pub fn jmp_to(&mut self, to: usize) {
        let fixup = self.jmp();
        self.fix(fixup, to);
    }

    /// A jump to an address in the same code memory.
    pub fn jmp_abs(&mut self, address: usize) {
        self.raw(&[0xE9]);
        self.rel32(address);
    }

    /// A call of an address in the same code memory.
    pub fn call_abs(&mut self, address: usize) {
        self.raw(&[0xE8]);
        self.rel32(address);
    }

    fn rel32(&mut self, address: usize) {
        let next = self.base + self.here() + 4;
        self.imm32(address.wrapping_sub(next) as i32);
    }
}
