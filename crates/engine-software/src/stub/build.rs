//! Generates a stub's code.
//!
//! ```text
//! fn(rdi: *mut Cpu, rsi: *mut VectorState, rdx: memory operand) -> eax
//!
//!   r8 ← Cpu, r9 ← VectorState, r10 ← memory operand
//!   load x87 image, MXCSR, vector registers, flags, general registers
//!   r11 ← exit
//!   NATIVE                     the guest's instruction, re-encoded
//!   store what it wrote; restore host MXCSR, x87, upper halves
//!   return 0
//!   .long exit - NATIVE        see `signal`
//! exit:
//!   store MXCSR; restore host state; return eax (set by the signal handler)
//! ```
//!
//! General registers that the instruction encodes are renamed to host
//! registers that are free; implied ones, and all vector registers, keep
//! their numbers. Legacy SSE instructions see and touch XMM halves only, so
//! upper halves survive; VEX instructions store whole YMM registers, whose
//! upper halves they have cleared where the architecture says so.

use std::mem::offset_of;

use iced_x86::{
    Code, Encoder, IcedError, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic,
    OpAccess, OpCodeOperandKind, OpKind, Register,
};

use super::planted::{Planted, planted};
use super::unit::{Unit, is_x87};
use crate::cpu::{Cpu, flag};
use crate::op::reg_offset;
use crate::vector::VectorState;

const CPU: Register = Register::R8;
const VECTOR: Register = Register::R9;
const MEMORY: Register = Register::R10;
const EXIT: Register = Register::R11;

/// Host registers that explicit operands are renamed to: free in the calling
/// convention and of no other use in a stub.
const FREE: [Register; 5] = [
    Register::RSI,
    Register::RDI,
    Register::RCX,
    Register::RAX,
    Register::RDX,
];

const REGS: i64 = offset_of!(Cpu, regs) as i64;
const RFLAGS: i64 = offset_of!(Cpu, rflags) as i64;
const YMM: i64 = offset_of!(VectorState, ymm) as i64;
const X87: i64 = offset_of!(VectorState, x87) as i64;
const MXCSR: i64 = offset_of!(VectorState, mxcsr) as i64;
const HOST_MXCSR: i64 = offset_of!(VectorState, host_mxcsr) as i64;

/// Bytes of the largest memory operand.
pub const MAX_OPERAND: u32 = 32;

/// A stub's code and what its caller must know.
pub struct Built {
    /// Position-independent code.
    pub code: Vec<u8>,
    /// See [`Unit`].
    pub unit: Unit,
    /// Loads and stores the x87 image.
    pub x87: bool,
    /// Memory operand: bytes, 0 without one.
    pub size: u32,
    /// The memory operand is written (else only read).
    pub writes: bool,
    /// Required alignment of the memory operand, less one.
    pub align: u8,
}

/// A general register of the guest in a stub.
struct General {
    guest: Register,
    host: Register,
    written: bool,
}

/// How an instruction uses a vector register.
#[derive(Clone, Copy, Default)]
struct Vector {
    used: bool,
    read: bool,
    /// More than the XMM half is read.
    wide: bool,
    written: bool,
}

struct Assembler {
    encoder: Encoder,
    at: u64,
}

impl Assembler {
    fn add(&mut self, insn: &Instruction) -> Result<(), IcedError> {
        self.at += self.encoder.encode(insn, self.at)? as u64;
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.encoder.write_u8(byte);
        }
        self.at += bytes.len() as u64;
    }

    fn load(&mut self, code: Code, to: Register, base: Register, at: i64) -> Result<(), IcedError> {
        let memory = MemoryOperand::with_base_displ(base, at);
        self.add(&Instruction::with2(code, to, memory)?)
    }

    fn store(
        &mut self,
        code: Code,
        base: Register,
        at: i64,
        from: Register,
    ) -> Result<(), IcedError> {
        let memory = MemoryOperand::with_base_displ(base, at);
        self.add(&Instruction::with2(code, memory, from)?)
    }

    fn memory(&mut self, code: Code, base: Register, at: i64) -> Result<(), IcedError> {
        let memory = MemoryOperand::with_base_displ(base, at);
        self.add(&Instruction::with1(code, memory)?)
    }

    fn move_register(&mut self, to: Register, from: Register) -> Result<(), IcedError> {
        self.add(&Instruction::with2(Code::Mov_r64_rm64, to, from)?)
    }
}

/// Non-temporal stores as ordinary ones: the hint has no meaning for guest
/// RAM, and ordinary stores keep their order.
pub(crate) fn plain(code: Code) -> Code {
    match code {
        Code::Movntps_m128_xmm => Code::Movaps_xmmm128_xmm,
        Code::Movntpd_m128_xmm => Code::Movapd_xmmm128_xmm,
        Code::Movntdq_m128_xmm => Code::Movdqa_xmmm128_xmm,
        Code::Movntdqa_xmm_m128 => Code::Movdqa_xmm_xmmm128,
        Code::Movntq_m64_mm => Code::Movq_mmm64_mm,
        Code::Movnti_m32_r32 => Code::Mov_rm32_r32,
        Code::Movnti_m64_r64 => Code::Mov_rm64_r64,
        Code::VEX_Vmovntps_m128_xmm => Code::VEX_Vmovaps_xmmm128_xmm,
        Code::VEX_Vmovntps_m256_ymm => Code::VEX_Vmovaps_ymmm256_ymm,
        Code::VEX_Vmovntpd_m128_xmm => Code::VEX_Vmovapd_xmmm128_xmm,
        Code::VEX_Vmovntpd_m256_ymm => Code::VEX_Vmovapd_ymmm256_ymm,
        Code::VEX_Vmovntdq_m128_xmm => Code::VEX_Vmovdqa_xmmm128_xmm,
        Code::VEX_Vmovntdq_m256_ymm => Code::VEX_Vmovdqa_ymmm256_ymm,
        Code::VEX_Vmovntdqa_xmm_m128 => Code::VEX_Vmovdqa_xmm_xmmm128,
        Code::VEX_Vmovntdqa_ymm_m256 => Code::VEX_Vmovdqa_ymm_ymmm256,
        other => other,
    }
}

/// Required alignment of a memory operand, less one (SDM vol. 2A, 2.6).
pub(crate) fn alignment(insn: &Instruction, unit: Unit) -> u8 {
    let size = insn.memory_size().size();
    let unaligned = matches!(
        insn.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    );
    let aligned = matches!(
        insn.mnemonic(),
        Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa
    );
    let checked = match unit {
        Unit::Sse | Unit::SseMmx => size == 16 && !unaligned,
        Unit::Avx => aligned,
        _ => false,
    };
    if checked { (size - 1) as u8 } else { 0 }
}

/// The instruction can raise SIMD exceptions or depends on rounding,
/// flush-to-zero and denormals-are-zero. Told by name: integer, move, logic
/// and shuffle instructions cannot, floating-point arithmetic, comparison and
/// conversion can.
fn uses_mxcsr(insn: &Instruction, unit: Unit) -> bool {
    const FREE_OF_IT: [&str; 18] = [
        "P",
        "Mov",
        "And",
        "Or",
        "Xor",
        "Unpck",
        "Shuf",
        "Blend",
        "Broadcast",
        "Extract",
        "Insert",
        "Test",
        "Aes",
        "Sha",
        "Lddqu",
        "Gf2",
        "Rcp",
        "Rsqrt",
    ];
    if !matches!(unit, Unit::Sse | Unit::SseMmx | Unit::Avx) {
        return false;
    }
    let name = format!("{:?}", insn.mnemonic());
    let mut name = name.as_str();
    let upper;
    if let Some(rest) = name.strip_prefix('V') {
        let (first, tail) = rest.split_at(1);
        upper = first.to_uppercase() + tail;
        name = &upper;
    }
    !FREE_OF_IT.iter().any(|prefix| name.starts_with(prefix))
}

/// An operand whose register stands in the encoding, so that it can be
/// another.
fn is_renamable(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r8_reg
            | K::r16_reg
            | K::r16_rm
            | K::r32_reg
            | K::r32_rm
            | K::r32_vvvv
            | K::r64_reg
            | K::r64_rm
            | K::r64_vvvv
            | K::r8_opcode
            | K::r16_opcode
            | K::r32_opcode
            | K::r64_opcode
    )
}

/// The part of `full` (a 64-bit register) that has `like`'s size; AH, CH, DH
/// and BH become low bytes.
fn resize(full: Register, like: Register) -> Register {
    let n = full.number() as u32;
    match like.size() {
        // Without REX, 4–7 would be AH–BH: SPL–DIL follow R8's place in
        // iced's order after BH.
        1 if n >= 4 => Register::SPL + (n - 4),
        1 => Register::AL + n,
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => full,
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

fn neighbour(n: usize) -> usize {
    if planted() == Planted::OperandFetch {
        n ^ 1
    } else {
        n
    }
}

/// Builds the stub for `insn`. `None`: it cannot be re-encoded.
pub fn build(insn: &Instruction) -> Option<Built> {
    try_build(insn).ok().flatten()
}

fn try_build(insn: &Instruction) -> Result<Option<Built>, IcedError> {
    let mut info = InstructionInfoFactory::new();
    let info = info.info(insn);
    let has_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let size = insn.memory_size().size() as u32;
    if has_memory && !(1..=MAX_OPERAND).contains(&size) {
        return Ok(None);
    }
    let writes = info
        .used_memory()
        .iter()
        .any(|m| matches!(m.access(), OpAccess::Write | OpAccess::ReadWrite));

    let mut vectors = [Vector::default(); 16];
    let mut generals: Vec<General> = Vec::new();
    let mut mmx = false;
    let written = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        )
    };
    let mut native = *insn;
    native.set_code(plain(insn.code()));
    let opcode = insn.op_code();

    // Implied general registers first: they keep their numbers.
    let address = [insn.memory_base(), insn.memory_index()].map(|r| r.full_register());
    let explicit: Vec<(u32, Register)> = (0..insn.op_count())
        .filter(|&n| insn.op_kind(n) == OpKind::Register && is_renamable(opcode.op_kind(n)))
        .map(|n| (n, insn.op_register(n)))
        .filter(|(_, register)| register.is_gpr())
        .collect();
    for used in info.used_registers() {
        let register = used.register();
        if register.is_mm() {
            mmx = true;
        } else if register.is_vector_register() {
            let Some(slot) = vectors.get_mut(register.number()) else {
                return Ok(None);
            };
            slot.used = true;
            slot.written |= written(used.access());
            if used.access() != OpAccess::Write {
                slot.read = true;
                slot.wide |= register.size() > 16;
            }
        } else if register.is_gpr() {
            let full = register.full_register();
            let named = explicit.iter().any(|(_, r)| r.full_register() == full);
            if named || has_memory && address.contains(&full) && !written(used.access()) {
                continue;
            }
            if !FREE.contains(&full) {
                return Ok(None);
            }
            match generals.iter_mut().find(|g| g.guest == full) {
                Some(general) => general.written |= written(used.access()),
                None => generals.push(General {
                    guest: full,
                    host: full,
                    written: written(used.access()),
                }),
            }
        } else if register.is_segment_register() && !has_memory {
            return Ok(None);
        }
    }
    // Instructions with implied general registers that are also an address
    // register or an explicit operand: keep the number for both.
    for implied in implied(insn.mnemonic()) {
        if !generals.iter().any(|g| g.guest == *implied) {
            generals.push(General {
                guest: *implied,
                host: *implied,
                written: info
                    .used_registers()
                    .iter()
                    .any(|u| u.register().full_register() == *implied && written(u.access())),
            });
        }
    }
    for &(n, register) in &explicit {
        let high = is_high_byte(register);
        let guest = if high {
            register
        } else {
            register.full_register()
        };
        let changes = written(info.op_access(n));
        let host = match generals.iter_mut().find(|g| g.guest == guest) {
            Some(general) => {
                general.written |= changes;
                general.host
            }
            None => {
                let host = FREE
                    .into_iter()
                    .find(|free| generals.iter().all(|g| g.host != *free));
                let Some(host) = host else {
                    return Ok(None);
                };
                generals.push(General {
                    guest,
                    host,
                    written: changes,
                });
                host
            }
        };
        native.set_op_register(n, resize(host, register));
    }
    native.set_segment_prefix(Register::None);
    native.set_has_lock_prefix(false);
    native.set_has_rep_prefix(false);
    native.set_has_repne_prefix(false);
    if has_memory {
        native.set_memory_base(MEMORY);
        native.set_memory_index(Register::None);
        native.set_memory_index_scale(1);
        native.set_memory_displacement64(0);
        native.set_memory_displ_size(0);
    }

    let unit = Unit::of(insn, mmx);
    // With a memory source these may still count as MMX: the processor
    // decides, given the x87 state.
    let converts = matches!(insn.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd);
    let x87 = mmx || converts || is_x87(insn) || insn.mnemonic() == Mnemonic::Emms;
    let mxcsr = uses_mxcsr(insn, unit);
    let vex = unit == Unit::Avx;
    let flags_changed = insn.rflags_modified() != 0;
    let flags_used = flags_changed || insn.rflags_read() != 0;

    let mut asm = Assembler {
        encoder: Encoder::new(64),
        at: 0,
    };
    asm.move_register(CPU, Register::RDI)?;
    asm.move_register(VECTOR, Register::RSI)?;
    if has_memory {
        asm.move_register(MEMORY, Register::RDX)?;
    }
    if x87 {
        asm.memory(Code::Fxrstor64_m512byte, VECTOR, X87)?;
    }
    if mxcsr {
        asm.memory(Code::Ldmxcsr_m32, VECTOR, MXCSR)?;
    }
    for (n, vector) in vectors.iter().enumerate() {
        let at = YMM + 32 * neighbour(n) as i64;
        let n = n as u32;
        if vex && vector.wide {
            let ymm = Register::YMM0 + n;
            asm.load(Code::VEX_Vmovups_ymm_ymmm256, ymm, VECTOR, at)?;
        } else if vex && vector.read {
            let xmm = Register::XMM0 + n;
            asm.load(Code::VEX_Vmovups_xmm_xmmm128, xmm, VECTOR, at)?;
        } else if !vex && vector.used {
            // Written ones, too: many instructions write a part.
            let xmm = Register::XMM0 + n;
            asm.load(Code::Movups_xmm_xmmm128, xmm, VECTOR, at)?;
        }
    }
    if flags_used {
        // OF from bit 3 of the second byte by overflow of an addition, the
        // others by SAHF: much faster than POPF.
        asm.load(Code::Movzx_r32_rm8, Register::EAX, CPU, RFLAGS + 1)?;
        asm.add(&Instruction::with2(Code::And_AL_imm8, Register::AL, 8)?)?;
        asm.add(&Instruction::with2(Code::Add_AL_imm8, Register::AL, 0x78)?)?;
        // MOV AH, [r8 + …] cannot be encoded: a REX prefix excludes AH.
        asm.load(Code::Mov_r32_rm32, Register::ESI, CPU, RFLAGS)?;
        asm.move_register(Register::RAX, Register::RSI)?;
        asm.raw(&[0x86, 0xC4]); // xchg ah, al
        asm.add(&Instruction::with(Code::Sahf))?;
    }
    for general in &generals {
        if is_high_byte(general.guest) {
            let at = REGS + i64::from(reg_offset(general.guest));
            let host = resize(general.host, Register::EAX);
            asm.load(Code::Movzx_r32_rm8, host, CPU, at)?;
        } else {
            let at = REGS + 8 * neighbour(general.guest.number()) as i64;
            asm.load(Code::Mov_r64_rm64, general.host, CPU, at)?;
        }
    }
    asm.raw(&[0x4C, 0x8D, 0x1D, 0, 0, 0, 0]); // lea r11, [rip + exit]
    debug_assert_eq!(EXIT, Register::R11);
    let native_at = asm.at;
    asm.add(&native)?;
    if flags_changed {
        asm.add(&Instruction::with(Code::Pushfq))?;
        asm.add(&Instruction::with1(Code::Pop_r64, EXIT)?)?;
    }
    let keep = planted() != Planted::WriteBack;
    for general in generals.iter().filter(|g| g.written && keep) {
        let at = REGS + i64::from(reg_offset(general.guest));
        if is_high_byte(general.guest) {
            asm.store(
                Code::Mov_rm8_r8,
                CPU,
                at,
                resize(general.host, Register::AL),
            )?;
        } else {
            asm.store(Code::Mov_rm64_r64, CPU, at, general.host)?;
        }
    }
    for (n, _) in vectors
        .iter()
        .enumerate()
        .filter(|(_, v)| v.written && keep)
    {
        let at = YMM + 32 * n as i64;
        let n = n as u32;
        if vex {
            let ymm = Register::YMM0 + n;
            asm.store(Code::VEX_Vmovups_ymmm256_ymm, VECTOR, at, ymm)?;
        } else {
            let xmm = Register::XMM0 + n;
            asm.store(Code::Movups_xmmm128_xmm, VECTOR, at, xmm)?;
        }
    }
    if vex {
        asm.add(&Instruction::with(Code::VEX_Vzeroupper))?;
    }
    if mxcsr {
        asm.memory(Code::Stmxcsr_m32, VECTOR, MXCSR)?;
    }
    if x87 {
        if keep {
            asm.memory(Code::Fxsave64_m512byte, VECTOR, X87)?;
        }
        asm.add(&Instruction::with(Code::Fninit))?;
    }
    if mxcsr || x87 {
        asm.memory(Code::Ldmxcsr_m32, VECTOR, HOST_MXCSR)?;
    }
    if flags_changed {
        let mut merged = flag::ARITH;
        if planted() == Planted::FlagsMerge {
            merged &= !(flag::CF | flag::ZF);
        }
        let others = !(merged as i64) as i32;
        asm.load(Code::Mov_r64_rm64, Register::RAX, CPU, RFLAGS)?;
        asm.add(&Instruction::with2(
            Code::And_rm64_imm32,
            Register::RAX,
            others,
        )?)?;
        asm.add(&Instruction::with2(
            Code::And_rm64_imm32,
            EXIT,
            merged as i32,
        )?)?;
        asm.add(&Instruction::with2(Code::Or_rm64_r64, Register::RAX, EXIT)?)?;
        asm.store(Code::Mov_rm64_r64, CPU, RFLAGS, Register::RAX)?;
    }
    asm.raw(&[0x31, 0xC0]); // xor eax, eax
    asm.add(&Instruction::with(Code::Retnq))?;
    let exit_at = asm.at + 4;
    asm.raw(&((exit_at - native_at) as u32).to_le_bytes());
    if vex {
        asm.add(&Instruction::with(Code::VEX_Vzeroupper))?;
    }
    if mxcsr && planted() != Planted::FaultPath {
        asm.memory(Code::Stmxcsr_m32, VECTOR, MXCSR)?;
    }
    if x87 {
        asm.add(&Instruction::with(Code::Fninit))?;
    }
    if mxcsr || x87 {
        asm.memory(Code::Ldmxcsr_m32, VECTOR, HOST_MXCSR)?;
    }
    if planted() == Planted::FaultPath {
        asm.raw(&[0xB8, 6, 1, 0, 0]); // mov eax, TRAPPED | #UD
    }
    asm.add(&Instruction::with(Code::Retnq))?;

    let mut code = asm.encoder.take_buffer();
    let distance = ((exit_at - native_at) as u32).to_le_bytes();
    let operand = native_at as usize - 4;
    code[operand..operand + 4].copy_from_slice(&distance);
    Ok(Some(Built {
        code,
        unit,
        x87,
        size: if has_memory { size } else { 0 },
        writes,
        align: alignment(insn, unit),
    }))
}

/// General registers that an instruction uses without encoding them.
fn implied(mnemonic: Mnemonic) -> &'static [Register] {
    match mnemonic {
        Mnemonic::Mulx => &[Register::RDX],
        Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestri64
        | Mnemonic::Vpcmpestri
        | Mnemonic::Vpcmpestri64 => &[Register::RAX, Register::RDX, Register::RCX],
        Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpestrm64
        | Mnemonic::Vpcmpestrm
        | Mnemonic::Vpcmpestrm64 => &[Register::RAX, Register::RDX],
        Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri => &[Register::RCX],
        _ => &[],
    }
}
