//! From guest bytes to blocks.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::block::{Block, MAX_OPS};
use crate::cpu::{CodeSize, Cpu, RIP, ZERO, seg};
use crate::fault::Exec;
use crate::op::{Flow, Op, Side, op_flag, reg_index};
use crate::tlb::{AccessMode, Entry, Tlb};
use crate::translate::{PlantedInCode, is_outside, is_planted};
use crate::walk::Want;
use crate::{integer, stub, system};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes looked at for one block.
const WINDOW: usize = 256;
/// Longest instruction (SDM vol. 2, 2.3.11).
const LONGEST: usize = 15;

/// Where instruction bytes come from.
#[derive(Clone, Copy)]
struct Fetched {
    gpa: u64,
    /// Host address of the byte; `None` where there is no RAM.
    host: Option<*const u8>,
}

fn undefined(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    Err(cpu.ud())
}

/// An instruction of more than 15 bytes.
fn too_long(cpu: &mut Cpu, _: &Op) -> Exec<Flow> {
    Err(cpu.gp(0))
}

impl Cpu {
    /// The block at the current instruction pointer.
    #[inline(always)]
    pub fn lookup(&mut self) -> Exec<*const Block> {
        let rip = self.rip();
        let linear = if self.code64() {
            rip
        } else {
            let cs = &self.segs[usize::from(seg::CS)];
            if rip > u64::from(cs.limit) {
                return Err(self.gp(0));
            }
            cs.base.wrapping_add(rip) & 0xFFFF_FFFF
        };
        let entry = &self.tlb.fetch[Tlb::fetch_index(linear)];
        let tag = linear & !0xFFF | self.fetch_key;
        if entry.tag == tag || entry.tag == Tlb::global(tag) {
            let gpa = entry.gpa | linear & 0xFFF;
            if let Some(block) = self.blocks.find(gpa, self.code_size) {
                // SAFETY: `find` returned it and nothing was inserted since.
                if unsafe { (*block).second.is_none() } {
                    return Ok(block);
                }
            }
        }
        self.lookup_slow(linear)
    }

    #[inline(never)]
    fn lookup_slow(&mut self, linear: u64) -> Exec<*const Block> {
        let first = self.fetch(linear)?;
        if let Some(block) = self.blocks.find(first.gpa, self.code_size) {
            // SAFETY: `find` returned it and nothing was inserted since.
            let second = unsafe { (*block).second };
            let Some(second) = second else {
                return Ok(block);
            };
            // The next page may be mapped elsewhere by now.
            let next = self.fetch((linear & !0xFFF).wrapping_add(0x1000))?;
            if next.gpa == second {
                return Ok(block);
            }
        }
        if self.blocks.is_full() {
            self.flush_code();
        }
        let block = self.decode(linear, first)?;
        Ok(self.blocks.insert(first.gpa, self.code_size, block))
    }

    /// Translates for an instruction fetch.
    fn fetch(&mut self, linear: u64) -> Exec<Fetched> {
        let linear = if self.long_mode {
            linear
        } else {
            linear & 0xFFFF_FFFF
        };
        let index = Tlb::fetch_index(linear);
        let entry = &self.tlb.fetch[index];
        let tag = linear & !0xFFF | self.fetch_key;
        if entry.tag == tag || entry.tag == Tlb::global(tag) {
            return Ok(Fetched {
                gpa: entry.gpa | linear & 0xFFF,
                host: Some(linear.wrapping_add(entry.addend) as *const u8),
            });
        }
        if !self.canonical(linear) {
            return Err(self.gp(0));
        }
        let mode = if self.cpl == 3 {
            AccessMode::User
        } else {
            AccessMode::Supervisor
        };
        let mapping = self.walk(linear, Want::Fetch, mode)?;
        let Some(page) = self.shared.ram.page(mapping.gpa) else {
            return Ok(Fetched {
                gpa: mapping.gpa,
                host: None,
            });
        };
        self.tlb.note_large(linear, mapping.shift);
        self.tlb.fetch[index] = Entry {
            tag: if mapping.global {
                Tlb::global(tag)
            } else {
                tag
            },
            addend: (page.host as u64).wrapping_sub(linear & !0xFFF),
            watch: page.watch,
            gpa: mapping.gpa & !0xFFF,
        };
        let offset = (linear & 0xFFF) as usize;
        Ok(Fetched {
            gpa: mapping.gpa,
            host: Some(page.host.wrapping_add(offset)),
        })
    }

    /// Copies instruction bytes. Places without RAM read as all ones.
    fn copy_code(from: Fetched, out: &mut [u8]) {
        match from.host {
            Some(host) => {
                for (n, byte) in out.iter_mut().enumerate() {
                    use crate::word::Word;
                    // SAFETY: callers stay inside the page.
                    *byte = unsafe { u8::load(host.add(n)) };
                }
            }
            None => out.fill(0xFF),
        }
    }

    /// Declares the code to `croft-memory`; returns the generation to
    /// remember.
    fn watch_code(&mut self, from: Fetched, len: usize) -> Option<(u64, u32)> {
        let page = self.shared.ram.page(from.gpa & !0xFFF)?;
        // SAFETY: watch bytes live as long as guest RAM.
        let unwatched = unsafe { (*page.watch).load(Ordering::Acquire) } == 0;
        let (host, gpa) = (page.host as u64, from.gpa);
        let shared = self.shared.clone();
        let (table, offset) = shared.ram.table(gpa)?;
        let within = offset & 0xFFF;
        let last = (within + len as u64 - 1).min(0xFFF);
        let seen = table.watch_code((offset >> 12) as usize, within, last);
        if unwatched && !is_planted(PlantedInCode::MissedInvalidation) {
            self.tables().revoke(host);
            for vcpu in &shared.vcpus {
                if !Arc::ptr_eq(vcpu, &self.own) {
                    // The other may want the same of this vCPU.
                    vcpu.revoke(|| self.give_revoked());
                }
            }
        }
        Some((gpa, seen))
    }

    /// Decodes the block at `linear`.
    fn decode(&mut self, linear: u64, first: Fetched) -> Exec<Block> {
        let left = 0x1000 - (linear & 0xFFF) as usize;
        let mut window = [0; WINDOW];
        let window = &mut window[..left.min(WINDOW)];
        loop {
            Self::copy_code(first, window);
            let scratch = std::mem::take(&mut self.scratch);
            let mut lowering = Lowering::new(self, scratch, left <= WINDOW);
            let len = lowering.decode(window);
            let (ops, sides);
            (ops, sides, self.scratch) = lowering.finish();
            if len == 0 {
                return self.decode_crossing(linear, first, window);
            }
            // The bytes are declared before they are read for good.
            let origin = self.watch_code(first, len);
            let mut again = [0; WINDOW];
            let again = &mut again[..len];
            Self::copy_code(first, again);
            if again == &window[..len] {
                let ram = self.shared.ram.clone();
                return Ok(Block::new(&ram, first.gpa, ops, sides, origin, None));
            }
        }
    }

    /// Decodes the one instruction that crosses into the next page.
    fn decode_crossing(&mut self, linear: u64, first: Fetched, head: &[u8]) -> Exec<Block> {
        let second = self.fetch(linear.wrapping_add(head.len() as u64))?;
        let mut window = [0; 2 * LONGEST];
        let (front, back) = window.split_at_mut(head.len().min(LONGEST));
        let back_len = LONGEST.min(back.len());
        let back = &mut back[..back_len];
        let first_origin = self.watch_code(first, front.len());
        let second_origin = self.watch_code(second, back.len());
        Self::copy_code(first, front);
        Self::copy_code(second, back);
        let len = front.len() + back.len();
        let scratch = std::mem::take(&mut self.scratch);
        let mut lowering = Lowering::new(self, scratch, false);
        lowering.single = true;
        lowering.decode(&window[..len]);
        let (ops, sides);
        (ops, sides, self.scratch) = lowering.finish();
        let ram = self.shared.ram.clone();
        let second_origin = second_origin.or(Some((second.gpa, 0)));
        Ok(Block::new(
            &ram,
            first.gpa,
            ops,
            sides,
            first_origin,
            second_origin,
        ))
    }
}

/// Where a block grows before its size is known: a heap of which pieces are
/// asked that are then shrunk has holes everywhere.
#[derive(Default)]
pub struct Scratch {
    ops: Vec<Op>,
    sides: Vec<Side>,
    /// Which op each side entry belongs to.
    owners: Vec<usize>,
}

/// Turns decoded instructions into ops.
struct Lowering<'a> {
    cpu: &'a Cpu,
    size: CodeSize,
    /// The window ends with the page, not before.
    at_page_end: bool,
    /// Only one instruction is wanted.
    single: bool,
    made: Scratch,
}

impl<'a> Lowering<'a> {
    fn new(cpu: &'a Cpu, scratch: Scratch, at_page_end: bool) -> Self {
        Lowering {
            cpu,
            size: cpu.code_size,
            at_page_end,
            single: false,
            made: scratch,
        }
    }

    /// Decodes until a branch, the block's greatest length or the window's
    /// end; returns the bytes used: 0 when not even one instruction is whole.
    fn decode(&mut self, window: &[u8]) -> usize {
        let bitness = match self.size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let rip = self.cpu.rip();
        let mut decoder = Decoder::with_ip(bitness, window, rip, DecoderOptions::NONE);
        let mut insn = Instruction::default();
        let mut used = 0;
        while self.made.ops.len() < MAX_OPS && used < window.len() {
            decoder.decode_out(&mut insn);
            if decoder.last_error() == DecoderError::NoMoreBytes && window.len() - used < LONGEST {
                let whole_window = self.single || !self.at_page_end;
                if used != 0 || !whole_window {
                    break;
                }
            }
            let bytes = &window[used..];
            let ends = self.push(&insn, bytes, used);
            used += insn.len().clamp(1, LONGEST);
            if ends || self.single {
                break;
            }
        }
        used.min(window.len())
    }

    /// Adds an instruction; true when the block ends with it.
    fn push(&mut self, insn: &Instruction, bytes: &[u8], off: usize) -> bool {
        let mut op = Op {
            run: undefined,
            imm: 0,
            disp: 0,
            side: std::ptr::null(),
            base: ZERO,
            index: ZERO,
            scale: 0,
            seg: seg::DS,
            dst: 0,
            src: 0,
            aux: 0,
            flags: 0,
            off: off as u16,
            len: insn.len().clamp(1, LONGEST) as u8,
            left: 0,
            start: 0,
        };
        if self.size == CodeSize::Bits64 {
            op.flags |= op_flag::CODE64;
        }
        if insn.is_invalid() {
            if is_too_long(bytes, self.size) {
                op.run = too_long;
            }
            self.made.ops.push(op);
            return true;
        }
        let features = &self.cpu.shared.features;
        if !features.allows(insn) {
            self.made.ops.push(op);
            return true;
        }
        take_memory(insn, &mut op, self.size);
        take_prefixes(insn, &mut op);
        if is_outside(insn) {
            op.flags |= op_flag::OUTSIDE;
        }
        if integer::lower(insn, &mut op, self.size) {
            if op_needs_side(insn) {
                self.add_side(insn, bytes, None);
            }
            self.made.ops.push(op);
        } else if system::lower(insn, &mut op, self.size) {
            self.add_side(insn, bytes, None);
            self.made.ops.push(op);
        } else {
            let mut side = new_side(insn, bytes);
            let known = stub::lower(
                insn,
                &mut op,
                &mut side,
                self.size,
                &self.cpu.shared.profile,
            );
            if !known {
                op.run = undefined;
            }
            self.made.owners.push(self.made.ops.len());
            self.made.sides.push(side);
            self.made.ops.push(op);
            return !known;
        }
        // Behind these other rules hold for data, which translated code has
        // built in.
        if matches!(insn.mnemonic(), Mnemonic::Stac | Mnemonic::Clac) {
            return true;
        }
        // A conditional branch that is not taken goes on in the block.
        !matches!(
            insn.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        )
    }

    fn add_side(&mut self, insn: &Instruction, bytes: &[u8], stub: Option<Box<stub::Stub>>) {
        self.made.owners.push(self.made.ops.len());
        let mut side = new_side(insn, bytes);
        side.stub = stub;
        self.made.sides.push(side);
    }

    /// The ops with their side entries, which no longer move, and room for
    /// the next block's.
    fn finish(mut self) -> (Box<[Op]>, Box<[Side]>, Scratch) {
        let made = &mut self.made;
        let sides: Box<[Side]> = made.sides.drain(..).collect();
        for (side, owner) in sides.iter().zip(made.owners.drain(..)) {
            made.ops[owner].side = side;
        }
        (made.ops.drain(..).collect(), sides, self.made)
    }
}

fn new_side(insn: &Instruction, bytes: &[u8]) -> Side {
    let mut copy = [0; LONGEST];
    let len = insn.len().min(LONGEST).min(bytes.len());
    copy[..len].copy_from_slice(&bytes[..len]);
    Side {
        insn: *insn,
        bytes: copy,
        stub: None,
    }
}

/// Integer handlers that look at the instruction itself.
fn op_needs_side(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Shld, Shrd};
    matches!(insn.mnemonic(), Shld | Shrd)
}

/// True when 15 bytes of prefixes were seen without an end: #GP, not #UD.
fn is_too_long(bytes: &[u8], size: CodeSize) -> bool {
    bytes.len() >= LONGEST
        && bytes[..LONGEST].iter().all(|byte| {
            matches!(
                byte,
                0x66 | 0x67 | 0x2E | 0x36 | 0x3E | 0x26 | 0x64 | 0x65 | 0xF0 | 0xF2 | 0xF3
            ) || size == CodeSize::Bits64 && byte & 0xF0 == 0x40
        })
}

/// Puts the memory operand into `op`.
fn take_memory(insn: &Instruction, op: &mut Op, size: CodeSize) {
    let has_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    if !has_memory {
        // String instructions and the like name their registers themselves;
        // only their address size is needed.
        op.flags |= match string_address_size(insn) {
            Some(16) => op_flag::ADDR16,
            Some(32) => op_flag::ADDR32,
            _ => 0,
        };
        return;
    }
    op.base = reg_index(insn.memory_base());
    op.index = if insn.memory_index().is_gpr() {
        reg_index(insn.memory_index())
    } else {
        ZERO
    };
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    op.seg = match insn.memory_segment() {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    };
    if size == CodeSize::Bits64 && op.seg < seg::FS {
        // Prefixes for the other segments mean nothing here; which exception
        // a non-canonical address raises follows the base register alone.
        op.seg = match insn.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => seg::SS,
            _ => seg::DS,
        };
    }
    op.disp = insn.memory_displacement64() as i64;
    if insn.is_ip_rel_memory_operand() {
        // iced has added the next instruction's address already; relative to
        // the block's start it is the same wherever the page is mapped.
        op.base = RIP;
        let start = insn.ip().wrapping_sub(u64::from(op.off));
        op.disp = insn.ip_rel_memory_address().wrapping_sub(start) as i64;
    }
    let address = address_bits(insn, size);
    match address {
        16 => op.flags |= op_flag::ADDR16,
        32 => {
            op.flags |= op_flag::ADDR32;
            // Sign-extended or not, 32 bits of it count.
        }
        _ if op.seg < seg::FS => op.flags |= op_flag::FLAT,
        _ => {}
    }
}

/// Address size of an explicit memory operand, in bits.
fn address_bits(insn: &Instruction, size: CodeSize) -> u32 {
    for register in [insn.memory_base(), insn.memory_index()] {
        match register {
            Register::EIP => return 32,
            Register::RIP => return 64,
            _ if register.is_gpr16() => return 16,
            _ if register.is_gpr32() => return 32,
            _ if register.is_gpr64() => return 64,
            _ => {}
        }
    }
    match insn.memory_displ_size() {
        2 => 16,
        4 => 32,
        8 => 64,
        _ => match size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        },
    }
}

/// Address size of the implicit operands of a string instruction.
fn string_address_size(insn: &Instruction) -> Option<u32> {
    (0..insn.op_count()).find_map(|n| match insn.op_kind(n) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(16),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(64),
        _ => None,
    })
}

fn take_prefixes(insn: &Instruction, op: &mut Op) {
    if insn.has_lock_prefix() {
        op.flags |= op_flag::LOCK;
    }
    if insn.has_rep_prefix() {
        op.flags |= op_flag::REP;
    }
    if insn.has_repne_prefix() {
        op.flags |= op_flag::REPNE;
    }
}
