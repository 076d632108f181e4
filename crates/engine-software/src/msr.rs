//! Model-specific registers.
//!
//! What the CPU model announces exists, everything else raises #GP(0): a
//! guest that probes carefully (as Linux does) then takes the register for
//! absent. Registers of the local APIC and of the paravirtual clock are
//! passed on to their owners. Numbers: SDM vol. 4; KVM's: Linux
//! `Documentation/virt/kvm/x86/msr.rst`.

use croft_engine::state::MsrState;

use crate::cpu::{Cpu, cr0, efer, gpr, seg};
use crate::fault::Exec;
use crate::shared::lock;

/// MSR numbers.
#[allow(missing_docs)]
pub mod index {
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const KVM_WALL_CLOCK: u32 = 0x11;
    pub const KVM_SYSTEM_TIME: u32 = 0x12;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const TSC_ADJUST: u32 = 0x3B;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDATE: u32 = 0x79;
    pub const BIOS_SIGN: u32 = 0x8B;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const ARCH_CAPABILITIES: u32 = 0x10A;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUGCTL: u32 = 0x1D9;
    pub const MTRR_PHYS: u32 = 0x200;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K: u32 = 0x258;
    pub const MTRR_FIX4K: u32 = 0x268;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const X2APIC: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8FF;
    pub const EFER: u32 = 0xC000_0080;
    pub const STAR: u32 = 0xC000_0081;
    pub const LSTAR: u32 = 0xC000_0082;
    pub const CSTAR: u32 = 0xC000_0083;
    pub const SFMASK: u32 = 0xC000_0084;
    pub const FS_BASE: u32 = 0xC000_0100;
    pub const GS_BASE: u32 = 0xC000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const KVM_WALL_CLOCK_NEW: u32 = 0x4B56_4D00;
    pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4B56_4D01;
    pub const KVM_PV_EOI: u32 = 0x4B56_4D04;
}

/// Variable-range MTRR pairs.
const MTRR_VARIABLE: usize = 8;
/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = MTRR_VARIABLE as u64 | 1 << 8 | 1 << 10;
/// IA32_MISC_ENABLE: fast strings; no branch trace store, no PEBS.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Bits of IA32_MISC_ENABLE that a guest may change: fast strings, without
/// effect.
const MISC_ENABLE_WRITABLE: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: locked with nothing enabled.
const FEATURE_CONTROL: u64 = 1;
/// Microcode revision that IA32_BIOS_SIGN_ID shows in its upper half.
const MICROCODE: u64 = 0x1000_0000 << 32;
/// PAT at reset: WB, WT, UC-, UC twice (SDM vol. 3, 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_DEBUGCTL bits that may be set: LBR and BTF, neither with effect.
const DEBUGCTL_WRITABLE: u64 = 0b11;

/// The registers that nobody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msrs {
    /// Selectors of SYSCALL and SYSRET.
    pub star: u64,
    /// SYSCALL entry in 64-bit mode.
    pub lstar: u64,
    /// SYSCALL entry in compatibility mode: stored, never used.
    pub cstar: u64,
    /// RFLAGS bits that SYSCALL clears.
    pub sfmask: u64,
    /// What SWAPGS exchanges with the GS base.
    pub kernel_gs_base: u64,
    /// SYSENTER code selector.
    pub sysenter_cs: u64,
    /// SYSENTER stack pointer.
    pub sysenter_esp: u64,
    /// SYSENTER entry.
    pub sysenter_eip: u64,
    /// Ticks this vCPU's TSC is ahead of the partition's.
    pub tsc_adjust: u64,
    /// What RDTSCP and RDPID return.
    pub tsc_aux: u64,
    /// Page attribute table; memory types have no effect here.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL; stored, without effect.
    pub spec_ctrl: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// Default memory type.
    pub mtrr_default: u64,
    /// Fixed-range MTRRs: one of 64K, two of 16K, eight of 4K.
    pub mtrr_fixed: [u64; 11],
    /// Variable ranges: base, mask, base, mask…
    pub mtrr_variable: [u64; 2 * MTRR_VARIABLE],
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub kvm_wall_clock: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub kvm_system_time: u64,
    /// MSR_KVM_PV_EOI_EN.
    pub kvm_pv_eoi: u64,
    /// The PV EOI bit is set in guest memory by us.
    pub pv_eoi_pending: bool,
}

impl Default for Msrs {
    fn default() -> Self {
        Msrs {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE,
            spec_ctrl: 0,
            debugctl: 0,
            mcg_status: 0,
            // Firmware leaves write-back with fixed ranges on; there is none
            // here, and Linux gives up PAT on a processor with MTRRs off.
            mtrr_default: 0xC06,
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            mtrr_variable: [0; 2 * MTRR_VARIABLE],
            kvm_wall_clock: 0,
            kvm_system_time: 0,
            kvm_pv_eoi: 0,
            pv_eoi_pending: false,
        }
    }
}

/// A memory type that MTRRs and PAT may hold (SDM vol. 3, table 12-2).
fn memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

fn each_byte(value: u64, valid: impl Fn(u64) -> bool) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|byte| valid(u64::from(*byte)))
}

/// Position in [`Msrs::mtrr_fixed`].
fn fixed_range(msr: u32) -> Option<usize> {
    match msr {
        index::MTRR_FIX64K => Some(0),
        0x258..=0x259 => Some(1 + (msr - index::MTRR_FIX16K) as usize),
        0x268..=0x26F => Some(3 + (msr - index::MTRR_FIX4K) as usize),
        _ => None,
    }
}

/// Position in [`Msrs::mtrr_variable`].
fn variable_range(msr: u32) -> Option<usize> {
    let at = msr.checked_sub(index::MTRR_PHYS)? as usize;
    (at < 2 * MTRR_VARIABLE).then_some(at)
}

/// Sign-extends bit 47.
fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

impl Cpu {
    /// RDMSR: value, or #GP(0).
    pub fn read_msr(&mut self, msr: u32) -> Exec<u64> {
        match self.msr(msr) {
            Some(value) => Ok(value),
            None => Err(self.gp(0)),
        }
    }

    /// WRMSR, or #GP(0).
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Exec {
        match self.set_msr(msr, value) {
            Some(()) => Ok(()),
            None => Err(self.gp(0)),
        }
    }

    /// The value of an MSR that exists and can be read.
    fn msr(&mut self, msr: u32) -> Option<u64> {
        let features = self.shared.features;
        let m = &self.msrs;
        Some(match msr {
            index::P5_MC_ADDR | index::P5_MC_TYPE | index::PLATFORM_ID => 0,
            index::TSC => self.tsc(),
            index::APIC_BASE => lock(&self.own.lapic).apic_base(),
            index::FEATURE_CONTROL => FEATURE_CONTROL,
            index::TSC_ADJUST if features.tsc_adjust => m.tsc_adjust,
            index::SPEC_CTRL if features.spec_ctrl => m.spec_ctrl,
            index::BIOS_SIGN => MICROCODE,
            index::MTRR_CAP if features.mtrr => MTRR_CAP,
            index::ARCH_CAPABILITIES if features.arch_capabilities => {
                self.shared.profile.arch_capabilities
            }
            index::SYSENTER_CS => m.sysenter_cs,
            index::SYSENTER_ESP => m.sysenter_esp,
            index::SYSENTER_EIP => m.sysenter_eip,
            index::MCG_CAP if features.mca => 0,
            index::MCG_STATUS if features.mca => m.mcg_status,
            index::MISC_ENABLE => m.misc_enable,
            index::DEBUGCTL => m.debugctl,
            index::PAT => m.pat,
            index::MTRR_DEF_TYPE if features.mtrr => m.mtrr_default,
            index::TSC_DEADLINE if features.tsc_deadline => {
                let (now, tsc) = (self.shared.clock_ns(), self.tsc());
                lock(&self.own.lapic).read_tsc_deadline(now, tsc)
            }
            index::X2APIC..=index::X2APIC_LAST if features.x2apic => {
                self.collect_pv_eoi();
                let (now, tsc) = (self.shared.clock_ns(), self.tsc());
                return lock(&self.own.lapic).read_msr(msr, now, tsc).ok();
            }
            index::EFER => self.efer,
            index::STAR => m.star,
            index::LSTAR => m.lstar,
            index::CSTAR => m.cstar,
            index::SFMASK => m.sfmask,
            index::FS_BASE => self.segs[seg::FS as usize].base,
            index::GS_BASE => self.segs[seg::GS as usize].base,
            index::KERNEL_GS_BASE => m.kernel_gs_base,
            index::TSC_AUX if features.rdtscp => m.tsc_aux,
            index::KVM_WALL_CLOCK | index::KVM_WALL_CLOCK_NEW if features.kvmclock => {
                m.kvm_wall_clock
            }
            index::KVM_SYSTEM_TIME | index::KVM_SYSTEM_TIME_NEW if features.kvmclock => {
                m.kvm_system_time
            }
            index::KVM_PV_EOI if features.pv_eoi => m.kvm_pv_eoi,
            _ if features.mtrr => match (fixed_range(msr), variable_range(msr)) {
                (Some(n), _) => m.mtrr_fixed[n],
                (_, Some(n)) => m.mtrr_variable[n],
                _ => return None,
            },
            _ => return None,
        })
    }

    /// Writes an MSR; `None` where that raises #GP(0).
    fn set_msr(&mut self, msr: u32, value: u64) -> Option<()> {
        let features = self.shared.features;
        let allow = |allowed: bool| allowed.then_some(());
        match msr {
            index::P5_MC_ADDR | index::P5_MC_TYPE | index::BIOS_UPDATE => {}
            index::TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.set_tsc_adjust(self.msrs.tsc_adjust.wrapping_add(delta));
            }
            index::APIC_BASE => {
                allow(lock(&self.own.lapic).set_apic_base(value).is_ok())?;
                self.lapic_changed();
            }
            index::TSC_ADJUST if features.tsc_adjust => self.set_tsc_adjust(value),
            index::SPEC_CTRL if features.spec_ctrl => {
                // IBRS and STIBP (SDM vol. 4, table 2-2).
                allow(value & !0b11 == 0)?;
                self.msrs.spec_ctrl = value;
            }
            // IBPB: nothing is predicted from what other guest code did.
            index::PRED_CMD if features.spec_ctrl => allow(value & !1 == 0)?,
            index::BIOS_SIGN => {}
            index::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xFFFF_FFFF,
            index::SYSENTER_ESP => {
                allow(is_canonical(value))?;
                self.msrs.sysenter_esp = value;
            }
            index::SYSENTER_EIP => {
                allow(is_canonical(value))?;
                self.msrs.sysenter_eip = value;
            }
            index::MCG_STATUS if features.mca => {
                allow(value & !0b111 == 0)?;
                self.msrs.mcg_status = value;
            }
            index::MISC_ENABLE => {
                let kept = self.msrs.misc_enable & !MISC_ENABLE_WRITABLE;
                self.msrs.misc_enable = kept | value & MISC_ENABLE_WRITABLE;
            }
            index::DEBUGCTL => {
                allow(value & !DEBUGCTL_WRITABLE == 0)?;
                self.msrs.debugctl = value;
            }
            index::PAT => {
                allow(each_byte(value, |byte| memory_type(byte) || byte == 7))?;
                self.msrs.pat = value;
            }
            index::MTRR_DEF_TYPE if features.mtrr => {
                allow(value & !0xCFF == 0 && memory_type(value & 0xFF))?;
                self.msrs.mtrr_default = value;
            }
            index::TSC_DEADLINE if features.tsc_deadline => {
                let (now, tsc) = (self.shared.clock_ns(), self.tsc());
                lock(&self.own.lapic).write_tsc_deadline(value, now, tsc);
                self.lapic_changed();
            }
            index::X2APIC..=index::X2APIC_LAST if features.x2apic => {
                self.collect_pv_eoi();
                return self.write_x2apic(msr, value);
            }
            index::EFER => return self.set_efer(value),
            index::STAR => {
                self.msrs.star = value;
                self.recheck = true;
            }
            index::LSTAR | index::CSTAR => {
                allow(is_canonical(value))?;
                match msr {
                    index::LSTAR => self.msrs.lstar = value,
                    _ => self.msrs.cstar = value,
                }
            }
            index::SFMASK => {
                self.msrs.sfmask = value & 0xFFFF_FFFF;
                self.recheck = true;
            }
            index::FS_BASE | index::GS_BASE => {
                allow(is_canonical(value))?;
                let which = if msr == index::FS_BASE {
                    seg::FS
                } else {
                    seg::GS
                };
                self.segs[which as usize].base = value;
            }
            index::KERNEL_GS_BASE => {
                allow(is_canonical(value))?;
                self.msrs.kernel_gs_base = value;
            }
            index::TSC_AUX if features.rdtscp => {
                allow(value >> 32 == 0)?;
                self.msrs.tsc_aux = value;
            }
            index::KVM_WALL_CLOCK | index::KVM_WALL_CLOCK_NEW if features.kvmclock => {
                self.msrs.kvm_wall_clock = value;
                self.write_wall_clock();
            }
            index::KVM_SYSTEM_TIME | index::KVM_SYSTEM_TIME_NEW if features.kvmclock => {
                self.msrs.kvm_system_time = value;
                self.write_system_time();
            }
            index::KVM_PV_EOI if features.pv_eoi => {
                // Bit 0 enables; the byte's address is 4-byte aligned.
                allow(value & 0b10 == 0)?;
                self.collect_pv_eoi();
                self.msrs.kvm_pv_eoi = value;
            }
            _ if features.mtrr => self.set_mtrr(msr, value)?,
            _ => return None,
        }
        Some(())
    }

    fn set_mtrr(&mut self, msr: u32, value: u64) -> Option<()> {
        if let Some(n) = fixed_range(msr) {
            each_byte(value, memory_type).then_some(())?;
            self.msrs.mtrr_fixed[n] = value;
        } else {
            let n = variable_range(msr)?;
            let beyond = u64::MAX << self.shared.profile.physical_bits;
            // Base: type in bits 7:0; mask: valid in bit 11.
            let valid = if n % 2 == 0 {
                value & (0xF00 | beyond) == 0 && memory_type(value & 0xFF)
            } else {
                value & (0x7FF | beyond) == 0
            };
            valid.then_some(())?;
            self.msrs.mtrr_variable[n] = value;
        }
        Some(())
    }

    /// SDM vol. 3, 2.2.1: only known bits, LME not while paging is on, LMA
    /// read-only.
    fn set_efer(&mut self, value: u64) -> Option<()> {
        let mut known = efer::SCE | efer::LME | efer::LMA;
        if self.shared.features.nx {
            known |= efer::NXE;
        }
        let lme_changes = (value ^ self.efer) & efer::LME != 0;
        if value & !known != 0 || lme_changes && self.cr0 & cr0::PG != 0 {
            return None;
        }
        let nxe_changes = (value ^ self.efer) & efer::NXE != 0;
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if nxe_changes {
            self.flush_tlb();
        }
        self.update_mode();
        Some(())
    }

    /// Keeps an armed TSC deadline at the same TSC value.
    fn set_tsc_adjust(&mut self, value: u64) {
        self.msrs.tsc_adjust = value;
        self.lapic_changed();
        self.write_system_time();
    }

    /// RDMSR.
    pub(crate) fn rdmsr(&mut self) -> Exec {
        self.require_cpl0()?;
        let value = self.read_msr(self.regs[gpr::RCX] as u32)?;
        self.set_r32(gpr::RAX, value as u32);
        self.set_r32(gpr::RDX, (value >> 32) as u32);
        Ok(())
    }

    /// WRMSR.
    pub(crate) fn wrmsr(&mut self) -> Exec {
        self.require_cpl0()?;
        let value = self.regs[gpr::RDX] << 32 | self.regs[gpr::RAX] & 0xFFFF_FFFF;
        self.write_msr(self.regs[gpr::RCX] as u32, value)
    }
}

impl Msrs {
    /// Every register here but EFER and the segment bases, which
    /// [`Cpu`] holds, ordered by number.
    pub fn export(&self) -> Vec<MsrState> {
        let mut all = self.clone();
        let mut list = Vec::new();
        all.each(|index, value| {
            list.push(MsrState {
                index,
                value: *value,
            });
        });
        list.sort_by_key(|msr| msr.index);
        list
    }

    /// Takes over what [`Msrs::export`] wrote; numbers not held here are
    /// left to the caller.
    pub fn import(&mut self, list: &[MsrState]) {
        self.each(|index, value| {
            if let Some(msr) = list.iter().find(|msr| msr.index == index) {
                *value = msr.value;
            }
        });
    }

    fn each(&mut self, mut visit: impl FnMut(u32, &mut u64)) {
        visit(index::STAR, &mut self.star);
        visit(index::LSTAR, &mut self.lstar);
        visit(index::CSTAR, &mut self.cstar);
        visit(index::SFMASK, &mut self.sfmask);
        visit(index::KERNEL_GS_BASE, &mut self.kernel_gs_base);
        visit(index::SYSENTER_CS, &mut self.sysenter_cs);
        visit(index::SYSENTER_ESP, &mut self.sysenter_esp);
        visit(index::SYSENTER_EIP, &mut self.sysenter_eip);
        visit(index::TSC_ADJUST, &mut self.tsc_adjust);
        visit(index::TSC_AUX, &mut self.tsc_aux);
        visit(index::PAT, &mut self.pat);
        visit(index::MISC_ENABLE, &mut self.misc_enable);
        visit(index::SPEC_CTRL, &mut self.spec_ctrl);
        visit(index::DEBUGCTL, &mut self.debugctl);
        visit(index::MCG_STATUS, &mut self.mcg_status);
        visit(index::MTRR_DEF_TYPE, &mut self.mtrr_default);
        visit(index::KVM_WALL_CLOCK_NEW, &mut self.kvm_wall_clock);
        visit(index::KVM_SYSTEM_TIME_NEW, &mut self.kvm_system_time);
        visit(index::KVM_PV_EOI, &mut self.kvm_pv_eoi);
        for (n, value) in self.mtrr_variable.iter_mut().enumerate() {
            visit(index::MTRR_PHYS + n as u32, value);
        }
        for msr in index::MTRR_FIX64K..=0x26F {
            if let Some(n) = fixed_range(msr) {
                visit(msr, &mut self.mtrr_fixed[n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_registers_come_back() {
        let mut msrs = Msrs::default();
        let mut next = 1;
        msrs.each(|_, value| {
            *value = next;
            next += 1;
        });
        let list = msrs.export();
        assert!(list.windows(2).all(|pair| pair[0].index < pair[1].index));
        let mut back = Msrs::default();
        back.import(&list);
        assert_eq!(back, msrs);
    }
}
