//! How each instruction is translated.

use iced_x86::{Code, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{bits, strings};
use crate::stub::{Unit, alignment, is_data_processing};

/// The one explicit memory operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes.
    pub size: u8,
    /// Stored to, maybe after a load.
    pub write: bool,
    /// Required alignment less one.
    pub align: u8,
}

impl Access {
    /// A load of eight bytes.
    pub const READ8: Access = Access {
        size: 8,
        write: false,
        align: 0,
    };
    /// A store of eight bytes.
    pub const WRITE8: Access = Access {
        size: 8,
        write: true,
        align: 0,
    };
}

/// Ways to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Does nothing that a guest could see.
    Nothing,
    /// Run by the host with other registers.
    Plain {
        /// Its memory operand.
        memory: Option<Access>,
        /// Vector registers needed: 0 none, 1 XMM, 2 YMM.
        vector: u8,
        /// RAX, or a byte of it, must be in its own place.
        accumulator: bool,
    },
    /// LEA of 64 or 32 bits.
    Lea,
    /// DIV or IDIV of 32 or 64 bits.
    Divide,
    /// PUSH of 64 bits: a register or an immediate.
    Push,
    /// PUSH of 64 bits from memory.
    PushMemory,
    /// POP of 64 bits to a register.
    Pop,
    /// LEAVE.
    Leave,
    /// PUSHFQ.
    PushFlags,
    /// JMP to a fixed target.
    Jump,
    /// JMP to a register's or memory's value.
    JumpIndirect,
    /// Jcc.
    JumpIf,
    /// CALL of a fixed target.
    Call,
    /// CALL of a register's or memory's value.
    CallIndirect,
    /// RET.
    Return,
    /// BT of a bit string in memory.
    BitTest,
    /// REP MOVS (`copies`) or REP STOS.
    Repeated {
        /// MOVS.
        copies: bool,
        /// log2 of the bytes of an element.
        shift: u8,
    },
    /// CLI.
    Cli,
    /// STI.
    Sti,
    /// STAC (true) and CLAC.
    AccessFlag(bool),
    /// SWAPGS.
    SwapGs,
    /// CLD.
    Cld,
    /// SYSCALL in user mode.
    SystemCall,
    /// SYSRET to 64-bit code.
    SystemReturn,
    /// Left to the interpreter.
    Interpret,
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// Integer instructions that the host can run as they are.
fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Not
            | Neg
            | Inc
            | Dec
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Bswap
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lfence
            | Mfence
            | Sfence
    )
}

/// Instructions with RAX in a fixed place.
fn uses_accumulator(insn: &Instruction) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        Mul | Cmpxchg | Cmpxchg8b | Cmpxchg16b | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo
        | Pcmpestri | Pcmpestri64 | Pcmpestrm | Pcmpestrm64 | Vpcmpestri | Vpcmpestri64
        | Vpcmpestrm | Vpcmpestrm64 => true,
        Imul => insn.op_count() == 1,
        _ => false,
    }
}

/// Vector instructions whose accesses depend on data, or that move more than
/// an operand.
fn is_special_vector(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Maskmovdqu
            | Vmaskmovdqu
            | Vmaskmovps
            | Vmaskmovpd
            | Vpmaskmovd
            | Vpmaskmovq
            | Ldmxcsr
            | Stmxcsr
            | Vldmxcsr
            | Vstmxcsr
    )
}

/// How `insn`, which its guest may use, is translated in 64-bit code at
/// privilege level 0 (`supervisor`) or 3.
pub fn classify(insn: &Instruction, supervisor: bool) -> Class {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Nop
        | M::Endbr64
        | M::Prefetchw
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta => Class::Nothing,
        M::Lea => match insn.op0_register().size() {
            4 | 8 => Class::Lea,
            _ => Class::Interpret,
        },
        M::Div | M::Idiv => divide(insn),
        M::Push => match insn.code() {
            Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Class::Push,
            Code::Push_rm64 if insn.op0_kind() == OpKind::Register => Class::Push,
            Code::Push_rm64 => Class::PushMemory,
            _ => Class::Interpret,
        },
        M::Pop => match insn.code() {
            Code::Pop_r64 => Class::Pop,
            _ => Class::Interpret,
        },
        M::Leave if insn.code() == Code::Leaveq => Class::Leave,
        M::Pushfq => Class::PushFlags,
        M::Jmp if insn.op0_kind() == OpKind::NearBranch64 => Class::Jump,
        M::Jmp if insn.code() == Code::Jmp_rm64 => Class::JumpIndirect,
        M::Call if insn.op0_kind() == OpKind::NearBranch64 => Class::Call,
        M::Call if insn.code() == Code::Call_rm64 && insn.op0_register() != Register::RSP => {
            Class::CallIndirect
        }
        M::Ret if matches!(insn.code(), Code::Retnq | Code::Retnq_imm16) => Class::Return,
        M::Cli if supervisor => Class::Cli,
        M::Sti if supervisor => Class::Sti,
        M::Stac if supervisor => Class::AccessFlag(true),
        M::Clac if supervisor => Class::AccessFlag(false),
        M::Swapgs if supervisor => Class::SwapGs,
        M::Cld => Class::Cld,
        M::Syscall if !supervisor => Class::SystemCall,
        M::Sysretq if supervisor && insn.code() == Code::Sysretq => Class::SystemReturn,
        _ if insn.is_jcc_short_or_near() && insn.op0_kind() == OpKind::NearBranch64 => {
            Class::JumpIf
        }
        _ if bits::is_bit_test(insn) => Class::BitTest,
        _ => strings::class(insn).unwrap_or_else(|| plain(insn)),
    }
}

fn divide(insn: &Instruction) -> Class {
    match insn.code() {
        Code::Div_rm32 | Code::Div_rm64 | Code::Idiv_rm32 | Code::Idiv_rm64 => Class::Divide,
        _ => Class::Interpret,
    }
}

fn plain(insn: &Instruction) -> Class {
    use Mnemonic as M;
    let fitting = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && insn.flow_control() == FlowControl::Next
        && !insn.is_privileged()
        && !insn.is_stack_instruction()
        && !insn.is_vsib()
        && insn.op_kinds().all(|kind| {
            use OpKind::*;
            matches!(
                kind,
                Register
                    | Memory
                    | Immediate8
                    | Immediate8_2nd
                    | Immediate16
                    | Immediate32
                    | Immediate64
                    | Immediate8to16
                    | Immediate8to32
                    | Immediate8to64
                    | Immediate32to64
            )
        })
        && (0..insn.op_count()).all(|n| {
            let register = insn.op_register(n);
            insn.op_kind(n) != OpKind::Register
                || register.is_gpr()
                || register.is_xmm()
                || register.is_ymm()
        });
    if !fitting || has_absolute_form(insn.code()) {
        return Class::Interpret;
    }
    let unit = Unit::of(insn, false);
    let vector = match insn.mnemonic() {
        M::Vzeroupper | M::Vzeroall => 2,
        mnemonic if is_integer(mnemonic) => 0,
        mnemonic if is_special_vector(mnemonic) => return Class::Interpret,
        _ if !insn.cpuid_features().iter().all(|&f| is_data_processing(f)) => {
            return Class::Interpret;
        }
        _ => match unit {
            Unit::General | Unit::GeneralVex => 0,
            Unit::Sse => 1,
            Unit::Avx => 2,
            _ => return Class::Interpret,
        },
    };
    if !is_simple_count(insn) {
        return Class::Interpret;
    }
    let memory = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory);
    let high = (0..insn.op_count()).any(|n| is_high_byte(insn.op_register(n)));
    let rsp = (0..insn.op_count()).any(|n| {
        insn.op_register(n).is_gpr() && insn.op_register(n).full_register() == Register::RSP
    });
    if high && (memory.is_some() || rsp) {
        return Class::Interpret;
    }
    let access = match memory {
        None => None,
        Some(n) => {
            let size = insn.memory_size().size();
            let bit_string = matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
                && insn.op1_kind() == OpKind::Register;
            if !(1..=32).contains(&size) || bit_string {
                return Class::Interpret;
            }
            let only_read = matches!(insn.mnemonic(), M::Cmp | M::Test | M::Bt | M::Mul | M::Imul);
            Some(Access {
                size: size as u8,
                write: n == 0 && !only_read,
                align: match insn.mnemonic() {
                    M::Cmpxchg16b => 15,
                    _ => alignment(insn, unit),
                },
            })
        }
    };
    Class::Plain {
        memory: access,
        vector,
        accumulator: high || uses_accumulator(insn),
    }
}

/// MOV with a 64-bit absolute address.
fn has_absolute_form(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}

/// Not a shift by an immediate zero, which leaves the flags alone, nor a
/// rotation all the way round, which changes only some.
fn is_simple_count(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let count = match insn.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => 1,
        M::Shld | M::Shrd => 2,
        _ => return true,
    };
    if insn.op_kind(count) == OpKind::Register {
        return true;
    }
    let wide = insn.code().op_code().operand_size() == 64;
    let mask = if wide { 63 } else { 31 };
    let masked = insn.immediate(count) & mask;
    let bits = 8 * insn_size(insn) as u64;
    let round = match insn.mnemonic() {
        M::Rol | M::Ror => bits,
        M::Rcl | M::Rcr => bits + 1,
        _ => u64::MAX,
    };
    masked % round != 0
}

fn insn_size(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Memory => insn.memory_size().size(),
        _ => insn.op0_register().size(),
    }
}

/// Whether an instruction's flags may stay as they were, depending on data.
pub fn may_keep_flags(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let count = match insn.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => 1,
        M::Shld | M::Shrd => 2,
        _ => return false,
    };
    insn.op_kind(count) == OpKind::Register
}

/// The form of an instruction that names RAX, AX or AL by its opcode, with
/// the register in the ModRM byte.
pub fn renamable(code: Code) -> Code {
    use Code::*;
    match code {
        Add_AL_imm8 => Add_rm8_imm8,
        Add_AX_imm16 => Add_rm16_imm16,
        Add_EAX_imm32 => Add_rm32_imm32,
        Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8,
        Or_AX_imm16 => Or_rm16_imm16,
        Or_EAX_imm32 => Or_rm32_imm32,
        Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8,
        Adc_AX_imm16 => Adc_rm16_imm16,
        Adc_EAX_imm32 => Adc_rm32_imm32,
        Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8,
        Sbb_AX_imm16 => Sbb_rm16_imm16,
        Sbb_EAX_imm32 => Sbb_rm32_imm32,
        Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8,
        And_AX_imm16 => And_rm16_imm16,
        And_EAX_imm32 => And_rm32_imm32,
        And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8,
        Sub_AX_imm16 => Sub_rm16_imm16,
        Sub_EAX_imm32 => Sub_rm32_imm32,
        Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8,
        Xor_AX_imm16 => Xor_rm16_imm16,
        Xor_EAX_imm32 => Xor_rm32_imm32,
        Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8,
        Cmp_AX_imm16 => Cmp_rm16_imm16,
        Cmp_EAX_imm32 => Cmp_rm32_imm32,
        Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8,
        Test_AX_imm16 => Test_rm16_imm16,
        Test_EAX_imm32 => Test_rm32_imm32,
        Test_RAX_imm32 => Test_rm64_imm32,
        Xchg_r16_AX => Xchg_rm16_r16,
        Xchg_r32_EAX => Xchg_rm32_r32,
        Xchg_r64_RAX => Xchg_rm64_r64,
        other => crate::stub::plain(other),
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn class_of(supervisor: bool, build: impl FnOnce(&mut CodeAssembler)) -> Class {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a);
        let bytes = a.assemble(0).unwrap();
        let insn = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        classify(&insn, supervisor)
    }

    fn user(build: impl FnOnce(&mut CodeAssembler)) -> Class {
        class_of(false, build)
    }

    fn access(build: impl FnOnce(&mut CodeAssembler)) -> Option<Access> {
        match user(build) {
            Class::Plain { memory, .. } => memory,
            class => panic!("{class:?}"),
        }
    }

    #[test]
    fn system_instructions_depend_on_the_privilege_level() {
        type Build = fn(&mut CodeAssembler);
        let all: [(Build, Class); 5] = [
            (|a| a.cli().unwrap(), Class::Cli),
            (|a| a.sti().unwrap(), Class::Sti),
            (|a| a.stac().unwrap(), Class::AccessFlag(true)),
            (|a| a.clac().unwrap(), Class::AccessFlag(false)),
            (|a| a.swapgs().unwrap(), Class::SwapGs),
        ];
        for (build, class) in all {
            assert_eq!(class_of(true, build), class);
            assert_eq!(user(build), Class::Interpret);
        }
        assert_eq!(user(|a| a.syscall().unwrap()), Class::SystemCall);
        assert_eq!(class_of(true, |a| a.syscall().unwrap()), Class::Interpret);
    }

    #[test]
    fn what_would_touch_the_host_s_state_is_interpreted() {
        type Build = fn(&mut CodeAssembler);
        let all: [Build; 15] = [
            |a| a.std().unwrap(),
            |a| a.popfq().unwrap(),
            |a| a.ldmxcsr(dword_ptr(rcx)).unwrap(),
            |a| a.fld1().unwrap(),
            |a| a.pxor(mm0, mm1).unwrap(),
            |a| a.mov(ds, ecx).unwrap(),
            |a| a.wrfsbase(rcx).unwrap(),
            |a| a.cpuid().unwrap(),
            |a| a.rdtsc().unwrap(),
            |a| a.int3().unwrap(),
            |a| a.xgetbv().unwrap(),
            |a| a.in_(al, dx).unwrap(),
            |a| a.maskmovdqu(xmm0, xmm1).unwrap(),
            |a| a.bts(qword_ptr(rcx), rdx).unwrap(),
            |a| a.mov(cr3, rcx).unwrap(),
        ];
        for (n, build) in all.iter().enumerate() {
            assert_eq!(user(build), Class::Interpret, "number {n}");
            assert_eq!(class_of(true, build), Class::Interpret, "number {n}");
        }
    }

    #[test]
    fn accesses_have_their_size_and_direction() {
        let of = |size, write, align| Some(Access { size, write, align });
        assert_eq!(
            access(|a| a.mov(rcx, qword_ptr(rdx)).unwrap()),
            of(8, false, 0)
        );
        assert_eq!(
            access(|a| a.mov(byte_ptr(rdx), cl).unwrap()),
            of(1, true, 0)
        );
        assert_eq!(
            access(|a| a.add(dword_ptr(rdx), ecx).unwrap()),
            of(4, true, 0)
        );
        assert_eq!(
            access(|a| a.cmp(word_ptr(rdx), cx).unwrap()),
            of(2, false, 0)
        );
        assert_eq!(
            access(|a| a.test(qword_ptr(rdx), rcx).unwrap()),
            of(8, false, 0)
        );
        assert_eq!(
            access(|a| a.movaps(xmm0, xmmword_ptr(rdx)).unwrap()),
            of(16, false, 15)
        );
        assert_eq!(
            access(|a| a.movups(xmmword_ptr(rdx), xmm0).unwrap()),
            of(16, true, 0)
        );
        assert_eq!(
            access(|a| a.vmovdqu(ymmword_ptr(rdx), ymm0).unwrap()),
            of(32, true, 0)
        );
        assert_eq!(
            access(|a| a.cmpxchg16b(xmmword_ptr(rdx)).unwrap()),
            of(16, true, 15)
        );
        assert_eq!(access(|a| a.add(rcx, rdx).unwrap()), None);
    }

    #[test]
    fn fixed_registers_are_seen() {
        let accumulator = |build: fn(&mut CodeAssembler)| match user(build) {
            Class::Plain { accumulator, .. } => accumulator,
            class => panic!("{class:?}"),
        };
        assert!(accumulator(|a| a.mul(rcx).unwrap()));
        assert!(accumulator(|a| a.cmpxchg(qword_ptr(rdx), rcx).unwrap()));
        assert!(accumulator(|a| a.cdq().unwrap()));
        assert!(accumulator(|a| a.mov(ah, cl).unwrap()));
        assert!(!accumulator(|a| a.imul_2(rcx, rdx).unwrap()));
        assert!(!accumulator(|a| a.add(rax, rcx).unwrap()));
    }

    #[test]
    fn repetitions_and_bit_strings_have_their_own_ways() {
        let class = |copies, shift| Class::Repeated { copies, shift };
        assert_eq!(user(|a| a.rep().stosb().unwrap()), class(false, 0));
        assert_eq!(user(|a| a.rep().stosq().unwrap()), class(false, 3));
        assert_eq!(user(|a| a.rep().movsw().unwrap()), class(true, 1));
        assert_eq!(user(|a| a.rep().movsd().unwrap()), class(true, 2));
        assert_eq!(user(|a| a.stosb().unwrap()), Class::Interpret);
        assert_eq!(user(|a| a.repe().scasb().unwrap()), Class::Interpret);
        let bits = |build: fn(&mut CodeAssembler)| user(build);
        assert_eq!(bits(|a| a.bt(ptr(rcx), rdx).unwrap()), Class::BitTest);
        assert_eq!(bits(|a| a.bt(ptr(rcx), edx).unwrap()), Class::BitTest);
        assert_eq!(bits(|a| a.bt(ptr(rcx), dx).unwrap()), Class::Interpret);
        assert_eq!(bits(|a| a.bt(ptr(ecx), rdx).unwrap()), Class::Interpret);
    }

    #[test]
    fn rotations_all_the_way_round_are_interpreted() {
        let plain = |build: fn(&mut CodeAssembler)| matches!(user(build), Class::Plain { .. });
        assert!(plain(|a| a.rol(cx, 8u32).unwrap()));
        assert!(!plain(|a| a.rol(cx, 16u32).unwrap()));
        assert!(!plain(|a| a.ror(cl, 8u32).unwrap()));
        assert!(plain(|a| a.ror(cl, 9u32).unwrap()));
        assert!(!plain(|a| a.rcl(cl, 9u32).unwrap()));
        assert!(!plain(|a| a.rcr(cx, 17u32).unwrap()));
        assert!(plain(|a| a.rcl(ecx, 31u32).unwrap()));
    }

    #[test]
    fn shifts_by_nothing_are_interpreted() {
        let shift = |count: u32| user(|a| a.shl(rcx, count).unwrap());
        assert!(matches!(shift(5), Class::Plain { .. }));
        assert_eq!(shift(0), Class::Interpret);
        assert_eq!(shift(64), Class::Interpret);
        assert!(may_keep_flags(&{
            let mut a = CodeAssembler::new(64).unwrap();
            a.shl(rcx, cl).unwrap();
            a.instructions()[0]
        }));
    }

    #[test]
    fn forms_that_name_a_register_are_renamed() {
        for (code, other) in [
            (Code::Add_RAX_imm32, Code::Add_rm64_imm32),
            (Code::Test_AL_imm8, Code::Test_rm8_imm8),
            (Code::Xchg_r64_RAX, Code::Xchg_rm64_r64),
        ] {
            assert_eq!(renamable(code), other);
        }
    }
}
