//! Model-specific registers that a saved vCPU has: the same on every engine.
//! Numbers: SDM vol. 4; KVM's: Linux `Documentation/virt/kvm/x86/msr.rst`.

use croft_engine::EngineError;
use croft_engine::state::MsrState;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::{damaged, host};

pub const TSC: u32 = 0x10;
pub const TSC_ADJUST: u32 = 0x3B;
pub const ARCH_CAPABILITIES: u32 = 0x10A;
pub const MISC_ENABLE: u32 = 0x1A0;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2FF;
pub const TSC_DEADLINE: u32 = 0x6E0;
/// Stands with the special registers in KVM.
pub const EFER: u32 = 0xC000_0080;

/// Saved MSRs besides EFER and the MTRRs.
const OTHERS: [u32; 18] = [
    TSC_ADJUST,
    0x48,  // IA32_SPEC_CTRL
    0x174, // IA32_SYSENTER_CS
    0x175, // IA32_SYSENTER_ESP
    0x176, // IA32_SYSENTER_EIP
    0x17A, // IA32_MCG_STATUS
    MISC_ENABLE,
    0x1D9, // IA32_DEBUGCTL
    PAT,
    MTRR_DEF_TYPE,
    0x4B56_4D00, // MSR_KVM_WALL_CLOCK_NEW
    0x4B56_4D01, // MSR_KVM_SYSTEM_TIME_NEW
    0x4B56_4D04, // MSR_KVM_PV_EOI_EN
    0xC000_0081, // IA32_STAR
    0xC000_0082, // IA32_LSTAR
    0xC000_0083, // IA32_CSTAR
    0xC000_0084, // IA32_FMASK
    0xC000_0102, // IA32_KERNEL_GS_BASE
];
const TSC_AUX: u32 = 0xC000_0103;
/// IA32_MTRR_PHYSBASE0 to PHYSMASK7.
const MTRR_VARIABLE: std::ops::RangeInclusive<u32> = 0x200..=0x20F;
/// The fixed ranges: one of 64K, two of 16K, eight of 4K.
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
];

/// PAT at reset (SDM vol. 3, 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Fast strings; no branch trace store, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// There is no firmware to set write-back with fixed ranges on, and Linux
/// gives up PAT on a processor with MTRRs off.
const MTRR_DEF_RESET: u64 = 0xC06;
const WRITE_BACK: u64 = 0x0606_0606_0606_0606;

/// All MSRs that may be saved.
fn candidates() -> Vec<u32> {
    let mut list: Vec<u32> = OTHERS
        .into_iter()
        .chain([TSC_AUX])
        .chain(MTRR_VARIABLE)
        .chain(MTRR_FIXED)
        .collect();
    list.sort_unstable();
    list
}

/// Those that this KVM has for this vCPU.
pub fn present(vcpu: &VcpuFd) -> Vec<u32> {
    candidates()
        .into_iter()
        .filter(|index| read(vcpu, *index).is_ok())
        .collect()
}

fn list(entries: &[MsrState]) -> Result<Msrs, EngineError> {
    let entries: Vec<_> = entries
        .iter()
        .map(|msr| kvm_msr_entry {
            index: msr.index,
            data: msr.value,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| damaged("it has too many MSRs"))
}

/// Reads one MSR.
pub fn read(vcpu: &VcpuFd, index: u32) -> Result<u64, EngineError> {
    let values = read_all(vcpu, &[index])?;
    values
        .first()
        .map(|msr| msr.value)
        .ok_or_else(|| EngineError::Unsupported(format!("this KVM has no MSR {index:#x}")))
}

/// Reads MSRs that are there.
pub fn read_all(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrState>, EngineError> {
    let wanted: Vec<_> = indices
        .iter()
        .map(|index| MsrState {
            index: *index,
            value: 0,
        })
        .collect();
    let mut msrs = list(&wanted)?;
    let count = vcpu
        .get_msrs(&mut msrs)
        .map_err(host("cannot read a vCPU's MSRs"))?;
    Ok(msrs
        .as_slice()
        .iter()
        .take(count)
        .map(|entry| MsrState {
            index: entry.index,
            value: entry.data,
        })
        .collect())
}

/// Writes MSRs; refuses the state of which one cannot be written.
pub fn write(vcpu: &VcpuFd, values: &[MsrState]) -> Result<(), EngineError> {
    let msrs = list(values)?;
    let count = vcpu
        .set_msrs(&msrs)
        .map_err(host("cannot write a vCPU's MSRs"))?;
    match values.get(count) {
        None => Ok(()),
        Some(msr) => Err(damaged(format!(
            "KVM refuses the value {:#x} for MSR {:#x}",
            msr.value, msr.index
        ))),
    }
}

/// Writes those MSRs of `values` that have another value now: some kernels
/// log each write of one that they only know how to leave alone.
pub fn write_changed(vcpu: &VcpuFd, values: &[MsrState]) -> Result<(), EngineError> {
    let indices: Vec<u32> = values.iter().map(|msr| msr.index).collect();
    let now = read_all(vcpu, &indices)?;
    let changed: Vec<MsrState> = values
        .iter()
        .filter(|msr| !now.contains(msr))
        .copied()
        .collect();
    write(vcpu, &changed)
}

/// Values at reset of those that KVM sets otherwise, or not at all.
pub fn at_reset(present: &[u32]) -> Vec<MsrState> {
    present
        .iter()
        .map(|index| MsrState {
            index: *index,
            value: match *index {
                PAT => PAT_RESET,
                MISC_ENABLE => MISC_ENABLE_RESET,
                MTRR_DEF_TYPE => MTRR_DEF_RESET,
                index if MTRR_FIXED.contains(&index) => WRITE_BACK,
                _ => 0,
            },
        })
        .collect()
}

/// What of `saved` is to be written, given what is `present`. One that this
/// KVM lacks may only have a value without meaning.
pub fn to_restore(saved: &[MsrState], present: &[u32]) -> Result<Vec<MsrState>, EngineError> {
    let mut list = Vec::new();
    for msr in saved {
        if present.contains(&msr.index) {
            list.push(*msr);
        } else if msr.value != 0 && msr.index != EFER {
            return Err(damaged(format!(
                "MSR {:#x} has the value {:#x}, and this KVM does not have it",
                msr.index, msr.value
            )));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_ordered_and_without_efer() {
        let list = candidates();
        assert!(list.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(!list.contains(&EFER));
    }

    #[test]
    fn a_register_that_is_not_there_must_be_without_meaning() {
        let msr = |index, value| MsrState { index, value };
        let present = [PAT];
        let saved = [msr(0x48, 0), msr(PAT, 5), msr(EFER, 1)];
        assert_eq!(to_restore(&saved, &present).unwrap(), [msr(PAT, 5)]);
        assert!(to_restore(&[msr(0x48, 1)], &present).is_err());
    }
}
