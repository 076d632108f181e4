//! Stubs run against a small machine without paging.

use iced_x86::code_asm::*;
use iced_x86::{
    Code, Decoder, DecoderOptions, IcedError, MemoryOperand, OpCodeOperandKind, OpKind, Register,
};

use super::*;
use crate::cpu::{cr0, cr4, flag, gpr};
use crate::fault::{Exec, vector};
use crate::op::{Flow, reg_index};
use crate::shared::Shared;
use crate::translate::Home;
use crate::vector::component;
use croft_memory::{GuestRam, Range};

/// A CPU in 64-bit code that may use everything.
pub(crate) fn cpu() -> Home {
    let ram = GuestRam::new(&[Range {
        start: 0,
        len: 1 << 16,
    }])
    .unwrap();
    let shared = Shared::new(ram, profile(), 1).unwrap();
    let own = shared.vcpus[0].clone();
    let mut cpu = Cpu::power_up(shared, 0, own);
    cpu.cr0 = cr0::PE | cr0::NE | cr0::ET | cr0::MP;
    cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    cpu.xcr0 = component::ALL;
    cpu.code_size = CodeSize::Bits64;
    cpu.vector.init_x87();
    cpu
}

fn profile() -> CpuProfile {
    CpuProfile {
        model: croft_engine::CpuModel::SoftwareFast,
        leaves: Vec::new(),
        xcr0: component::ALL,
        arch_capabilities: 0,
        tsc_khz: 1_000_000,
        physical_bits: 40,
    }
}

/// Lowers the instruction in `bytes`, as decoding does.
pub(crate) fn lowered(bytes: &[u8]) -> Option<(Op, Box<Side>)> {
    let insn = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    fn undefined(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
        Err(cpu.ud())
    }
    let mut op = Op {
        run: undefined,
        imm: 0,
        disp: insn.memory_displacement64() as i64,
        side: std::ptr::null(),
        base: reg_index(insn.memory_base()),
        index: reg_index(insn.memory_index()),
        scale: insn.memory_index_scale().trailing_zeros() as u8,
        seg: 3,
        dst: 0,
        src: 0,
        aux: 0,
        flags: crate::op::op_flag::FLAT | crate::op::op_flag::CODE64,
        off: 0,
        len: insn.len() as u8,
        left: 0,
        start: 0,
    };
    let mut raw = [0; 15];
    raw[..insn.len()].copy_from_slice(&bytes[..insn.len()]);
    let mut side = Box::new(Side {
        insn,
        bytes: raw,
        stub: None,
    });
    let size = CodeSize::Bits64;
    if !crate::system::lower(&insn, &mut op, size)
        && !lower(&insn, &mut op, &mut side, size, &profile())
    {
        return None;
    }
    op.side = &raw const *side;
    Some((op, side))
}

/// Executes what `emit` assembles (one instruction).
fn step(
    cpu: &mut Cpu,
    emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Exec<Flow> {
    let mut asm = CodeAssembler::new(64).unwrap();
    emit(&mut asm).unwrap();
    let bytes = asm.assemble(0).unwrap();
    let (op, _side) = lowered(&bytes).expect("lowered");
    (op.run)(cpu, &op)
}

pub(crate) fn ok(cpu: &mut Cpu, emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    if step(cpu, emit).is_err() {
        panic!("raised {:?}", cpu.raised);
    }
}

pub(crate) fn raises(
    cpu: &mut Cpu,
    emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> u8 {
    assert!(step(cpu, emit).is_err());
    cpu.raised.vector
}

fn doubles(low: f64, high: f64) -> u128 {
    u128::from(low.to_bits()) | u128::from(high.to_bits()) << 64
}

#[test]
fn general_registers_flags_and_renaming() {
    let mut cpu = cpu();
    cpu.regs[gpr::RSP] = 0xF0F0;
    cpu.regs[gpr::RBP] = u64::MAX;
    cpu.regs[15] = 0x1234_5678;
    cpu.rflags = flag::FIXED | flag::IF | flag::DF | flag::ARITH;
    ok(&mut cpu, |a| a.popcnt(rsp, rsp));
    assert_eq!(cpu.regs[gpr::RSP], 8);
    assert_eq!(cpu.rflags, flag::FIXED | flag::IF | flag::DF);
    ok(&mut cpu, |a| a.popcnt(bx, r15w));
    ok(&mut cpu, |a| a.andn(eax, r15d, ebp));
    assert_eq!(cpu.regs[gpr::RAX], 0xEDCB_A987);
    // An implied and an explicit use of RDX.
    cpu.regs[gpr::RDX] = 1 << 40;
    ok(&mut cpu, |a| a.mulx(rsp, rax, rdx));
    assert_eq!((cpu.regs[gpr::RSP], cpu.regs[gpr::RAX]), (1 << 16, 0));
    // AH as a source, with the register it belongs to as destination.
    cpu.regs[gpr::RAX] = 0x5500;
    ok(&mut cpu, |a| a.crc32(eax, ah));
    cpu.regs[gpr::RCX] = 0x5500;
    cpu.regs[gpr::RSI] = 0x55;
    ok(&mut cpu, |a| a.crc32(ecx, sil));
    assert_eq!(cpu.regs[gpr::RAX], cpu.regs[gpr::RCX]);
}

#[test]
fn flags_are_read_and_the_others_kept() {
    let mut cpu = cpu();
    for flags in [0, flag::CF, flag::OF, flag::ARITH, flag::OF | flag::ZF] {
        cpu.rflags = flags | flag::FIXED;
        cpu.regs[gpr::RBX] = u64::MAX;
        cpu.regs[gpr::RCX] = 0;
        ok(&mut cpu, |a| a.adcx(rbx, rcx));
        // ADCX reads and writes CF alone: all ones plus CF carries it on.
        assert_eq!(cpu.rflags, flags | flag::FIXED);
        let expected = if flags & flag::CF != 0 { 0 } else { u64::MAX };
        assert_eq!(cpu.regs[gpr::RBX], expected);
        ok(&mut cpu, |a| a.adox(rcx, rcx));
        assert_eq!(cpu.regs[gpr::RCX], u64::from(flags & flag::OF != 0));
    }
}

#[test]
fn sse_registers_memory_and_page_crossing() {
    let mut cpu = cpu();
    cpu.vector.ymm[9] = [0xEE; 32];
    cpu.vector.set_xmm(9, doubles(1.5, 2.5));
    cpu.vector.set_xmm(2, doubles(0.25, -2.5));
    ok(&mut cpu, |a| a.addpd(xmm9, xmm2));
    assert_eq!(cpu.vector.xmm(9), doubles(1.75, 0.0));
    assert_eq!(cpu.vector.ymm[9][16..], [0xEE; 16], "the upper half stays");
    for at in [0x1000u64, 0x1FF8, 0x1FF1] {
        cpu.regs[gpr::RBX] = at;
        ok(&mut cpu, |a| a.movups(xmmword_ptr(rbx), xmm9));
        ok(&mut cpu, |a| a.movupd(xmm3, xmmword_ptr(rbx)));
        assert_eq!(cpu.vector.xmm(3), doubles(1.75, 0.0));
        ok(&mut cpu, |a| a.movlhps(xmm3, xmm3));
        ok(&mut cpu, |a| a.movhps(qword_ptr(rbx + 3), xmm3));
        ok(&mut cpu, |a| a.lddqu(xmm4, xmmword_ptr(rbx + 3)));
        assert_eq!(cpu.vector.xmm(4) as u64, 1.75f64.to_bits());
    }
    cpu.regs[gpr::RBX] = 0x1008;
    assert_eq!(
        raises(&mut cpu, |a| a.movaps(xmm1, xmmword_ptr(rbx))),
        vector::GP
    );
    assert_eq!(
        raises(&mut cpu, |a| a.paddb(xmm1, xmmword_ptr(rbx))),
        vector::GP
    );
    assert_eq!(
        raises(&mut cpu, |a| a.movntdq(xmmword_ptr(rbx), xmm1)),
        vector::GP
    );
}

#[test]
fn mxcsr_rounding_and_sticky_flags() {
    let mut cpu = cpu();
    cpu.vector.set_xmm(0, doubles(2.5, 0.0));
    cpu.vector.mxcsr = 0x1F80 | 2 << 13; // round up
    ok(&mut cpu, |a| a.cvtsd2si(r12, xmm0));
    assert_eq!(cpu.regs[12], 3);
    assert_eq!(cpu.vector.mxcsr & 0x3F, 0x20, "inexact");
    assert_eq!(
        1.0f64 / std::hint::black_box(3.0),
        1.0 / 3.0,
        "host rounding is back"
    );
}

#[test]
fn vex_clears_upper_halves() {
    let mut cpu = cpu();
    cpu.vector.ymm[1] = [1; 32];
    cpu.vector.ymm[2] = [2; 32];
    cpu.vector.ymm[3] = [0xFF; 32];
    ok(&mut cpu, |a| a.vpaddb(ymm3, ymm1, ymm2));
    assert_eq!(cpu.vector.ymm[3], [3; 32]);
    ok(&mut cpu, |a| a.vpaddb(xmm3, xmm1, xmm2));
    assert_eq!(cpu.vector.ymm[3][..16], [3; 16]);
    assert_eq!(cpu.vector.ymm[3][16..], [0; 16]);
    cpu.vector.ymm[3] = [0xFF; 32];
    ok(&mut cpu, |a| a.vzeroupper());
    assert_eq!(cpu.vector.ymm[3][16..], [0; 16]);
}

#[test]
fn x87_state_pointers_and_environment() {
    let mut cpu = cpu();
    cpu.set_rip(0x40_1000);
    ok(&mut cpu, |a| a.fldpi());
    ok(&mut cpu, |a| a.fld1());
    ok(&mut cpu, |a| a.faddp(st1, st0));
    cpu.regs[gpr::RBX] = 0x1FFC;
    ok(&mut cpu, |a| a.fst(qword_ptr(rbx)));
    let sum: u64 = cpu.read(0x1FFC).ok().unwrap();
    assert_eq!(f64::from_bits(sum), std::f64::consts::PI + 1.0);
    assert_eq!((cpu.vector.fip, cpu.vector.fdp), (0x40_1000, 0x1FFC));
    cpu.regs[gpr::RBX] = 0x3000;
    ok(&mut cpu, |a| a.fnstenv(ptr(rbx)));
    let tags: u16 = cpu.read(0x3008).ok().unwrap();
    assert_eq!(tags, 0x3FFF, "R7 valid, the rest empty");
    let ip: u32 = cpu.read(0x300C).ok().unwrap();
    assert_eq!(ip, 0x40_1000);
    ok(&mut cpu, |a| a.fnsave(ptr(rbx)));
    assert_eq!(cpu.vector.fcw(), 0x037F);
    ok(&mut cpu, |a| a.frstor(ptr(rbx)));
    ok(&mut cpu, |a| a.fistp(dword_ptr(rbx)));
    let rounded: u32 = cpu.read(0x3000).ok().unwrap();
    assert_eq!(rounded, 4);
    ok(&mut cpu, |a| a.fnstsw(ax));
    assert_eq!(cpu.regs[gpr::RAX] >> 11 & 7, 0);
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    let mut cpu = cpu();
    cpu.regs[gpr::RBX] = 0x3000;
    cpu.write(0x3000, 0x0340u16).ok().unwrap();
    ok(&mut cpu, |a| a.fldcw(word_ptr(rbx)));
    ok(&mut cpu, |a| a.fld1());
    ok(&mut cpu, |a| a.fldz());
    ok(&mut cpu, |a| a.fdivp(st1, st0));
    assert!(cpu.vector.x87_pending());
    assert_eq!(cpu.vector.fop, 0x6F9);
    assert_eq!(raises(&mut cpu, |a| a.wait()), vector::MF);
    assert_eq!(raises(&mut cpu, |a| a.fld1()), vector::MF);
    assert_eq!(raises(&mut cpu, |a| a.paddb(mm0, mm1)), vector::MF);
    // The host finds out by itself, too.
    let (op, side) = lowered(&[0xD9, 0xE8]).unwrap();
    let stub = side.stub.as_deref().unwrap();
    // SAFETY: FLD1 has no memory operand.
    let code = unsafe { stub.call(&mut cpu, std::ptr::null_mut()) };
    assert_eq!(code, signal::TRAPPED | u32::from(vector::MF));
    assert_eq!(op.len, 2);
    ok(&mut cpu, |a| a.fnclex());
    ok(&mut cpu, |a| a.fld1());
}

#[test]
fn unmasked_x87_store_is_not_made() {
    let mut cpu = cpu();
    // Crossing a page, through a bounce buffer, and not.
    for at in [0x1FFDu64, 0x2010] {
        cpu.vector.init_x87();
        cpu.regs[gpr::RBX] = at;
        ok(&mut cpu, |a| a.fldpi());
        cpu.write(0x3000, 0x037Eu16).ok().unwrap();
        ok(&mut cpu, |a| a.fldcw(word_ptr(0x3000)));
        cpu.write(at, 0x1111_1111u32).ok().unwrap();
        ok(&mut cpu, |a| a.fstp(dword_ptr(rbx)));
        let stored: u32 = cpu.read(at).ok().unwrap();
        assert_eq!(stored, std::f32::consts::PI.to_bits());
        // Now the stack is empty: an invalid operation.
        cpu.write(at, 0x1111_1111u32).ok().unwrap();
        ok(&mut cpu, |a| a.fstp(dword_ptr(rbx)));
        let kept: u32 = cpu.read(at).ok().unwrap();
        assert_eq!(kept, 0x1111_1111);
        assert!(cpu.vector.x87_pending());
    }
}

#[test]
fn simd_exceptions_reach_the_guest() {
    let mut cpu = cpu();
    cpu.vector.set_xmm(0, doubles(1.0, 1.0));
    cpu.vector.set_xmm(1, 0);
    cpu.vector.mxcsr = 0x1F80 & !(4 << 7); // division by zero unmasked
    assert_eq!(raises(&mut cpu, |a| a.divpd(xmm0, xmm1)), vector::XM);
    assert_eq!(cpu.vector.mxcsr & 0x3F, 4);
    assert_eq!(cpu.vector.xmm(0), doubles(1.0, 1.0));
    assert_eq!(raises(&mut cpu, |a| a.vdivpd(ymm0, ymm0, ymm1)), vector::XM);
    cpu.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(raises(&mut cpu, |a| a.divpd(xmm0, xmm1)), vector::UD);
}

#[test]
fn code_without_a_slot_runs_and_traps() {
    let mut cpu = cpu();
    cpu.vector.set_xmm(0, doubles(6.0, 1.0));
    cpu.vector.set_xmm(1, doubles(2.0, 1.0));
    let (op, mut side) = lowered(&[0x66, 0x0F, 0x5E, 0xC1]).unwrap(); // divpd xmm0, xmm1
    let code = build::build(&side.insn).unwrap().code;
    side.stub.as_mut().unwrap().place = Place::OneShot(code.into());
    assert!((op.run)(&mut cpu, &op).is_ok());
    assert_eq!(cpu.vector.xmm(0), doubles(3.0, 1.0));
    cpu.vector.set_xmm(1, 0);
    cpu.vector.mxcsr = 0;
    assert!((op.run)(&mut cpu, &op).is_err());
    assert_eq!(cpu.raised.vector, vector::XM);
}

#[test]
fn hardware_alignment_fault_is_gp() {
    let mut cpu = cpu();
    let (_op, side) = lowered(&[0x66, 0x0F, 0xFC, 0x03]).unwrap(); // paddb xmm0, [rbx]
    let stub = side.stub.as_deref().unwrap();
    let mut room = [0u128; 3];
    // SAFETY: 16 bytes are there, misaligned on purpose.
    let code = unsafe { stub.call(&mut cpu, room.as_mut_ptr().cast::<u8>().add(1)) };
    assert_eq!(code, signal::TRAPPED | u32::from(vector::GP));
}

#[test]
fn units_are_checked() {
    let mut cpu = cpu();
    cpu.cr0 |= cr0::TS;
    assert_eq!(raises(&mut cpu, |a| a.addps(xmm0, xmm1)), vector::NM);
    assert_eq!(raises(&mut cpu, |a| a.fld1()), vector::NM);
    assert_eq!(raises(&mut cpu, |a| a.wait()), vector::NM);
    assert_eq!(raises(&mut cpu, |a| a.vaddps(xmm0, xmm1, xmm2)), vector::NM);
    ok(&mut cpu, |a| a.popcnt(eax, ebx));
    cpu.cr0 = cpu.cr0 & !cr0::TS | cr0::EM;
    assert_eq!(raises(&mut cpu, |a| a.addps(xmm0, xmm1)), vector::UD);
    assert_eq!(raises(&mut cpu, |a| a.paddb(mm0, mm1)), vector::UD);
    assert_eq!(raises(&mut cpu, |a| a.fld1()), vector::NM);
    cpu.cr0 &= !cr0::EM;
    cpu.xcr0 = component::X87;
    assert_eq!(raises(&mut cpu, |a| a.vaddps(xmm0, xmm1, xmm2)), vector::UD);
    ok(&mut cpu, |a| a.andn(eax, ebx, ecx));
    cpu.cr4 = 0;
    assert_eq!(raises(&mut cpu, |a| a.movaps(xmm0, xmm1)), vector::UD);
    assert_eq!(raises(&mut cpu, |a| a.xsave(ptr(rbx))), vector::UD);
}

#[test]
fn mmx_shares_the_x87_registers() {
    let mut cpu = cpu();
    cpu.regs[gpr::RAX] = 0x0102_0304_0506_0708;
    ok(&mut cpu, |a| a.movq(mm3, rax));
    ok(&mut cpu, |a| a.paddb(mm3, mm3));
    ok(&mut cpu, |a| a.movq(rcx, mm3));
    assert_eq!(cpu.regs[gpr::RCX], 0x0204_0608_0A0C_0E10);
    ok(&mut cpu, |a| a.movq2dq(xmm5, mm3));
    assert_eq!(cpu.vector.xmm(5), 0x0204_0608_0A0C_0E10);
    // Bytes 7 and 0.
    cpu.regs[gpr::RAX] = 0x8000_0000_0000_0080;
    ok(&mut cpu, |a| a.movq(mm1, rax));
    cpu.regs[gpr::RDI] = 0x1FFC;
    cpu.write(0x1FFC, 0u64).ok().unwrap();
    ok(&mut cpu, |a| a.maskmovq(mm3, mm1));
    let stored: u64 = cpu.read(0x1FFC).ok().unwrap();
    assert_eq!(stored, 0x0200_0000_0000_0010);
    ok(&mut cpu, |a| a.emms());
    assert_eq!(cpu.vector.full_tags(), 0xFFFF);
}

#[test]
fn implied_registers_of_string_comparison() {
    let mut cpu = cpu();
    cpu.vector
        .set_xmm(1, u128::from_le_bytes(*b"needle.........."));
    cpu.vector
        .set_xmm(2, u128::from_le_bytes(*b"....needle......"));
    cpu.regs[gpr::RAX] = 0x1010;
    cpu.write_bytes(0x1010, b"....needle......").ok().unwrap();
    cpu.regs[gpr::RBX] = 0x1010;
    cpu.regs[gpr::RAX] = 6;
    cpu.regs[gpr::RDX] = 16;
    ok(&mut cpu, |a| a.pcmpestri(xmm1, xmmword_ptr(rbx), 0x0C));
    assert_eq!(cpu.regs[gpr::RCX], 4);
    // An address register that is an implied operand as well.
    cpu.regs[gpr::RDX] = 0x1010;
    ok(&mut cpu, |a| a.pcmpestri(xmm1, xmmword_ptr(rdx), 0x0C));
    assert_eq!(cpu.regs[gpr::RCX], 4);
}

#[test]
fn masked_accesses_fault_only_where_they_touch() {
    let mut cpu = cpu();
    cpu.vector.ymm[1] = [0; 32];
    cpu.vector.ymm[1][3] = 0x80;
    cpu.vector.ymm[2] = [7; 32];
    // Four bytes below the segment's limit.
    cpu.code_size = CodeSize::Bits32;
    cpu.segs[3].attr = 0x93;
    cpu.segs[3].limit = 0x2003;
    cpu.regs[gpr::RBX] = 0x2000;
    ok(&mut cpu, |a| a.vmaskmovps(ymmword_ptr(rbx), ymm1, ymm2));
    ok(&mut cpu, |a| a.vmaskmovps(ymm3, ymm1, ymmword_ptr(rbx)));
    assert_eq!(cpu.vector.ymm[3][..8], [7, 7, 7, 7, 0, 0, 0, 0]);
    ok(&mut cpu, |a| a.vpmaskmovd(xmm4, xmm1, xmmword_ptr(rbx)));
    assert_eq!(cpu.vector.ymm[4][..4], [7; 4]);
    cpu.vector.ymm[1][7] = 0x80;
    cpu.vector.ymm[2] = [9; 32];
    assert_eq!(
        raises(&mut cpu, |a| a.vmaskmovps(ymmword_ptr(rbx), ymm1, ymm2)),
        vector::GP
    );
    let kept: u32 = cpu.read(0x2000).ok().unwrap();
    assert_eq!(kept, 0x0707_0707);
}

#[test]
fn gathers_read_each_element() {
    let mut cpu = cpu();
    for n in 0..8u32 {
        cpu.write(0x1000 + 64 * u64::from(n), n + 1).ok().unwrap();
    }
    let mut indices = [0; 32];
    for n in 0..8usize {
        indices[4 * n..4 * n + 4].copy_from_slice(&(16 * (7 - n as i32)).to_le_bytes());
    }
    cpu.vector.ymm[1] = indices;
    cpu.vector.ymm[2] = [0xFF; 32];
    cpu.vector.ymm[2][4..8].fill(0);
    cpu.vector.ymm[3] = [0; 32];
    cpu.regs[gpr::RBX] = 0x1000;
    let memory = MemoryOperand::with_base_index_scale(Register::RBX, Register::YMM1, 4);
    let code = Code::VEX_Vpgatherdd_ymm_vm32y_ymm;
    let insn = Instruction::with3(code, Register::YMM3, memory, Register::YMM2).unwrap();
    ok(&mut cpu, |a| a.add_instruction(insn));
    let lanes: Vec<u8> = cpu.vector.ymm[3].iter().step_by(4).copied().collect();
    assert_eq!(lanes, [8, 0, 6, 5, 4, 3, 2, 1]);
    assert_eq!(cpu.vector.ymm[2], [0; 32]);
    cpu.vector.ymm[1][..16].copy_from_slice(&[0; 16]);
    cpu.vector.ymm[2] = [0xFF; 32];
    let memory = MemoryOperand::with_base_index(Register::RBX, Register::XMM1);
    let code = Code::VEX_Vgatherqpd_xmm_vm64x_xmm;
    let insn = Instruction::with3(code, Register::XMM3, memory, Register::XMM2).unwrap();
    ok(&mut cpu, |a| a.add_instruction(insn));
    assert_eq!(cpu.vector.ymm[3][16..], [0; 16]);
}

/// An instruction of `code` with some operands, if all are of kinds that
/// stubs take.
fn sample(code: Code) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let mut insn = Instruction::default();
    insn.set_code(code);
    let opcode = code.op_code();
    for n in 0..opcode.op_count() {
        let register = match opcode.op_kind(n) {
            K::mem => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
                continue;
            }
            K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 | K::imm4_m2z => {
                insn.set_op_kind(n, OpKind::Immediate8);
                continue;
            }
            K::r8_or_mem | K::r8_reg => Register::BL,
            K::r16_or_mem | K::r16_reg | K::r16_rm => Register::BX + n,
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_vvvv => Register::EBX + n,
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_vvvv => Register::RBX + n,
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM2 + n,
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM7 + n,
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM7 + n,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST3,
            K::ax => Register::AX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            _ => return None,
        };
        insn.set_op_kind(n, OpKind::Register);
        insn.set_op_register(n, register);
    }
    Some(insn)
}

/// Every instruction of the features above can be given a handler.
#[test]
fn every_data_processing_form_is_lowered() {
    let mut missing = Vec::new();
    let mut done = 0;
    for code in Code::values() {
        let opcode = code.op_code();
        if !opcode.is_instruction() {
            continue;
        }
        if !matches!(opcode.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            || !code.cpuid_features().iter().all(|&f| is_data_processing(f))
            || code.flow_control() != FlowControl::Next
        {
            continue;
        }
        // Pseudo-instructions with an FWAIT in front are decoded as two.
        if opcode.fwait() {
            continue;
        }
        let Some(insn) = sample(code) else {
            let by_hand =
                format!("{code:?}").contains("_vm") || format!("{code:?}").contains("_rDI_");
            if !by_hand {
                missing.push(code);
            }
            continue;
        };
        let mut encoder = iced_x86::Encoder::new(64);
        if encoder.encode(&insn, 0).is_err() {
            missing.push(code);
            continue;
        }
        if lowered(&encoder.take_buffer()).is_none() {
            missing.push(code);
        }
        done += 1;
    }
    assert!(missing.is_empty(), "{done} lowered, not: {missing:?}");
    assert!(done > 1000, "{done}");
}

#[test]
fn planted_errors_show() {
    let sum = |error| {
        plant(error);
        let mut cpu = cpu();
        cpu.regs[gpr::RBX] = 0b1011;
        cpu.regs[gpr::RDX] = 0xFF;
        cpu.rflags = flag::FIXED | flag::ZF;
        ok(&mut cpu, |a| a.popcnt(rax, rbx));
        plant(Planted::None);
        (cpu.regs[gpr::RAX], cpu.rflags & flag::ZF)
    };
    let trap = |error| {
        plant(error);
        let mut cpu = cpu();
        cpu.vector.mxcsr = 0;
        cpu.vector.set_xmm(0, doubles(1.0, 0.0));
        let raised = raises(&mut cpu, |a| a.divsd(xmm0, xmm1));
        plant(Planted::None);
        (raised, cpu.vector.mxcsr)
    };
    assert_eq!(sum(Planted::None), (3, 0));
    assert_ne!(sum(Planted::OperandFetch).0, 3);
    assert_ne!(sum(Planted::WriteBack).0, 3);
    assert_ne!(sum(Planted::FlagsMerge).1, 0);
    assert_eq!(trap(Planted::None), (vector::XM, 4));
    assert_eq!(trap(Planted::FaultPath), (vector::UD, 0));
}
