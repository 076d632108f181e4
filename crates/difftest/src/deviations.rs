//! Differences between two real processors, which an engine may have too.
//!
//! The manuals leave these open, or CPUID tells of them. Each rule accepts
//! one exact difference; how often it was needed stands in the table.

use croft_engine::CpuProfile;
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use crate::layout::PAGE;
use crate::state::{Input, Output, XSAVE};

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const ALIGNMENT: u8 = 17;
const SIMD: u8 = 19;
/// AC in RFLAGS.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// TOP in the x87 status word.
const TOP: u16 = 7 << 11;

/// Which rules apply here.
#[derive(Clone, Copy, Debug)]
pub struct Deviations {
    /// The host updates the x87 data pointer on unmasked exceptions only
    /// (CPUID.7.0:EBX bit 6), and the guest's processor always.
    host_keeps_fdp: bool,
}

/// What was accepted.
#[derive(Debug, Default)]
pub struct Accepted {
    /// Rules used.
    pub rules: Vec<&'static str>,
    /// Memory that need not agree: linear address, bytes.
    pub memory: Option<(u64, u64)>,
}

impl Deviations {
    /// Between this host and a guest with `profile`.
    pub fn new(profile: &CpuProfile) -> Deviations {
        const FDP_EXCEPTIONS_ONLY: u32 = 1 << 6;
        let host = std::arch::x86_64::__cpuid_count(7, 0).ebx;
        let guest = profile.leaf(7, 0).map_or(0, |leaf| leaf.ebx);
        Deviations {
            host_keeps_fdp: host & FDP_EXCEPTIONS_ONLY != 0 && guest & FDP_EXCEPTIONS_ONLY == 0,
        }
    }

    /// Makes `guest` equal to `host` where a rule accepts the difference.
    pub fn accept(
        &self,
        insn: &Instruction,
        input: &Input,
        host: &Output,
        guest: &mut Output,
    ) -> Accepted {
        let mut accepted = Accepted::default();
        if self.host_keeps_fdp && data_pointer(host, guest) {
            accepted
                .rules
                .push("x87 data pointer: only unmasked exceptions set the host's");
        }
        if in_parts(insn) && same_operand(host, guest) {
            accepted
                .rules
                .push("access in parts: which part faults first is open");
        }
        if upper_halves(insn, input, host, guest) {
            accepted
                .rules
                .push("REP with ECX: when upper halves are cleared is open");
        }
        if mmx(insn, input, host, guest) {
            accepted
                .rules
                .push("conversion to MMX with a SIMD exception: the x87 state may be MMX already");
        }
        if in_parts(insn) && host.end.vector == PAGE_FAULT {
            accepted.memory = input
                .memory
                .iter()
                .map(|(address, bytes)| (*address, bytes.len() as u64))
                .find(|(address, len)| host.end.cr2.wrapping_sub(*address) < *len);
        }
        if misaligned_area(insn, input, host, guest) {
            accepted.rules.push(
                "misaligned FXSAVE or XSAVE area with AC set: #AC or what else is wrong is open",
            );
        }
        if half_restored(insn, host, guest) {
            accepted
                .rules
                .push("XRSTOR that faults: components may be loaded already");
        }
        accepted
    }
}

/// The rule that [`Accepted::memory`] stands for.
pub const HALF_STORED: &str = "store in parts that faults: parts may be written already";

fn data_pointer(host: &Output, guest: &mut Output) -> bool {
    const PENDING: u16 = 0x80;
    let differs = host.xsave.fdp() != guest.xsave.fdp() && host.xsave.fsw() & PENDING == 0;
    if differs {
        guest.xsave.put(16, &host.xsave.fdp().to_le_bytes());
    }
    differs
}

/// The operand is an FXSAVE or XSAVE area.
fn is_area(insn: &Instruction) -> bool {
    use Mnemonic::*;
    insn.memory_size() == MemorySize::Fxsave_512Byte
        || insn.memory_size() == MemorySize::Fxsave64_512Byte
        || matches!(
            insn.mnemonic(),
            Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64
        )
}

/// Not one access for the memory operand.
fn in_parts(insn: &Instruction) -> bool {
    use Mnemonic::*;
    is_area(insn)
        || insn.memory_size().size() > 32
        || matches!(
            insn.memory_size(),
            MemorySize::FpuEnv14 | MemorySize::FpuEnv28 | MemorySize::Float80 | MemorySize::Bcd
        )
        || matches!(
            insn.mnemonic(),
            Maskmovq | Maskmovdqu | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq
        )
}

fn same_operand(host: &Output, guest: &mut Output) -> bool {
    let differs = host.end.vector == PAGE_FAULT
        && guest.end.vector == PAGE_FAULT
        && host.end.cr2 != guest.end.cr2
        && host.end.cr2.abs_diff(guest.end.cr2) < XSAVE as u64;
    if differs {
        // Parts in two pages may fault differently.
        if host.end.cr2 / PAGE != guest.end.cr2 / PAGE {
            guest.end.error = host.end.error;
        }
        guest.end.cr2 = host.end.cr2;
    }
    differs
}

/// Intel's processors clear the upper halves of RCX, RSI and RDI of a
/// repetition even where no iteration completes; others do not.
fn upper_halves(insn: &Instruction, input: &Input, host: &Output, guest: &mut Output) -> bool {
    let narrow = insn.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI
        )
    });
    if !narrow || !(insn.has_rep_prefix() || insn.has_repne_prefix()) {
        return false;
    }
    let mut used = false;
    for n in [RCX, RSI, RDI] {
        let (theirs, ours) = (host.regs[n], guest.regs[n]);
        let may = |value: u64| value >> 32 == 0 || value >> 32 == input.regs[n] >> 32;
        let unmoved = theirs as u32 == input.regs[n] as u32;
        let count_done = n == RCX && theirs as u32 == 0;
        if theirs != ours
            && theirs as u32 == ours as u32
            && (unmoved || count_done)
            && may(theirs)
            && may(ours)
        {
            guest.regs[n] = theirs;
            used = true;
        }
    }
    used
}

/// CVTPS2PI and its like. The host has made the state an MMX one (TOP 0, all tags valid), the guest
/// has left it alone.
fn mmx(insn: &Instruction, input: &Input, host: &Output, guest: &mut Output) -> bool {
    let names_mmx = (0..insn.op_count()).any(|n| insn.op_register(n).is_mm());
    let faulted = host.end.vector == SIMD;
    let entered = host.xsave.fsw() == input.xsave.fsw() & !TOP && host.xsave.ftw() == 0xFF;
    let untouched =
        guest.xsave.fsw() == input.xsave.fsw() && guest.xsave.ftw() == input.xsave.ftw();
    if !names_mmx || !faulted || !entered || !untouched || host.end != guest.end {
        return false;
    }
    let top = usize::from((input.xsave.fsw() & TOP) >> 11);
    let same = (0..8).all(|n| {
        // ST(n) of the guest is physical register (TOP + n) mod 8.
        host.xsave.st((top + n) & 7) == guest.xsave.st(n)
    });
    if !same || host.xsave.0[..160] == guest.xsave.0[..160] {
        return false;
    }
    guest.xsave.put(2, &host.xsave.fsw().to_le_bytes());
    guest.xsave.put(4, &[host.xsave.ftw()]);
    for n in 0..8 {
        guest.xsave.put(32 + 16 * n, host.xsave.st(n));
    }
    true
}

fn misaligned_area(insn: &Instruction, input: &Input, host: &Output, guest: &mut Output) -> bool {
    const EITHER: [u8; 3] = [GENERAL_PROTECTION, ALIGNMENT, PAGE_FAULT];
    let used = is_area(insn)
        && input.rflags & ALIGNMENT_CHECK != 0
        && host.end != guest.end
        && EITHER.contains(&host.end.vector)
        && EITHER.contains(&guest.end.vector);
    if used {
        guest.end = host.end;
    }
    used
}

/// XRSTOR looks at a part, loads it, and goes on to the next.
fn half_restored(insn: &Instruction, host: &Output, guest: &mut Output) -> bool {
    let restores = matches!(insn.mnemonic(), Mnemonic::Xrstor | Mnemonic::Xrstor64);
    let faulted = matches!(host.end.vector, GENERAL_PROTECTION | PAGE_FAULT);
    let differs = host.xsave.normal() != guest.xsave.normal();
    let used = restores && faulted && host.end == guest.end && differs;
    if used {
        guest.xsave = host.xsave;
    }
    used
}
