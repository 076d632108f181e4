//! From an instruction form to tests of it: operands, encoding, placement.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpCodeInfo,
    OpCodeOperandKind as Kind, OpKind, Register,
};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::draft::{Draft, explicit};
use crate::layout::{CODE, GS_BASE};
use crate::place::{self, Placement, Scenario};
use crate::state::Input;
use crate::values;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// TF.
const TRAP: u64 = 1 << 8;
/// AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// Size of XSAVE areas, which no operand type tells.
const XSAVE_AREA: u64 = crate::state::XSAVE as u64;

/// What addresses a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// ModRM or an offset in the instruction.
    Explicit,
    /// RSP before a pop.
    Pop,
    /// RSP before a push.
    Push,
    /// RBP (LEAVE).
    Frame,
    /// rSI.
    Source,
    /// rDI.
    Destination,
    /// RBX + AL.
    Table,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    by: By,
    size: u64,
}

/// An instruction form and how its memory operands are addressed.
pub struct Form {
    code: Code,
    info: &'static OpCodeInfo,
    slots: Vec<Slot>,
}

/// An operand that can, or must, be in memory.
pub fn has_memory(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        mem_offs
            | mem
            | mem_vsib32x
            | mem_vsib64x
            | mem_vsib32y
            | mem_vsib64y
            | r8_or_mem
            | r16_or_mem
            | r32_or_mem
            | r64_or_mem
            | mm_or_mem
            | xmm_or_mem
            | ymm_or_mem
    )
}

fn is_xsave(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Xsave
            | Xsave64
            | Xsaveopt
            | Xsaveopt64
            | Xsavec
            | Xsavec64
            | Xsaves
            | Xsaves64
            | Xrstor
            | Xrstor64
            | Xrstors
            | Xrstors64
    )
}

impl Form {
    /// The form of `code`.
    pub fn new(code: Code) -> Form {
        let info = code.op_code();
        let mut size = info.memory_size().size() as u64;
        if is_xsave(code) {
            size = XSAVE_AREA;
        }
        let size = size.max(1);
        let mut slots = Vec::new();
        for kind in info.op_kinds() {
            let by = match kind {
                kind if has_memory(*kind) => By::Explicit,
                Kind::seg_rSI => By::Source,
                Kind::es_rDI | Kind::seg_rDI => By::Destination,
                Kind::seg_rBX_al => By::Table,
                _ => continue,
            };
            slots.push(Slot { by, size });
        }
        let mut insn = Instruction::default();
        insn.set_code(code);
        let moved = insn.stack_pointer_increment();
        match code.mnemonic() {
            Mnemonic::Leave => slots.push(Slot {
                by: By::Frame,
                size: 8,
            }),
            Mnemonic::Enter => slots.push(Slot {
                by: By::Push,
                size: 8,
            }),
            _ if moved != 0 => slots.push(Slot {
                by: if moved < 0 { By::Push } else { By::Pop },
                size: u64::from(moved.unsigned_abs()),
            }),
            _ => {}
        }
        Form { code, info, slots }
    }

    /// Every placement worth trying.
    pub fn scenarios(&self) -> Vec<Scenario> {
        let sizes: Vec<u64> = self.slots.iter().map(|slot| slot.size).collect();
        place::scenarios(&sizes)
    }

    /// A test, unless this form or these random choices have no encoding.
    pub fn instance(&self, rng: &mut SmallRng, scenario: &Scenario) -> Option<Input> {
        (0..16).find_map(|_| self.attempt(rng, scenario))
    }

    fn attempt(&self, rng: &mut SmallRng, scenario: &Scenario) -> Option<Input> {
        let mut draft = Draft {
            regs: std::array::from_fn(|_| values::integer(rng)),
            pinned: [false; 16],
            xsave: values::xsave(rng),
            flags: values::flags(rng),
            memory: Vec::new(),
            insn: Instruction::default(),
            narrow: rng.random_bool(0.25)
                && scenario
                    .operand
                    .is_none_or(|(_, p)| p != Placement::NonCanonical),
        };
        draft.insn.set_code(self.code);
        let stack = place::data(rng, Placement::Free, 256);
        draft.pin(RSP, stack);
        // Nearby for what reads through the frame pointer.
        if matches!(self.code.mnemonic(), Mnemonic::Enter | Mnemonic::Leave) {
            let frame = place::data(rng, Placement::Free, 8);
            draft.pin(RBP, frame);
        }
        self.prefixes(rng, &mut draft);
        let mut addresses = Vec::new();
        for (n, slot) in self.slots.iter().enumerate() {
            let placement = match scenario.operand {
                Some((which, placement)) if which == n => placement,
                _ => Placement::Free,
            };
            let address = place::data(rng, placement, slot.size);
            addresses.push(address);
            place_implicit(rng, &mut draft, *slot, address);
        }
        self.tune(rng, &mut draft);
        let mut memory_operand = false;
        for (n, kind) in self.info.op_kinds().iter().enumerate() {
            if has_memory(*kind) {
                let slot = self.slots.iter().position(|slot| slot.by == By::Explicit)?;
                let wanted = scenario.operand.is_some_and(|(which, _)| which == slot);
                let only = matches!(
                    kind,
                    Kind::mem
                        | Kind::mem_offs
                        | Kind::mem_vsib32x
                        | Kind::mem_vsib64x
                        | Kind::mem_vsib32y
                        | Kind::mem_vsib64y
                );
                if only || wanted || rng.random_bool(0.4) {
                    memory_operand = true;
                    explicit(rng, &mut draft, n as u32, *kind, addresses[slot])?;
                }
            }
        }
        if memory_operand && self.info.can_use_lock_prefix() && rng.random_bool(0.3) {
            draft.insn.set_has_lock_prefix(true);
        }
        for (n, kind) in self.info.op_kinds().iter().enumerate() {
            let is_memory = draft.insn.op_kind(n as u32) == OpKind::Memory;
            if !(has_memory(*kind) && memory_operand && is_memory) {
                self.operand(rng, &mut draft, n as u32, *kind)?;
            }
        }
        let len = encode(&draft.insn, CODE)?.len() as u64;
        let rip = place::code(rng, scenario.code, len)?;
        self.branch(rng, &mut draft, rip, len);
        let mut code = encode(&draft.insn, rip)?;
        if code.len() as u64 != len || !self.decodes(&code, rip) {
            return None;
        }
        self.stray_prefix(rng, &draft, scenario, rip, &mut code);
        for (slot, address) in self.slots.iter().zip(&addresses) {
            // What a push overwrites does not matter, and could lie over the
            // other operand: a branch's target.
            let read = match slot.by {
                By::Push => false,
                By::Explicit => memory_operand,
                _ => true,
            };
            if read {
                let bytes = self.contents(rng, &mut draft, *slot, rip);
                draft.memory.push((*address, bytes));
            }
        }
        self.aim(rng, &mut draft, rip);
        Some(Input {
            regs: draft.regs,
            rip,
            rflags: draft.flags,
            xsave: draft.xsave,
            code,
            memory: draft.memory,
        })
    }

    fn decodes(&self, code: &[u8], rip: u64) -> bool {
        let mut decoder = Decoder::with_ip(64, code, rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        insn.code() == self.code && insn.len() == code.len()
    }

    /// A prefix that means nothing here, or is illegal.
    fn stray_prefix(
        &self,
        rng: &mut SmallRng,
        draft: &Draft,
        scenario: &Scenario,
        rip: u64,
        code: &mut Vec<u8>,
    ) {
        let fits = scenario.code == Placement::Free && code.len() < 14;
        let relative = draft.insn.is_ip_rel_memory_operand()
            || draft
                .insn
                .op_kinds()
                .any(|kind| kind == OpKind::NearBranch64);
        if !fits || relative || !rng.random_bool(0.08) {
            return;
        }
        const PREFIXES: [u8; 9] = [0xF0, 0xF2, 0xF3, 0x66, 0x26, 0x2E, 0x36, 0x3E, 0x67];
        let prefix = PREFIXES[rng.random_range(0..PREFIXES.len())];
        let narrow_breaks = draft.insn.segment_prefix() != Register::None
            || self.slots.iter().any(|slot| slot.by != By::Explicit);
        if prefix == 0x67 && narrow_breaks {
            return;
        }
        let mut longer = vec![prefix];
        longer.extend_from_slice(code);
        let insn = Decoder::with_ip(64, &longer, rip, DecoderOptions::NONE).decode();
        if insn.is_invalid() || insn.code() == self.code && insn.len() == longer.len() {
            *code = longer;
        }
    }

    fn prefixes(&self, rng: &mut SmallRng, draft: &mut Draft) {
        let string = self
            .slots
            .iter()
            .any(|slot| matches!(slot.by, By::Source | By::Destination));
        if string && self.info.can_use_rep_prefix() && rng.random_bool(0.6) {
            draft.insn.set_has_rep_prefix(true);
        } else if string && self.info.can_use_repne_prefix() && rng.random_bool(0.6) {
            draft.insn.set_has_repne_prefix(true);
        }
        let repeated = draft.insn.has_rep_prefix() || draft.insn.has_repne_prefix();
        if repeated {
            let count = match rng.random_range(0..8) {
                0 => 0,
                1 => 1,
                2 => rng.random_range(0..5000),
                _ => rng.random_range(0..70),
            };
            let garbage = if draft.narrow {
                rng.random::<u64>() << 32
            } else {
                0
            };
            draft.pin(RCX, garbage | count);
        }
    }

    /// Values without which nearly every test would be the same fault.
    fn tune(&self, rng: &mut SmallRng, draft: &mut Draft) {
        use Mnemonic::*;
        match self.code.mnemonic() {
            Div | Idiv if rng.random_bool(0.7) => {
                let high = [0, 1, u64::MAX, 3][rng.random_range(0..4)];
                draft.regs[RDX] = high;
                if rng.random() {
                    draft.regs[RAX] &= 0x7F;
                }
            }
            Pcmpestri | Pcmpestrm | Vpcmpestri | Vpcmpestrm | Pcmpestri64 | Pcmpestrm64
            | Vpcmpestri64 | Vpcmpestrm64
                if rng.random_bool(0.7) =>
            {
                draft.regs[RAX] = rng.random_range(-20i64..20) as u64;
                draft.regs[RDX] = rng.random_range(-20i64..20) as u64;
            }
            Loop | Loope | Loopne | Jecxz | Jrcxz if rng.random_bool(0.5) => {
                draft.regs[RCX] = rng.random_range(0..3);
            }
            // Which bytes must be aligned then depends on the mask in ways
            // that no manual tells.
            Maskmovdqu | Vmaskmovdqu => draft.flags &= !ALIGNMENT_CHECK,
            _ if is_xsave(self.code) => {
                let mask = rng.random_range(0..8);
                draft.pin(RAX, mask);
                draft.pin(RDX, 0);
            }
            _ => {}
        }
    }

    /// Which instruction it is a form of.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the manual says of its encoding.
    pub fn info(&self) -> &'static OpCodeInfo {
        self.info
    }

    /// Bytes of its first memory operand.
    pub fn size(&self) -> u64 {
        self.slots.first().map_or(8, |slot| slot.size)
    }

    /// Whether RSI, RDI and RBX address operands that it does not name.
    pub fn implicit(&self) -> [bool; 3] {
        [By::Source, By::Destination, By::Table]
            .map(|by| self.slots.iter().any(|slot| slot.by == by))
    }

    /// A string instruction that can be repeated.
    pub fn is_string(&self) -> bool {
        let [source, destination, _] = self.implicit();
        (source || destination) && self.info.can_use_rep_prefix()
    }

    /// Fills in operand `n`, other than memory.
    pub fn operand(&self, rng: &mut SmallRng, draft: &mut Draft, n: u32, kind: Kind) -> Option<()> {
        use Kind::*;
        let register = match kind {
            r8_or_mem | r8_reg | r8_opcode => {
                const LOW: [Register; 20] = [
                    Register::AL,
                    Register::CL,
                    Register::DL,
                    Register::BL,
                    Register::AH,
                    Register::CH,
                    Register::DH,
                    Register::BH,
                    Register::SPL,
                    Register::BPL,
                    Register::SIL,
                    Register::DIL,
                    Register::R8L,
                    Register::R9L,
                    Register::R10L,
                    Register::R11L,
                    Register::R12L,
                    Register::R13L,
                    Register::R14L,
                    Register::R15L,
                ];
                LOW[rng.random_range(0..LOW.len())]
            }
            r16_or_mem | r16_reg | r16_reg_mem | r16_rm | r16_opcode => {
                Register::AX + rng.random_range(0..16u32)
            }
            r32_or_mem | r32_reg | r32_reg_mem | r32_rm | r32_opcode | r32_vvvv => {
                Register::EAX + rng.random_range(0..16u32)
            }
            r64_or_mem | r64_reg | r64_reg_mem | r64_rm | r64_opcode | r64_vvvv => {
                Register::RAX + rng.random_range(0..16u32)
            }
            seg_reg => {
                // FS would be the host thread's.
                let n = [0, 2, 3, 5, 4][rng.random_range(0..4)];
                Register::ES + n
            }
            mm_or_mem | mm_reg | mm_rm => Register::MM0 + rng.random_range(0..8u32),
            xmm_or_mem | xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 | xmm_is5 => {
                Register::XMM0 + rng.random_range(0..16u32)
            }
            ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 | ymm_is5 => {
                Register::YMM0 + rng.random_range(0..16u32)
            }
            cr_reg => Register::CR0 + [0, 2, 3, 4, 8][rng.random_range(0..5)],
            dr_reg => Register::DR0 + rng.random_range(0..8u32),
            es => Register::ES,
            cs => Register::CS,
            ss => Register::SS,
            ds => Register::DS,
            fs => Register::FS,
            gs => Register::GS,
            al => Register::AL,
            cl => Register::CL,
            ax => Register::AX,
            dx => Register::DX,
            eax => Register::EAX,
            rax => Register::RAX,
            st0 => Register::ST0,
            sti_opcode => Register::ST0 + rng.random_range(0..8u32),
            _ => return self.other_operand(rng, draft, n, kind),
        };
        draft.insn.set_op_kind(n, OpKind::Register);
        draft.insn.set_op_register(n, register);
        // Bit offsets reach far from a memory operand.
        let bits = matches!(
            self.code.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        );
        if bits && n == 1 && draft.insn.op0_kind() == OpKind::Memory {
            let index = (register.full_register() as usize) - Register::RAX as usize;
            if !draft.pinned[index] {
                let near = rng.random_range(-70_000i64..70_000);
                draft.regs[index] = match register.size() {
                    2 => rng.random::<u64>() << 16 | near as u64 & 0xFFFF,
                    4 => rng.random::<u64>() << 32 | near as u64 & 0xFFFF_FFFF,
                    _ => near as u64,
                };
            }
        }
        Some(())
    }

    fn other_operand(
        &self,
        rng: &mut SmallRng,
        draft: &mut Draft,
        n: u32,
        kind: Kind,
    ) -> Option<()> {
        use Kind::*;
        let insn = &mut draft.insn;
        let immediate = values::integer(rng);
        match kind {
            imm8 | imm4_m2z => {
                let second = (0..n)
                    .any(|k| matches!(insn.op_kind(k), OpKind::Immediate8 | OpKind::Immediate16));
                if second {
                    insn.set_op_kind(n, OpKind::Immediate8_2nd);
                    insn.set_immediate8_2nd(immediate as u8);
                } else {
                    insn.set_op_kind(n, OpKind::Immediate8);
                    insn.set_immediate8(immediate as u8);
                }
            }
            imm8_const_1 => {
                insn.set_op_kind(n, OpKind::Immediate8);
                insn.set_immediate8(1);
            }
            imm8sex16 => {
                insn.set_op_kind(n, OpKind::Immediate8to16);
                insn.set_immediate8to16(i16::from(immediate as i8));
            }
            imm8sex32 => {
                insn.set_op_kind(n, OpKind::Immediate8to32);
                insn.set_immediate8to32(i32::from(immediate as i8));
            }
            imm8sex64 => {
                insn.set_op_kind(n, OpKind::Immediate8to64);
                insn.set_immediate8to64(i64::from(immediate as i8));
            }
            imm16 => {
                insn.set_op_kind(n, OpKind::Immediate16);
                insn.set_immediate16(immediate as u16);
            }
            imm32 => {
                insn.set_op_kind(n, OpKind::Immediate32);
                insn.set_immediate32(immediate as u32);
            }
            imm32sex64 => {
                insn.set_op_kind(n, OpKind::Immediate32to64);
                insn.set_immediate32to64(i64::from(immediate as i32));
            }
            imm64 => {
                insn.set_op_kind(n, OpKind::Immediate64);
                insn.set_immediate64(immediate);
            }
            seg_rSI if draft.narrow => insn.set_op_kind(n, OpKind::MemorySegESI),
            seg_rSI => insn.set_op_kind(n, OpKind::MemorySegRSI),
            es_rDI if draft.narrow => insn.set_op_kind(n, OpKind::MemoryESEDI),
            es_rDI => insn.set_op_kind(n, OpKind::MemoryESRDI),
            seg_rDI if draft.narrow => insn.set_op_kind(n, OpKind::MemorySegEDI),
            seg_rDI => insn.set_op_kind(n, OpKind::MemorySegRDI),
            seg_rBX_al => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_base(if draft.narrow {
                    Register::EBX
                } else {
                    Register::RBX
                });
                insn.set_memory_index(Register::AL);
            }
            br64_1 | br64_4 => {
                insn.set_op_kind(n, OpKind::NearBranch64);
                insn.set_near_branch64(CODE);
            }
            _ => return Option::None,
        }
        Some(())
    }

    /// The target of a relative branch.
    fn branch(&self, rng: &mut SmallRng, draft: &mut Draft, rip: u64, len: u64) {
        for kind in self.info.op_kinds() {
            let target = match kind {
                Kind::br64_1 => loop {
                    let near = rip + len;
                    let target = near.wrapping_add(rng.random::<i8>() as u64);
                    if target.wrapping_sub(rip) >= len {
                        break target;
                    }
                },
                Kind::br64_4 => loop {
                    let target = place::target(rng, rip);
                    if target >> 32 == 0 {
                        break target;
                    }
                },
                _ => continue,
            };
            draft.insn.set_near_branch64(target);
        }
    }

    /// An indirect branch's register operand.
    fn aim(&self, rng: &mut SmallRng, draft: &mut Draft, rip: u64) {
        let indirect = matches!(
            draft.insn.flow_control(),
            FlowControl::IndirectBranch | FlowControl::IndirectCall
        );
        if indirect && draft.insn.op0_kind() == OpKind::Register {
            let n = draft.insn.op0_register().full_register() as usize - Register::RAX as usize;
            if n == RSP {
                // The stack becomes code: at its place, not the instruction.
                return;
            }
            draft.regs[n] = place::target(rng, rip);
        }
    }

    /// What a memory operand holds.
    fn contents(&self, rng: &mut SmallRng, draft: &mut Draft, slot: Slot, rip: u64) -> Vec<u8> {
        use Mnemonic::*;
        let flow = draft.insn.flow_control();
        let branch = matches!(
            (flow, slot.by),
            (FlowControl::Return, By::Pop)
                | (
                    FlowControl::IndirectBranch | FlowControl::IndirectCall,
                    By::Explicit
                )
        );
        if branch {
            return place::target(rng, rip).to_le_bytes().to_vec();
        }
        let mut bytes = vec![0; slot.size as usize];
        match self.code.mnemonic() {
            _ if is_xsave(self.code)
                || matches!(
                    self.code.mnemonic(),
                    Fxrstor | Fxrstor64 | Fxsave | Fxsave64
                ) =>
            {
                let area = values::xsave(rng);
                bytes.copy_from_slice(&area.0[..slot.size as usize]);
                self.header(rng, &mut bytes);
            }
            Popf | Popfq | Popfd => {
                let mut flags = rng.random::<u64>();
                flags &= !TRAP;
                let all = flags.to_le_bytes();
                let len = bytes.len().min(8);
                bytes[..len].copy_from_slice(&all[..len]);
            }
            Ldmxcsr | Vldmxcsr => {
                let mut value = values::mxcsr(rng);
                if rng.random_bool(0.1) {
                    value |= 1 << rng.random_range(0..32);
                }
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            Cmpxchg if rng.random() => {
                let rax = draft.regs[RAX].to_le_bytes();
                bytes.copy_from_slice(&rax[..slot.size as usize]);
            }
            Cmpxchg8b if rng.random() => {
                bytes[..4].copy_from_slice(&draft.regs[RAX].to_le_bytes()[..4]);
                bytes[4..].copy_from_slice(&draft.regs[RDX].to_le_bytes()[..4]);
            }
            Cmpxchg16b if rng.random() => {
                bytes[..8].copy_from_slice(&draft.regs[RAX].to_le_bytes());
                bytes[8..].copy_from_slice(&draft.regs[RDX].to_le_bytes());
            }
            _ if slot.size <= 8 && rng.random() => {
                bytes.copy_from_slice(&values::integer(rng).to_le_bytes()[..slot.size as usize]);
            }
            _ => values::lanes(rng, &mut bytes),
        }
        bytes
    }

    /// Varies the header of an XSAVE area: components missing, sometimes
    /// something that no area may have.
    fn header(&self, rng: &mut SmallRng, bytes: &mut [u8]) {
        if bytes.len() <= 576 {
            return;
        }
        bytes[512] = rng.random_range(0..8);
        match rng.random_range(0..12) {
            0 => bytes[513..576][rng.random_range(0..63)] = rng.random(),
            1..4 => {
                bytes[520] = 7;
                bytes[527] = 0x80;
            }
            _ => {}
        }
        if rng.random_bool(0.05) {
            bytes[27] = 1;
        }
    }
}

/// Points a register at an operand that the instruction does not name.
fn place_implicit(rng: &mut SmallRng, draft: &mut Draft, slot: Slot, address: u64) {
    let garbage = if draft.narrow {
        rng.random::<u64>() << 32
    } else {
        0
    };
    match slot.by {
        By::Explicit => {}
        By::Pop => draft.pin(RSP, address),
        By::Push => draft.pin(RSP, address.wrapping_add(slot.size)),
        By::Frame => draft.pin(RBP, address),
        By::Source => {
            let gs = !draft.narrow && rng.random_bool(0.15);
            let base = if gs {
                draft.insn.set_segment_prefix(Register::GS);
                GS_BASE
            } else {
                0
            };
            draft.pin(RSI, address.wrapping_sub(base) | garbage);
        }
        By::Destination => draft.pin(RDI, address | garbage),
        By::Table => {
            draft.pinned[RAX] = true;
            let al = draft.regs[RAX] & 0xFF;
            draft.pin(RBX, address.wrapping_sub(al) | garbage);
        }
    }
}

/// Encodes at `rip`.
fn encode(insn: &Instruction, rip: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(insn, rip).ok()?;
    Some(encoder.take_buffer())
}
