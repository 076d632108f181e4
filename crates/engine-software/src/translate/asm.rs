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
    /// The first that will be executed elsewhere, and where.
    apart: Option<(usize, usize)>,
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
            apart: None,
        }
    }

    /// What follows will be executed at `address`, apart from what is there.
    pub fn go_on_at(&mut self, address: usize) {
        self.apart = Some((self.here(), address));
    }

    /// Bytes that will be executed at [`Asm::base`]; the others are apart.
    pub fn together(&self) -> usize {
        self.apart.map_or(self.here(), |(first, _)| first)
    }

    /// Where byte `at` will be executed.
    pub fn address(&self, at: usize) -> usize {
        match self.apart {
            Some((first, address)) if at >= first => address + (at - first),
            _ => self.base + at,
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
        // The place behind the displacement is of the same part as its bytes.
        let next = self.address(fixup.0) + 4;
        let disp = self.address(to).wrapping_sub(next) as i32;
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
        let next = self.address(self.here()) + 4;
        self.imm32(address.wrapping_sub(next) as i32);
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    use super::reg::*;
    use super::*;

    /// What `build` assembles, as another disassembler reads it.
    fn text(build: impl FnOnce(&mut Asm)) -> Vec<String> {
        let mut asm = Asm::new(0x1000);
        build(&mut asm);
        let decoder = Decoder::with_ip(64, &asm.bytes, 0x1000, DecoderOptions::NONE);
        let mut formatter = FastFormatter::new();
        decoder
            .into_iter()
            .map(|insn| {
                let mut text = String::new();
                formatter.format(&insn, &mut text);
                text
            })
            .collect()
    }

    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];

    #[test]
    fn every_pair_of_registers() {
        for a in 0..16 {
            for b in 0..16 {
                let (x, y) = (NAMES[usize::from(a)], NAMES[usize::from(b)]);
                let expected = format!("add {x},{y}");
                assert_eq!(text(|asm| asm.rr(true, &[0x03], a, b)), [expected]);
                let moved = text(|asm| asm.mov(a, b));
                if a == b {
                    assert!(moved.is_empty());
                } else {
                    assert_eq!(moved, [format!("mov {x},{y}")]);
                }
            }
        }
    }

    /// RSP and R12 need a SIB byte, RBP and R13 a displacement.
    #[test]
    fn every_base_with_every_size_of_displacement() {
        for base in 0..16 {
            let name = NAMES[usize::from(base)];
            for (disp, shown) in [
                (0, String::new()),
                (8, "+8".to_owned()),
                (-8, "-8".to_owned()),
                (0x1234, "+1234h".to_owned()),
                (-0x1234, "-1234h".to_owned()),
            ] {
                let read = text(|asm| asm.rm(true, &[0x8B], R10, base, disp));
                let plain = read[0].replace("h]", "]").replace("h", "");
                let expected = format!("mov r10,[{name}{shown}]").replace('h', "");
                assert_eq!([plain], [expected]);
            }
        }
    }

    #[test]
    fn bases_with_indices() {
        let add = |index, scale, base, disp| {
            text(|asm| asm.rx(true, &[0x03], RCX, (base, index, scale), disp)).join(";")
        };
        assert_eq!(add(R11, 0, RSP, 0x2650), "add rcx,[rsp+r11+2650h]");
        assert_eq!(add(RAX, 3, RBP, 0), "add rcx,[rbp+rax*8]");
        assert_eq!(add(R12, 2, R13, -1), "add rcx,[r13+r12*4-1h]");
        let lea = text(|asm| asm.ri(true, &[0x8D], R10, RBP, 2, 0x10));
        assert_eq!(lea, ["lea r10,[rbp*4+10h]"]);
        assert_eq!(
            text(|asm| asm.entry(false, &[0xFF], 4, 0x40)),
            ["jmp qword ptr [rsp+r11+40h]"]
        );
    }

    #[test]
    fn constants() {
        assert_eq!(text(|asm| asm.mov_imm64(R9, 5)), ["mov r9d,5h"]);
        assert_eq!(
            text(|asm| asm.mov_imm64(R9, 1 << 40)),
            ["mov r9,10000000000h"]
        );
        assert_eq!(
            text(|asm| asm.state_imm8(false, 0x83, 7, 0x600, 0)),
            ["cmp dword ptr [rsp+600h],0h"]
        );
        assert_eq!(
            text(|asm| asm.rr_imm32(true, 0x81, 7, R10, 4088)),
            ["cmp r10,0FF8h"]
        );
    }

    #[test]
    fn jumps_lead_from_one_part_to_another() {
        let mut asm = Asm::new(0x1000);
        let ahead = asm.jcc(cc::A);
        let back = asm.here();
        asm.raw(&[0x90]);
        asm.go_on_at(0x8000);
        asm.fix_here(ahead);
        asm.call_abs(0x5000);
        asm.jmp_to(back);
        assert_eq!(asm.together(), 7);
        let read = |bytes: &[u8], base| -> Vec<(u64, u64)> {
            let decoder = Decoder::with_ip(64, bytes, base, DecoderOptions::NONE);
            let branches = decoder.into_iter().filter(|insn| insn.len() > 1);
            branches
                .map(|insn| (insn.ip(), insn.near_branch_target()))
                .collect()
        };
        assert_eq!(read(&asm.bytes[..7], 0x1000), [(0x1000, 0x8000)]);
        let apart = [(0x8000, 0x5000), (0x8005, 0x1006)];
        assert_eq!(read(&asm.bytes[7..], 0x8000), apart);
    }

    #[test]
    fn jumps_lead_where_they_are_fixed() {
        let code = text(|asm| {
            let ahead = asm.jcc(cc::A);
            let back = asm.here();
            asm.raw(&[0x90]);
            asm.jmp_to(back);
            asm.fix_here(ahead);
            asm.call_abs(0x5000);
            asm.jmp_abs(0x800);
        });
        assert_eq!(
            code,
            ["ja 100Ch", "nop", "jmp 1006h", "call 5000h", "jmp 800h"]
        );
    }
}
