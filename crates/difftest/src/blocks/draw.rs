//! Random cases.

use croft_engine::CpuProfile;
use iced_x86::{
    Code, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};
use rand::Rng;
use rand::rngs::SmallRng;

use super::layout::{CODE, CODE_PAGES, DATA, INT3, KINDS, PAGE, Page, ROOM};
use crate::draft::{Draft, explicit};
use crate::features;
use crate::form::{Form, has_memory};
use crate::state::Xsave;
use crate::values;

/// RBX, for XLAT.
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
/// TF.
const TRAP: u64 = 1 << 8;
/// Most instructions of a case, those that prepare addresses aside.
const LONGEST: usize = 24;

/// Some instructions and what they start from.
pub struct Case {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15.
    pub regs: [u64; 16],
    /// Linear address of the first.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// At CPL 3; else at CPL 0.
    pub user: bool,
    /// x87, SSE and AVX.
    pub xsave: Xsave,
    /// The bytes at RIP.
    pub code: Vec<u8>,
}

/// What cases are drawn from.
pub struct Draw {
    /// Every form that the model announces, but for [`is_left_out`].
    all: Vec<Form>,
    /// Forms that compilers and kernels use most.
    common: Vec<Form>,
}

/// Forms that would not come back, or change what the guest stands on.
fn is_left_out(code: Code) -> bool {
    use Mnemonic::*;
    let mut insn = Instruction::default();
    insn.set_code(code);
    let kept = matches!(
        code.mnemonic(),
        Cli | Sti | Clac | Stac | Swapgs | Rdtsc | Rdtscp | Cpuid | Clts
    );
    let flow = insn.flow_control();
    !kept
        && (insn.is_privileged()
            || insn.is_jmp_far()
            || insn.is_jmp_far_indirect()
            || insn.is_call_far()
            || insn.is_call_far_indirect()
            || matches!(flow, FlowControl::Interrupt | FlowControl::XbeginXabortXend)
            || matches!(
                code.mnemonic(),
                Syscall
                    | Sysenter
                    | Sysret
                    | Sysretq
                    | Sysexit
                    | Sysexitq
                    | Iret
                    | Iretd
                    | Iretq
                    | Retf
                    | Hlt
                    | Mwait
                    | Monitor
                    | Vmcall
                    | Vmmcall
                    | Xsetbv
            )
            || code
                .op_code()
                .op_kinds()
                .iter()
                .any(|kind| matches!(kind, Kind::cr_reg | Kind::dr_reg | Kind::seg_reg)))
}

fn is_common(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Sub
            | And
            | Or
            | Xor
            | Cmp
            | Test
            | Adc
            | Sbb
            | Inc
            | Dec
            | Neg
            | Not
            | Lea
            | Push
            | Pop
            | Pushfq
            | Popfq
            | Leave
            | Call
            | Ret
            | Shl
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
            | Div
            | Idiv
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
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
            | Cmove
            | Cmovb
            | Cmovg
            | Cmovs
            | Sete
            | Setb
            | Setg
            | Seto
            | Setp
            | Je
            | Jne
            | Jb
            | Ja
            | Jl
            | Jg
            | Jo
            | Jp
            | Js
            | Jmp
            | Movaps
            | Movups
            | Movdqa
            | Movdqu
            | Movq
            | Movd
            | Addsd
            | Mulsd
            | Pxor
            | Paddd
            | Vmovdqu
            | Vmovdqa
            | Vpxor
            | Vpaddd
            | Vzeroupper
            | Cli
            | Sti
            | Clac
            | Stac
            | Swapgs
            | Cld
            | Std
            | Stosb
            | Stosq
            | Movsb
            | Movsq
            | Lahf
            | Sahf
            | Clc
            | Stc
            | Cmc
            | Nop
    )
}

impl Draw {
    /// For guests of this processor.
    pub fn new(profile: &CpuProfile) -> Self {
        let announced = features::announced(profile);
        let forms = features::forms(&announced);
        let drawn = |wanted: fn(Code) -> bool| -> Vec<Form> {
            forms
                .iter()
                .filter(|code| !is_left_out(**code) && wanted(**code))
                .map(|code| Form::new(*code))
                .collect()
        };
        Draw {
            all: drawn(|_| true),
            common: drawn(is_common),
        }
    }

    /// A case for room `slot` of the code.
    pub fn case(&self, rng: &mut SmallRng, slot: usize) -> Case {
        let mut regs = std::array::from_fn(|_| values::integer(rng));
        regs[RSP] = stack(rng);
        // Pointers, for operands that nothing prepares.
        for n in [RBP, 9, 15] {
            if rng.random() {
                regs[n] = data(rng, 8);
            }
        }
        let start = CODE + slot as u64 * ROOM + rng.random_range(0..64);
        // Some lie across two pages.
        let end = CODE + (slot as u64 + 1) * ROOM;
        let user = rng.random_bool(0.5);
        let mut code = Vec::new();
        let mut branches = Vec::new();
        let mut starts = Vec::new();
        for _ in 0..rng.random_range(1..=LONGEST) {
            starts.push(code.len());
            let at = start + code.len() as u64;
            if end - at < 80 {
                break;
            }
            let forms = if rng.random_bool(0.75) {
                &self.common
            } else {
                &self.all
            };
            let form = &forms[rng.random_range(0..forms.len())];
            if let Some((bytes, near)) = instructions(rng, form, at) {
                code.extend_from_slice(&bytes);
                if let Some(near) = near {
                    let behind = code.len();
                    branches.push(Branch { behind, near });
                }
            }
        }
        starts.push(code.len());
        for branch in branches {
            aim(rng, &mut code, branch, &starts);
        }
        code.push(INT3);
        let mut rflags = values::flags(rng) & !TRAP;
        if !user {
            // Interrupts are for the user: nothing waits for any.
            rflags &= !(rng.random::<u64>() & 1 << 9);
        }
        Case {
            regs,
            rip: start,
            rflags,
            user,
            xsave: if rng.random_bool(0.2) {
                values::xsave(rng)
            } else {
                quiet(rng)
            },
            code,
        }
    }
}

/// Vector state under which nothing raises an exception.
fn quiet(rng: &mut SmallRng) -> Xsave {
    let mut area = Xsave::default();
    for n in 0..16 {
        let mut ymm = [0; 32];
        values::lanes(rng, &mut ymm);
        area.set_ymm(n, &ymm);
    }
    area
}

/// An address for `size` bytes of data, mostly where all is allowed.
fn data(rng: &mut SmallRng, size: u64) -> u64 {
    let page = |rng: &mut SmallRng, n: u64| DATA + n * PAGE + rng.random_range(0..PAGE);
    match rng.random_range(0..100) {
        // Across the border of two pages.
        0..8 => {
            let first = rng.random_range(0..=size);
            (DATA + rng.random_range(1..KINDS.len() as u64) * PAGE).wrapping_sub(first)
        }
        8..14 => {
            let n = rng.random_range(0..KINDS.len() as u64);
            page(rng, n)
        }
        14 => rng.random(),
        15 => CODE + rng.random_range(0..CODE_PAGES * PAGE),
        _ => {
            let n = loop {
                let n = rng.random_range(0..KINDS.len());
                if matches!(KINDS[n], Page::Writable(_)) {
                    break n as u64;
                }
            };
            let align = [1, 4, 8, 16, 32, 32][rng.random_range(0..6)];
            let within = rng.random_range(0..PAGE - size.min(PAGE - 1));
            DATA + n * PAGE + (within & !(align - 1))
        }
    }
}

fn stack(rng: &mut SmallRng) -> u64 {
    DATA + 2 * PAGE + (rng.random_range(0..PAGE) & !7)
}

/// A branch that wants a target.
#[derive(Clone, Copy)]
struct Branch {
    /// Offset of the next instruction.
    behind: usize,
    /// Its displacement has four bytes, else one.
    near: bool,
}

/// One instruction of this form at `at`, behind others that put addresses
/// into its registers. With a relative branch, whether it is a near one.
fn instructions(rng: &mut SmallRng, form: &Form, at: u64) -> Option<(Vec<u8>, Option<bool>)> {
    let mut draft = Draft {
        regs: std::array::from_fn(|_| 0),
        pinned: [false; 16],
        xsave: Xsave::default(),
        flags: 0,
        memory: Vec::new(),
        insn: Instruction::default(),
        narrow: rng.random_bool(0.1),
    };
    draft.insn.set_code(form.code());
    // Nobody loses the stack for an address.
    draft.pinned[RSP] = true;
    for n in 0..16 {
        draft.regs[n] = u64::from(rng.random::<u8>());
    }
    let size = form.size();
    let mut pins: [bool; 16] = [false; 16];
    for (n, wanted) in form.implicit().into_iter().enumerate() {
        if wanted {
            draft.pin([RSI, RDI, RBX][n], data(rng, size));
        }
    }
    if form.is_string() && rng.random_bool(0.5) {
        draft.insn.set_has_rep_prefix(true);
        draft.pin(1, rng.random_range(0..40));
    }
    let kinds = form.info().op_kinds();
    let mut memory_operand = false;
    for (n, kind) in kinds.iter().enumerate() {
        let only = matches!(kind, Kind::mem | Kind::mem_offs);
        let vector = matches!(
            kind,
            Kind::mem_vsib32x | Kind::mem_vsib64x | Kind::mem_vsib32y | Kind::mem_vsib64y
        );
        if vector {
            return None;
        }
        if has_memory(*kind) && (only || rng.random_bool(0.45)) {
            memory_operand = true;
            let address = data(rng, size);
            explicit(rng, &mut draft, n as u32, *kind, address)?;
        }
    }
    if memory_operand && form.info().can_use_lock_prefix() && rng.random_bool(0.2) {
        draft.insn.set_has_lock_prefix(true);
    }
    for (n, pinned) in draft.pinned.iter().enumerate() {
        // Sometimes nothing is prepared, and the operand is anywhere.
        pins[n] = *pinned && n != RSP && rng.random_bool(0.97);
    }
    let pinned = draft.pinned;
    let values = draft.regs;
    for (n, kind) in kinds.iter().enumerate() {
        let is_memory = draft.insn.op_kind(n as u32) == OpKind::Memory;
        if !(has_memory(*kind) && memory_operand && is_memory) {
            form.operand(rng, &mut draft, n as u32, *kind)?;
        }
    }
    // The stack pointer stays what it is in all but a few.
    if writes_stack_pointer(&draft.insn) && rng.random_bool(0.95) {
        return None;
    }
    let mut bytes = Vec::new();
    for n in 0..16 {
        if pinned[n] && pins[n] {
            let register = Register::RAX + n as u32;
            let mov = Instruction::with2(Code::Mov_r64_imm64, register, values[n]).ok()?;
            bytes.extend(encode(&mov, at)?);
        }
    }
    let at = at + bytes.len() as u64;
    let near = kinds.iter().find_map(|kind| match kind {
        Kind::br64_1 => Some(false),
        Kind::br64_4 => Some(true),
        _ => None,
    });
    if near.is_some() {
        draft.insn.set_near_branch64(at + 2);
    }
    let encoded = encode(&draft.insn, at)?;
    bytes.extend(encoded);
    Some((bytes, near))
}

fn writes_stack_pointer(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Register
        && insn.op0_register().is_gpr()
        && insn.op0_register().full_register() == Register::RSP
        || matches!(insn.mnemonic(), Mnemonic::Leave | Mnemonic::Enter)
}

/// Lets a branch lead to one of `starts` further on.
fn aim(rng: &mut SmallRng, code: &mut [u8], branch: Branch, starts: &[usize]) {
    let Branch { behind, near } = branch;
    let later: Vec<usize> = starts.iter().copied().filter(|s| *s >= behind).collect();
    let Some(target) = later.get(rng.random_range(0..later.len().max(1))) else {
        return;
    };
    let distance = target - behind;
    if near {
        code[behind - 4..behind].copy_from_slice(&(distance as u32).to_le_bytes());
    } else if let Ok(short) = i8::try_from(distance) {
        code[behind - 1] = short as u8;
    }
}

fn encode(insn: &Instruction, at: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(insn, at).ok()?;
    Some(encoder.take_buffer())
}
