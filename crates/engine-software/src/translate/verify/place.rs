//! Places in memory.

use std::mem::offset_of;

use iced_x86::{CodeSize, Instruction, OpAccess, OpKind, Register, UsedMemory};

use super::Verdict;
use super::state::{Index, State, Value};
use crate::cpu::{Cpu, Segment, seg};
use crate::msr::Msrs;
use crate::tlb::AccessMode;
use crate::translate::hot;
use crate::translate::region::{ATTENTION, TABLES};
use crate::translate::tables::{JUMPS, Jump, Mode, PAGES, Page, Tables};

/// A table of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Pages that may be read.
    Read,
    /// Pages that may be written.
    Write,
    /// Targets of jumps.
    Jumps,
}

/// A field of an entry of a table of the block's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Which table.
    pub table: Table,
    /// Offset of the field in its entry.
    pub field: usize,
    /// The entry: which value of an index found it.
    pub site: usize,
}

impl Cell {
    /// It has an address of the host's.
    pub fn is_secret(self) -> bool {
        let at = match self.table {
            Table::Read | Table::Write => offset_of!(Page, host),
            Table::Jumps => offset_of!(Jump, code),
        };
        (at..at + 8).contains(&self.field)
    }
}

/// What an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A field of the vCPU at this offset.
    Field(i64),
    /// A field of a table.
    Cell(Cell),
    /// Guest memory: offset in its page is between these.
    Guest { table: Table, low: i64, high: i64 },
}

/// Which code a block is, for what it may do.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The mode of its accesses.
    pub mode: AccessMode,
    /// It has an instruction that changes the privilege level.
    pub switches: bool,
}

/// Who may store to a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stores {
    Nobody,
    All,
    /// Blocks of a supervisor, and those that change the privilege level.
    Supervisor,
    /// Blocks that change the privilege level.
    Switch,
}

/// Bytes of the vCPU that all translated code may load.
struct Field {
    at: usize,
    size: usize,
    stores: Stores,
}

const fn field(at: usize, size: usize, stores: Stores) -> Field {
    Field { at, size, stores }
}

const fn segment(which: u8) -> usize {
    offset_of!(Cpu, segs) + which as usize * size_of::<Segment>()
}

const BASE: usize = offset_of!(Segment, base);
const MSRS: usize = offset_of!(Cpu, msrs);

/// All of them. Neither pointers of the host's nor what says which vector
/// registers are loaded can be written.
const FIELDS: &[Field] = &[
    field(offset_of!(Cpu, regs), 16 * 8, Stores::All),
    field(offset_of!(Cpu, rflags), 8, Stores::All),
    field(offset_of!(Cpu, tlb_key), 8, Stores::Supervisor),
    field(offset_of!(Cpu, fetch_key), 8, Stores::Switch),
    field(offset_of!(Cpu, cpl), 1, Stores::Switch),
    field(offset_of!(Cpu, look), 1, Stores::Nobody),
    field(segment(seg::CS), 2 * size_of::<Segment>(), Stores::Switch),
    field(segment(seg::FS) + BASE, 8, Stores::Nobody),
    field(segment(seg::GS) + BASE, 8, Stores::Supervisor),
    field(MSRS + offset_of!(Msrs, lstar), 8, Stores::Nobody),
    field(MSRS + offset_of!(Msrs, sfmask), 8, Stores::Nobody),
    field(
        MSRS + offset_of!(Msrs, kernel_gs_base),
        8,
        Stores::Supervisor,
    ),
    field(hot::PAGE as usize, 8, Stores::All),
    field(hot::TEMP as usize, 32, Stores::All),
    field(hot::RETIRED as usize, 8, Stores::All),
    field(hot::CHECKS as usize, 8, Stores::All),
    field(
        hot::SYSTEM_SEGMENTS as usize,
        2 * size_of::<Segment>(),
        Stores::Nobody,
    ),
    field(
        hot::USER_SEGMENTS as usize,
        2 * size_of::<Segment>(),
        Stores::Nobody,
    ),
    field(hot::FAST as usize, 1, Stores::Nobody),
    field(hot::VECTOR as usize, 1, Stores::Nobody),
    field(hot::VECTOR_OK as usize, 1, Stores::Nobody),
    field(ATTENTION, 4, Stores::Nobody),
    field(TABLES + offset_of!(Tables, space), 8, Stores::Nobody),
];

// SS follows CS.
const _: () = assert!(seg::SS == seg::CS + 1);

impl Field {
    fn allows(&self, writes: bool, scope: Scope) -> bool {
        !writes
            || match self.stores {
                Stores::Nobody => false,
                Stores::All => true,
                Stores::Supervisor => scope.switches || scope.mode != AccessMode::User,
                Stores::Switch => scope.switches,
            }
    }
}

/// Where a memory operand leads, if that is anywhere.
pub fn resolve(memory: &UsedMemory, state: &State, scope: Scope) -> Option<Place> {
    if memory.address_size() != CodeSize::Code64 {
        return None;
    }
    let displacement = memory.displacement() as i64;
    match (memory.base(), memory.index()) {
        (Register::RSP, Register::None) => Some(Place::Field(displacement)),
        (Register::RSP, index) if memory.scale() == 1 && index != Register::RSP => {
            match state.get(index)? {
                Value::Index(index) => cell(index, displacement, scope).map(Place::Cell),
                _ => None,
            }
        }
        (base, Register::None) => match state.get(base)? {
            Value::Host { table, low, high } => Some(Place::Guest {
                table,
                low: low.checked_add(displacement)?,
                high: high.checked_add(displacement)?,
            }),
            _ => None,
        },
        _ => None,
    }
}

/// The field of a table at `displacement`, for every value of an index. Pages
/// are found by the tables of the block's mode only, jumps also by those of
/// the mode it changes to.
fn cell(index: Index, displacement: i64, scope: Scope) -> Option<Cell> {
    let modes = TABLES + offset_of!(Tables, modes);
    let within = usize::try_from(displacement).ok()?.checked_sub(modes)?;
    let own = within / size_of::<Mode>() == scope.mode as usize;
    let within = within % size_of::<Mode>();
    let (page, jump) = (size_of::<Page>(), size_of::<Jump>());
    let tables = [
        (Table::Read, offset_of!(Mode, read), page, PAGES),
        (Table::Write, offset_of!(Mode, write), page, PAGES),
        (Table::Jumps, offset_of!(Mode, jumps), jump, JUMPS),
    ];
    let (table, at, entry, count) = tables
        .into_iter()
        .find(|&(_, at, entry, count)| (at..at + entry * count).contains(&within))?;
    let field = within - at;
    // The index counts whole entries, and leads to none behind the last.
    let whole = index.mask & (entry as u64 - 1) == 0;
    let inside = index.mask <= (entry * (count - 1)) as u64;
    let allowed = own || table == Table::Jumps && scope.switches;
    (field < entry && whole && inside && allowed).then_some(Cell {
        table,
        field,
        site: index.site,
    })
}

/// Accepts one access of `insn` to memory.
pub fn check(insn: &Instruction, memory: &UsedMemory, state: &State, scope: Scope) -> Verdict {
    let writes = match memory.access() {
        OpAccess::None | OpAccess::NoMemAccess => return Ok(()),
        OpAccess::Read | OpAccess::CondRead => false,
        _ => true,
    };
    let size = memory.memory_size().size() as i64;
    if size == 0 {
        return Err("an access of unknown size".to_owned());
    }
    if is_bit_string(insn) {
        return Err("an access whose place depends on a bit number".to_owned());
    }
    match resolve(memory, state, scope) {
        None => Err("an access to memory by an unchecked address".to_owned()),
        Some(Place::Field(at)) => {
            let known = FIELDS.iter().any(|field| {
                let end = (field.at + field.size) as i64;
                at >= field.at as i64 && at + size <= end && field.allows(writes, scope)
            });
            if known {
                Ok(())
            } else {
                let how = if writes { "store to" } else { "load from" };
                Err(format!("a {how} the vCPU at {at:#x}, {size} bytes"))
            }
        }
        Some(Place::Cell(cell)) => {
            let entry = match cell.table {
                Table::Jumps => size_of::<Jump>(),
                Table::Read | Table::Write => size_of::<Page>(),
            };
            if writes || cell.field as i64 + size > entry as i64 {
                return Err("an access to a table other than a load of a field".to_owned());
            }
            Ok(())
        }
        Some(Place::Guest { table, low, high }) => {
            if writes && table != Table::Write {
                return Err("a store by a pointer that was checked for loads".to_owned());
            }
            if low < 0 || high + size > 4096 {
                return Err(format!(
                    "an access of {size} bytes at offsets {low} to {high} of a page"
                ));
            }
            Ok(())
        }
    }
}

/// BT and its like with the bit's number in a register reach beyond their
/// operand.
fn is_bit_string(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register
}
