//! Accesses that share a check.
//!
//! What a function saves and restores, and the fields of a structure, are
//! read and written one behind the other by the same register. They get one
//! check, for all of their bytes, and then one pointer:
//!
//! ```text
//!   push r12             lea r10, [rsp' − 16]
//!   mov  r12, rdi        a check of 16 bytes that may be stored to
//!   push rbx             mov [r10 + 8], r12
//!                        mov r12, rdi
//!                        mov [r10], rbx
//!                        lea rsp', [rsp' − 16]
//! ```
//!
//! None of them can fault then, so nobody sees what is between them: flags
//! need not be put away, and RSP is moved once. Where the check fails they
//! are done one by one, by code that stands apart.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::asm::reg::R10;
use super::classify::Class;
use super::emit::{Check, Emit, FlagState, Guest, LEA, gpr_number};
use super::plain::direct_lea;
use super::regs::{Place, place};
use crate::cpu::gpr;

/// Most instructions of a group.
const MOST: usize = 24;
/// Most bytes from the first to the last that is accessed: more would often
/// lie in two pages.
const SPAN: i32 = 128;
/// On the stack, of which little lies in two pages.
const STACK_SPAN: i32 = 256;

/// A group that was emitted.
pub struct Group<'a> {
    members: Vec<Guest<'a>>,
    check: Check,
    accesses: i8,
    /// Vector registers that are loaded.
    vector: u8,
    /// Where to go on, with flags like this; nowhere behind a jump.
    resume: Option<(usize, FlagState)>,
}

/// What the instructions of a group access.
struct Plan {
    /// By this guest register.
    base: u8,
    /// Instructions.
    count: usize,
    /// Of them, those with an access.
    accesses: i8,
    /// The first byte, counted from where the register pointed first.
    low: i32,
    /// Bytes from there to the last.
    size: u16,
    /// One of them stores.
    write: bool,
}

impl Plan {
    /// By how much `insn` moves the register, if that is RSP and the amount
    /// is constant.
    fn moved(&self, insn: &Instruction) -> Option<i32> {
        stack_moved(insn).filter(|_| self.base == gpr::RSP as u8)
    }
}

/// One instruction's access, counted from where the register points then.
struct Reach {
    at: i32,
    size: i32,
    write: bool,
    /// It moves RSP by this.
    moves: i32,
    /// Nothing can follow in the group.
    last: bool,
}

impl<'a> Emit<'a> {
    /// Emits the first instructions of `rest` as a group, if they are one:
    /// whether the block goes on behind it, and how many they are.
    pub fn group(&mut self, rest: &[Guest<'a>]) -> Option<(bool, usize)> {
        let plan = self.plan(rest)?;
        let members = rest.get(..plan.count)?;
        let start = (self.asm.here(), self.flags);
        self.free_flags();
        let Place::Host(base) = place(plan.base) else {
            return None;
        };
        if plan.low == 0 {
            self.asm.mov(R10, base);
        } else {
            self.asm.rm(true, LEA, R10, base, plan.low);
        }
        let check = self.checked(plan.size, plan.write, 0, plan.accesses);
        let Some(goes_on) = self.members(&plan, members) else {
            // The assembler does not know one of them.
            self.asm.bytes.truncate(start.0);
            self.flags = start.1;
            return None;
        };
        self.done += plan.count as u32;
        self.groups.push(Group {
            members: members.to_vec(),
            check,
            accesses: plan.accesses,
            vector: self.vector,
            resume: goes_on.then(|| (self.asm.here(), self.flags)),
        });
        Some((goes_on, plan.count))
    }

    /// The members, with the pointer in R10: whether anything follows.
    fn members(&mut self, plan: &Plan, members: &[Guest<'a>]) -> Option<bool> {
        // How far RSP has gone, and how much of that is yet to be done.
        let (mut gone, mut due) = (0i32, 0);
        for guest in members {
            // What has no access may have any displacement.
            let behind = |at: i32| gone.wrapping_add(at).wrapping_sub(plan.low);
            match guest.class {
                Class::Push => {
                    self.pushed(guest, behind(-8));
                    (gone, due) = (gone - 8, due - 8);
                }
                Class::Pop => {
                    self.popped(gpr_number(guest.insn.op0_register())?, behind(0));
                    (gone, due) = (gone + 8, due + 8);
                }
                Class::Call => {
                    self.pushed_return(guest, behind(-8));
                    self.add_rsp(due - 8);
                    let target = guest.insn.near_branch_target() as i64;
                    self.leave_to(guest.op_pointer(), -8, target, guest.at);
                    return Some(false);
                }
                Class::Return => {
                    self.free_flags();
                    self.returns(guest, behind(0), due);
                    return Some(false);
                }
                Class::Nothing => {}
                class => {
                    if due != 0 && names_rsp(guest.insn) {
                        self.add_rsp(std::mem::take(&mut due));
                    }
                    let at = behind(guest.insn.memory_displacement64() as i32);
                    let done = match class {
                        Class::Plain {
                            memory,
                            vector: 0,
                            accumulator,
                        } => self.plain(guest, memory, 0, accumulator, Some(at)),
                        Class::Lea => self.lea(guest),
                        _ => false,
                    };
                    if !done {
                        return None;
                    }
                    gone += plan.moved(guest.insn).unwrap_or(0);
                }
            }
        }
        if due != 0 {
            self.add_rsp(due);
        }
        Some(true)
    }

    /// What a group does where its check fails.
    pub(super) fn one_by_one(&mut self, group: Group<'a>) {
        self.refill(group.check);
        self.flags = FlagState::Saved;
        self.vector = group.vector;
        self.add_checks(-group.accesses);
        for guest in &group.members {
            self.guest(guest);
        }
        let Some((resume, flags)) = group.resume else {
            return;
        };
        self.save_flags();
        // Both is right for whoever goes on.
        if flags != FlagState::Saved && self.flags == FlagState::Saved {
            self.both_flags();
        }
        self.asm.jmp_to(resume);
    }

    /// The longest group at the start of `rest`.
    fn plan(&mut self, rest: &[Guest<'a>]) -> Option<Plan> {
        let base = base(rest.first()?)?;
        let most = if base == gpr::RSP as u8 {
            STACK_SPAN
        } else {
            SPAN
        };
        let mut plan = Plan {
            base,
            count: 0,
            accesses: 0,
            low: i32::MAX,
            size: 0,
            write: false,
        };
        let (mut high, mut gone) = (i32::MIN, 0i32);
        for (n, guest) in rest.iter().take(MOST).enumerate() {
            let moves = plan.moved(guest.insn);
            let changes = moves.is_none() && self.changes(guest, base);
            let Some(mut reach) = reach(guest, base) else {
                if changes || !is_harmless(guest) {
                    break;
                }
                gone += moves.unwrap_or(0);
                continue;
            };
            reach.last |= changes;
            let first = gone.checked_add(reach.at)?;
            let low = plan.low.min(first);
            let end = high.max(first.checked_add(reach.size)?);
            if end.checked_sub(low).is_none_or(|size| size > most) {
                break;
            }
            (plan.low, high) = (low, end);
            plan.size = (end - low) as u16;
            plan.write |= reach.write;
            plan.accesses += 1;
            plan.count = n + 1;
            gone += reach.moves;
            if reach.last {
                break;
            }
        }
        (plan.accesses > 1).then_some(plan)
    }

    /// Whether `guest` changes guest register `base`, other than by pushing
    /// and popping.
    fn changes(&mut self, guest: &Guest<'_>, base: u8) -> bool {
        if matches!(guest.class, Class::Push | Class::Pop | Class::Call) {
            return false;
        }
        let info = self.info.info(guest.insn);
        info.used_registers().iter().any(|used| {
            let reads = matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            !reads && gpr_number(used.register().full_register()) == Some(base)
        })
    }
}

/// The register that the first of a group goes by.
fn base(guest: &Guest<'_>) -> Option<u8> {
    let base = match guest.class {
        Class::Push | Class::Pop => gpr::RSP as u8,
        Class::Plain {
            memory: Some(_), ..
        } => gpr_number(guest.insn.memory_base())?,
        _ => return None,
    };
    (reach(guest, base).is_some() && place(base) != Place::Memory).then_some(base)
}

/// What `guest` accesses by guest register `base` alone, if it can be in a
/// group.
fn reach(guest: &Guest<'_>, base: u8) -> Option<Reach> {
    let insn = guest.insn;
    let stack = |at, write, moves, last| {
        let by_rsp = base == gpr::RSP as u8;
        by_rsp.then_some(Reach {
            at,
            size: 8,
            write,
            moves,
            last,
        })
    };
    let names_rsp = insn.op0_register() == Register::RSP;
    match guest.class {
        Class::Push if !names_rsp => stack(-8, true, -8, false),
        Class::Pop if !names_rsp => stack(0, false, 8, false),
        Class::Call => stack(-8, true, -8, true),
        Class::Return => stack(0, false, 8, true),
        Class::Plain {
            memory: Some(access),
            vector: 0,
            accumulator: false,
        } => {
            let simple = access.align == 0
                && access.size != 0
                && !insn.has_lock_prefix()
                && insn.memory_base().is_gpr64()
                && insn.memory_index() == Register::None
                && !matches!(insn.memory_segment(), Register::FS | Register::GS)
                && gpr_number(insn.memory_base()) == Some(base)
                && in_memory(insn) <= 1;
            let at = i32::try_from(insn.memory_displacement64() as i64).ok()?;
            simple.then_some(Reach {
                at,
                size: i32::from(access.size),
                write: access.write,
                moves: 0,
                last: false,
            })
        }
        _ => None,
    }
}

/// Between the accesses of a group: it has none, cannot fault, and leaves
/// R10 alone.
fn is_harmless(guest: &Guest<'_>) -> bool {
    match guest.class {
        Class::Nothing => true,
        Class::Plain {
            memory: None,
            vector: 0,
            ..
        } => in_memory(guest.insn) <= 1,
        Class::Lea => direct_lea(guest.insn).is_some(),
        _ => false,
    }
}

/// How many different registers that the guest has in memory are operands.
fn in_memory(insn: &Instruction) -> usize {
    let operand = |n| {
        let register = insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr();
        let number = insn.op_register(n).full_register().number() as u8;
        (register && place(number) == Place::Memory).then_some(number)
    };
    let mut found = [None; 5];
    for (n, slot) in found.iter_mut().enumerate() {
        if n < insn.op_count() as usize {
            *slot = operand(n as u32);
        }
    }
    (0..found.len())
        .filter(|&n| found[n].is_some() && !found[..n].contains(&found[n]))
        .count()
}

/// Whether RSP is an operand, other than as what an access goes by.
fn names_rsp(insn: &Instruction) -> bool {
    let is_rsp = |register: Register| register.full_register() == Register::RSP;
    let lea = insn.mnemonic() == Mnemonic::Lea && is_rsp(insn.memory_base());
    lea || (0..insn.op_count())
        .any(|n| insn.op_kind(n) == OpKind::Register && is_rsp(insn.op_register(n)))
}

/// What ADD and SUB add to RSP, if it is constant.
fn stack_moved(insn: &Instruction) -> Option<i32> {
    if insn.op_count() != 2
        || insn.op0_kind() != OpKind::Register
        || insn.op0_register() != Register::RSP
        || matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory)
    {
        return None;
    }
    let by = i32::try_from(insn.immediate(1) as i64).ok()?;
    // Where it is larger nothing of the group is left.
    let small = (-STACK_SPAN..=STACK_SPAN).contains(&by);
    match insn.mnemonic() {
        Mnemonic::Add if small => Some(by),
        Mnemonic::Sub if small => Some(-by),
        _ => None,
    }
}
