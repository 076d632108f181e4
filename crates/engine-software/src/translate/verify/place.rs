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

/// Bytes of the vCPU that translated code may use.
struct Field {
    at: usize,
    size: usize,
    write: bool,
}

const fn read(at: usize, size: usize) -> Field {
    Field {
        at,
        size,
        write: false,
    }
}

const fn write(at: usize, size: usize) -> Field {
    Field {
        at,
        size,
        write: true,
    }
}

const fn base_of(segment: u8) -> usize {
    offset_of!(Cpu, segs) + segment as usize * size_of::<Segment>() + offset_of!(Segment, base)
}

/// All of them. Neither pointers of the host's nor what says which vector
/// registers are loaded can be written.
const FIELDS: &[Field] = &[
    write(offset_of!(Cpu, regs), 16 * 8),
    write(offset_of!(Cpu, rflags), 8),
    write(offset_of!(Cpu, tlb_key), 8),
    read(offset_of!(Cpu, look), 1),
    read(base_of(seg::FS), 8),
    write(base_of(seg::GS), 8),
    write(offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base), 8),
    write(hot::PAGE as usize, 8),
    write(hot::TEMP as usize, 32),
    write(hot::RETIRED as usize, 8),
    write(hot::CHECKS as usize, 8),
    read(hot::VECTOR as usize, 2),
    read(ATTENTION, 4),
    read(TABLES + offset_of!(Tables, space), 8),
];

/// Where a memory operand leads, if that is anywhere.
pub fn resolve(memory: &UsedMemory, state: &State, mode: AccessMode) -> Option<Place> {
    if memory.address_size() != CodeSize::Code64 {
        return None;
    }
    let displacement = memory.displacement() as i64;
    match (memory.base(), memory.index()) {
        (Register::RSP, Register::None) => Some(Place::Field(displacement)),
        (Register::RSP, index) if memory.scale() == 1 && index != Register::RSP => {
            match state.get(index)? {
                Value::Index(index) => cell(index, displacement, mode).map(Place::Cell),
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

/// The field of a table of `mode` at `displacement`, for every value of an
/// index.
fn cell(index: Index, displacement: i64, mode: AccessMode) -> Option<Cell> {
    let start = TABLES + offset_of!(Tables, modes) + mode as usize * size_of::<Mode>();
    let within = usize::try_from(displacement).ok()?.checked_sub(start)?;
    let pages = PAGES * size_of::<Page>();
    let (table, at, entry, size) = if (offset_of!(Mode, read)..offset_of!(Mode, read) + pages)
        .contains(&within)
    {
        (Table::Read, offset_of!(Mode, read), size_of::<Page>(), pages)
    } else if (offset_of!(Mode, write)..offset_of!(Mode, write) + pages).contains(&within) {
        (Table::Write, offset_of!(Mode, write), size_of::<Page>(), pages)
    } else {
        let size = JUMPS * size_of::<Jump>();
        (Table::Jumps, offset_of!(Mode, jumps), size_of::<Jump>(), size)
    };
    let field = within.checked_sub(at)?;
    // The index counts whole entries, and leads to none behind the last.
    let whole = index.mask & (entry as u64 - 1) == 0;
    let inside = index.mask <= (size - entry) as u64;
    (field < entry && whole && inside).then_some(Cell {
        table,
        field,
        site: index.site,
    })
}

/// Accepts one access of `insn` to memory.
pub fn check(insn: &Instruction, memory: &UsedMemory, state: &State, mode: AccessMode) -> Verdict {
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
    match resolve(memory, state, mode) {
        None => Err("an access to memory by an unchecked address".to_owned()),
        Some(Place::Field(at)) => {
            let known = FIELDS.iter().any(|field| {
                let end = (field.at + field.size) as i64;
                at >= field.at as i64 && at + size <= end && (field.write || !writes)
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
