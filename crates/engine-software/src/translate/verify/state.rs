//! What is known at one place of the code.

use std::mem::offset_of;

use iced_x86::{ConditionCode, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register};

use super::Verdict;
use super::place::{self, Cell, Place, Scope, Table};
use crate::translate::asm::reg::{R10, R11};
use crate::translate::tables::{Jump, Page};

/// A number of which only some bits can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Those bits.
    pub mask: u64,
    /// The instruction that computed it: two registers with the same site
    /// hold the same number.
    pub site: usize,
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    #[default]
    Any,
    /// It is this.
    Constant(u64),
    /// Bits that it has not.
    Index(Index),
    /// Difference between a linear address and the tag of the entry that the
    /// index from `site` finds.
    Difference {
        table: Table,
        site: usize,
        /// At most this, if that was compared.
        most: Option<u64>,
    },
    /// Host address of a page in this table, plus at least `low` and at most
    /// `high`.
    Host { table: Table, low: i64, high: i64 },
}

/// What the flags say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Compared {
    /// Nothing.
    #[default]
    Nothing,
    /// How a register compares with a constant.
    Bound { register: usize, with: u64 },
    /// Whether the tag of a jump is the wanted one.
    Tag { register: usize, site: usize },
}

/// Registers that are not the guest's.
const SCRATCH: u16 = 1 << R10 | 1 << R11;

/// What is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    registers: [Value; 16],
    /// Registers that may hold an address of the host's, or what was computed
    /// from one.
    secret: u16,
    compared: Compared,
    /// The index from this site finds the jump that is wanted.
    pub found: Option<usize>,
}

impl Default for State {
    /// As a block starts, and as a routine returns.
    fn default() -> Self {
        State {
            registers: Default::default(),
            secret: SCRATCH,
            compared: Compared::Nothing,
            found: None,
        }
    }
}

impl State {
    /// What is known of host register `n`.
    pub fn general(&self, n: u8) -> Value {
        self.registers
            .get(usize::from(n))
            .copied()
            .unwrap_or_default()
    }

    /// What is known of a whole register.
    pub fn get(&self, register: Register) -> Option<Value> {
        register
            .is_gpr64()
            .then(|| self.registers[register.number()])
    }

    /// A routine was called. `keeps`: what is no secret stays none.
    pub fn called(&mut self, keeps: bool) {
        let secret = if keeps { self.secret } else { SCRATCH };
        *self = State {
            secret,
            ..State::default()
        };
    }

    /// Keeps what `other` knows too; true if something was lost.
    pub fn join(&mut self, other: &State) -> bool {
        let before = self.clone();
        for (mine, theirs) in self.registers.iter_mut().zip(other.registers) {
            *mine = common(*mine, theirs);
        }
        self.secret |= other.secret;
        if self.compared != other.compared {
            self.compared = Compared::Nothing;
        }
        if self.found != other.found {
            self.found = None;
        }
        *self != before
    }

    /// A number is about to be computed anew at `site`: what is known of
    /// those from there is over.
    fn end(&mut self, site: usize) {
        for value in &mut self.registers {
            match *value {
                Value::Index(index) if index.site == site => *value = Value::Any,
                Value::Difference { site: of, .. } if of == site => *value = Value::Any,
                _ => {}
            }
        }
        if self.found == Some(site) {
            self.found = None;
        }
        if matches!(self.compared, Compared::Tag { site: of, .. } if of == site) {
            self.compared = Compared::Nothing;
        }
    }

    /// Goes over an instruction that falls through.
    pub fn step(
        &mut self,
        at: usize,
        insn: &Instruction,
        info: &InstructionInfo,
        scope: Scope,
    ) -> Verdict {
        let cell = match info.used_memory() {
            [memory] => match place::resolve(memory, self, scope) {
                Some(Place::Cell(cell)) => Some(cell),
                _ => None,
            },
            _ => None,
        };
        let secret = self.secrets_after(insn, info, cell)?;
        let compared = self.compares(insn, cell);
        let result = self.computes(at, insn, cell);
        let exchange = self.exchanges(insn);
        if insn.rflags_modified() != 0 {
            self.compared = Compared::Nothing;
        }
        for used in info.used_registers() {
            let writes = !matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if writes && used.register().is_gpr() {
                self.set(used.register().full_register().number(), Value::Any);
            }
        }
        if let Some(((a, of_a), (b, of_b))) = exchange {
            self.set(a, of_a);
            self.set(b, of_b);
        }
        if let Some((register, value)) = result {
            if let Value::Index(index) = value
                && index.site == at
            {
                self.end(at);
            }
            self.set(register, value);
        }
        if compared != Compared::Nothing {
            self.compared = compared;
        }
        self.secret = secret;
        Ok(())
    }

    fn set(&mut self, register: usize, value: Value) {
        match self.compared {
            Compared::Bound { register: of, .. } | Compared::Tag { register: of, .. }
                if of == register =>
            {
                self.compared = Compared::Nothing;
            }
            _ => {}
        }
        if let Some(slot) = self.registers.get_mut(register) {
            *slot = value;
        }
    }

    fn is_secret(&self, register: Register) -> bool {
        register.is_gpr() && self.secret >> register.full_register().number() & 1 != 0
    }

    /// The registers with secrets after `insn`. An error if it brings one
    /// out of the registers that are not the guest's.
    fn secrets_after(
        &self,
        insn: &Instruction,
        info: &InstructionInfo,
        cell: Option<Cell>,
    ) -> Verdict<u16> {
        let leak = || Err("a host address among the guest's data".to_owned());
        let register = |n| match insn.op_kind(n) {
            OpKind::Register => insn.op_register(n),
            _ => Register::None,
        };
        let to = register(0);
        let mut derived = match insn.mnemonic() {
            Mnemonic::Lea => {
                self.is_secret(insn.memory_base()) || self.is_secret(insn.memory_index())
            }
            Mnemonic::Mov => self.is_secret(register(1)),
            _ if (1..insn.op_count()).any(|n| self.is_secret(register(n))) => return leak(),
            _ => false,
        };
        if insn.op0_kind() == OpKind::Memory {
            return if derived { leak() } else { Ok(self.secret) };
        }
        if !to.is_gpr() {
            derived |= cell.is_some_and(Cell::is_secret);
            return if derived { leak() } else { Ok(self.secret) };
        }
        derived |= match info.op0_access() {
            OpAccess::Write => to.size() < 4 && self.is_secret(to),
            _ => self.is_secret(to),
        };
        let host = cell.is_some_and(Cell::is_secret);
        let bit = 1 << to.full_register().number();
        let secret = if derived || host {
            self.secret | bit
        } else if is_exchange(insn) {
            self.secret
        } else {
            self.secret & !bit
        };
        if secret & !SCRATCH != 0 || is_exchange(insn) && derived {
            return leak();
        }
        Ok(secret)
    }

    /// What the flags say after `insn`.
    fn compares(&self, insn: &Instruction, cell: Option<Cell>) -> Compared {
        let wide = insn.mnemonic() == Mnemonic::Cmp && insn.op0_register().is_gpr64();
        if !wide || insn.op0_kind() != OpKind::Register {
            return Compared::Nothing;
        }
        let register = insn.op0_register().number();
        match (insn.op1_kind(), cell) {
            (OpKind::Memory, Some(cell))
                if cell.table == Table::Jumps && cell.field == offset_of!(Jump, tag) =>
            {
                Compared::Tag {
                    register,
                    site: cell.site,
                }
            }
            (OpKind::Memory | OpKind::Register, _) => Compared::Nothing,
            _ => Compared::Bound {
                register,
                with: insn.immediate(1),
            },
        }
    }

    /// The register that `insn` computes, if something is known of it.
    fn computes(
        &self,
        at: usize,
        insn: &Instruction,
        cell: Option<Cell>,
    ) -> Option<(usize, Value)> {
        let to = insn.op0_register();
        if insn.op0_kind() != OpKind::Register || !(to.is_gpr64() || to.is_gpr32()) {
            return None;
        }
        let wide = to.is_gpr64();
        let width = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let old = self.registers[to.full_register().number()];
        // Bits the old value can have set, in the operation's width.
        let bits = match old {
            Value::Index(index) => index.mask & width,
            Value::Constant(value) => value & width,
            _ => width,
        };
        let index = |mask| Value::Index(Index { mask, site: at });
        let immediate = || {
            let last = insn.op_count().checked_sub(1)?;
            match insn.op_kind(last) {
                OpKind::Register | OpKind::Memory => None,
                _ => Some(insn.immediate(last)),
            }
        };
        let value = match insn.mnemonic() {
            Mnemonic::Mov => match insn.op1_kind() {
                OpKind::Register if wide => self.get(insn.op1_register())?,
                OpKind::Register | OpKind::Memory => return None,
                _ => Value::Constant(insn.immediate(1) & width),
            },
            Mnemonic::And => index(bits & immediate()?),
            Mnemonic::Shr => index(bits >> (immediate()? & 63)),
            Mnemonic::Shl => index(bits << (immediate()? & 63) & width),
            Mnemonic::Movzx => index(match insn.op1_kind() {
                OpKind::Register => low_bits(insn.op1_register().size()),
                _ => low_bits(insn.memory_size().size()),
            }),
            Mnemonic::Sub if wide => match (cell, old) {
                (Some(cell), _)
                    if cell.table != Table::Jumps && cell.field == offset_of!(Page, tag) =>
                {
                    Value::Difference {
                        table: cell.table,
                        site: cell.site,
                        most: None,
                    }
                }
                (None, Value::Host { .. }) => moved(old, (immediate()? as i64).checked_neg()?)?,
                _ => return None,
            },
            Mnemonic::Add if wide => match (cell, old) {
                (
                    Some(cell),
                    Value::Difference {
                        table,
                        site,
                        most: Some(most),
                    },
                ) if (cell.table, cell.site) == (table, site)
                    && cell.field == offset_of!(Page, host)
                    && most < 4096 =>
                {
                    Value::Host {
                        table,
                        low: 0,
                        high: most as i64,
                    }
                }
                (None, Value::Host { .. }) => moved(old, immediate()? as i64)?,
                _ => return None,
            },
            Mnemonic::Lea if wide && insn.memory_index() == Register::None => {
                let base = self.get(insn.memory_base())?;
                moved(base, insn.memory_displacement64() as i64)?
            }
            _ => return None,
        };
        Some((to.full_register().number(), value))
    }

    /// The registers that XCHG exchanges, with what they have then.
    fn exchanges(&self, insn: &Instruction) -> Option<((usize, Value), (usize, Value))> {
        let (a, b) = (insn.op0_register(), insn.op1_register());
        let plain = insn.mnemonic() == Mnemonic::Xchg
            && insn.op0_kind() == OpKind::Register
            && a.is_gpr64();
        plain.then(|| {
            let (of_a, of_b) = (self.registers[a.number()], self.registers[b.number()]);
            ((a.number(), of_b), (b.number(), of_a))
        })
    }
}

fn is_exchange(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd)
        && insn.op1_kind() == OpKind::Register
}

fn low_bits(bytes: usize) -> u64 {
    match bytes {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// A host address plus `by`, as long as it stays near its page.
fn moved(value: Value, by: i64) -> Option<Value> {
    match value {
        Value::Host { table, low, high } if by.unsigned_abs() <= 4096 => {
            let (low, high) = (low + by, high + by);
            (low >= -4096 && high <= 8192).then_some(Value::Host { table, low, high })
        }
        _ => None,
    }
}

/// What holds for both.
fn common(a: Value, b: Value) -> Value {
    match (a, b) {
        _ if a == b => a,
        (
            Value::Difference { table, site, .. },
            Value::Difference {
                table: of,
                site: at,
                ..
            },
        ) if (table, site) == (of, at) => Value::Difference {
            table,
            site,
            most: None,
        },
        _ => Value::Any,
    }
}

/// What a conditional jump says where it is taken, and where it is not.
pub fn branch(insn: &Instruction, taken: &mut State, passed: &mut State) {
    match taken.compared {
        Compared::Nothing => {}
        Compared::Bound { register, with } => {
            let below = with.checked_sub(1);
            let (where_taken, where_passed) = match insn.condition_code() {
                ConditionCode::a => (None, Some(with)),
                ConditionCode::ae => (None, below),
                ConditionCode::be => (Some(with), None),
                ConditionCode::b => (below, None),
                ConditionCode::e => (Some(with), None),
                ConditionCode::ne => (None, Some(with)),
                _ => (None, None),
            };
            taken.bound(register, where_taken);
            passed.bound(register, where_passed);
        }
        Compared::Tag { site, .. } => match insn.condition_code() {
            ConditionCode::e => taken.found = Some(site),
            ConditionCode::ne => passed.found = Some(site),
            _ => {}
        },
    }
}

impl State {
    /// Register `n` is at most `bound`.
    fn bound(&mut self, n: usize, bound: Option<u64>) {
        let (Some(bound), Some(Value::Difference { most, .. })) =
            (bound, self.registers.get_mut(n))
        else {
            return;
        };
        *most = Some(most.map_or(bound, |old| old.min(bound)));
    }
}
