//! The vCPU as engine-neutral state and back.
//!
//! Order of restoring: what later steps are checked against comes first
//! (special registers before the APIC that IA32_APIC_BASE describes, the APIC
//! before its deadline, time before what is armed by it); events come after
//! the general registers, whose setting clears them.

use croft_engine::state::{MsrState, STATE_VERSION, check_version};
use croft_engine::{CpuState, EngineError};
use croft_irqchip::{Lapic, Msi};
use kvm_bindings::{kvm_mp_state, kvm_xcrs, kvm_xsave};

use crate::error::{damaged, host, refused};
use crate::vcpu::KvmVcpu;
use crate::{events, lapic, lines, msr, regs};

/// Offset of the XSAVE header, and of the first component behind it (SDM vol.
/// 1, 13.4).
const HEADER: usize = 512;
const COMPONENTS: usize = 576;
/// Size of the AVX component, which comes first.
const AVX: usize = 256;
/// XCR0: AVX.
const XCR0_AVX: u64 = 1 << 2;

/// Size of the XSAVE area for these components; models have no other ones.
fn xsave_size(xcr0: u64) -> usize {
    COMPONENTS + if xcr0 & XCR0_AVX != 0 { AVX } else { 0 }
}

fn xsave_from_kvm(area: &kvm_xsave, xcr0: u64) -> Vec<u8> {
    let bytes = area.region.iter().flat_map(|word| word.to_le_bytes());
    let mut bytes: Vec<u8> = bytes.take(xsave_size(xcr0)).collect();
    // KVM also tells of components that only the host has (PKRU).
    for (byte, allowed) in bytes[HEADER..].iter_mut().zip(xcr0.to_le_bytes()) {
        *byte &= allowed;
    }
    bytes
}

fn xsave_to_kvm(bytes: &[u8], xcr0: u64) -> Result<kvm_xsave, EngineError> {
    let word = |at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_le_bytes)
    };
    let (Some(held), Some(compacted)) = (word(HEADER), word(HEADER + 8)) else {
        return Err(damaged("its XSAVE area is too short"));
    };
    if compacted != 0 || held & !xcr0 != 0 {
        return Err(damaged(format!(
            "its XSAVE area is compacted or has components {held:#x}"
        )));
    }
    if bytes.len() < xsave_size(held) {
        return Err(damaged("its XSAVE area is too short"));
    }
    let mut area = kvm_xsave::default();
    let kept = &bytes[..bytes.len().min(xsave_size(xcr0))];
    for (word, chunk) in area.region.iter_mut().zip(kept.chunks(4)) {
        let mut full = [0; 4];
        for (to, from) in full.iter_mut().zip(chunk) {
            *to = *from;
        }
        *word = u32::from_le_bytes(full);
    }
    Ok(area)
}

impl KvmVcpu {
    /// Everything of this vCPU. It stands on an instruction boundary.
    pub(crate) fn save_state(&mut self) -> Result<CpuState, EngineError> {
        let fail = || host("cannot read a vCPU");
        let profile = &self.shared.profile;
        // First, as KVM brings INIT and start-up messages up to date here, and
        // then CR2 and DR6 of an exception that is due.
        let mp_state = self.fd.get_mp_state().map_err(fail())?.mp_state;
        let events = self.fd.get_vcpu_events().map_err(fail())?;
        let mut state = CpuState {
            version: STATE_VERSION,
            mp_state: events::mp_from_kvm(mp_state),
            ..CpuState::default()
        };
        regs::general_from_kvm(&mut state, &self.fd.get_regs().map_err(fail())?);
        let sregs = self.fd.get_sregs().map_err(fail())?;
        regs::special_from_kvm(&mut state, &sregs);
        regs::debug_from_kvm(&mut state, &self.fd.get_debug_regs().map_err(fail())?);
        let xcrs = self.fd.get_xcrs().map_err(fail())?;
        state.xcr0 = xcrs
            .xcrs
            .iter()
            .take(xcrs.nr_xcrs as usize)
            .find(|xcr| xcr.xcr == 0)
            .map_or(1, |xcr| xcr.value);
        state.xsave = xsave_from_kvm(&self.fd.get_xsave().map_err(fail())?, profile.xcr0);
        state.msrs = msr::read_all(&self.fd, &self.msrs)?;
        state.msrs.push(MsrState {
            index: msr::EFER,
            value: sregs.efer,
        });
        state.msrs.sort_by_key(|msr| msr.index);
        // KVM has no deadline where the model has none.
        let deadline = msr::read(&self.fd, msr::TSC_DEADLINE).unwrap_or(0);
        state.lapic = lapic::from_kvm(
            &self.fd.get_lapic().map_err(fail())?,
            sregs.apic_base,
            deadline,
            self.shared.clock.ns(),
        );
        state.events = events::from_kvm(&events);
        Ok(state)
    }

    /// Counterpart of [`KvmVcpu::save_state`]. What can be checked is checked
    /// before anything changes; a refusal by KVM may leave a vCPU that must
    /// be reset.
    pub(crate) fn restore_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        check_version(state.version)?;
        self.check_lapic(state)?;
        if state
            .events
            .exception
            .is_some_and(|(vector, _)| vector > 31)
        {
            return Err(damaged("an exception above vector 31 is pending"));
        }
        let xcr0 = self.shared.profile.xcr0;
        if state.xcr0 & !xcr0 != 0 || state.xcr0 & 1 == 0 {
            return Err(damaged(format!("XCR0 is {:#x}", state.xcr0)));
        }
        let xsave = xsave_to_kvm(&state.xsave, xcr0)?;
        let msrs = msr::to_restore(&state.msrs, &self.msrs)?;
        let efer = state.msrs.iter().find(|msr| msr.index == msr::EFER);
        let efer = efer.map_or(0, |msr| msr.value);
        let lapic = lapic::to_kvm(&state.lapic, self.shared.clock.ns())
            .ok_or_else(|| damaged("its local APIC has too few registers"))?;

        let fd = &self.fd;
        fd.set_sregs(&regs::special_to_kvm(state, efer))
            .map_err(refused("control or segment registers"))?;
        fd.set_regs(&regs::general_to_kvm(state))
            .map_err(refused("general registers"))?;
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = state.xcr0;
        fd.set_xcrs(&xcrs).map_err(refused("XCR0"))?;
        // SAFETY: no model enables components beyond the 4096 bytes of this
        // form (AMX, which must be asked for).
        unsafe { fd.set_xsave(&xsave) }.map_err(refused("XSAVE area"))?;
        msr::write_changed(fd, &msrs)?;
        fd.set_lapic(&lapic).map_err(refused("local APIC"))?;
        fd.set_vcpu_events(&events::to_kvm(&state.events, &state.lapic, state.rflags))
            .map_err(refused("pending events"))?;
        fd.set_mp_state(kvm_mp_state {
            mp_state: events::mp_to_kvm(state.mp_state, state.lapic.startup.is_some()),
        })
        .map_err(refused("activity"))?;
        fd.set_debug_regs(&regs::debug_to_kvm(state))
            .map_err(refused("debug registers"))?;
        self.synced = None;
        self.sync_clock()?;
        if state.lapic.tsc_deadline != 0 {
            msr::write(
                &self.fd,
                &[MsrState {
                    index: msr::TSC_DEADLINE,
                    value: state.lapic.tsc_deadline,
                }],
            )?;
        }
        if state.lapic.init {
            self.send_init();
        }
        Ok(())
    }

    /// What the other engine's APIC refuses is damaged here too.
    fn check_lapic(&self, state: &CpuState) -> Result<(), EngineError> {
        let mut lapic = Lapic::new(self.index, self.index == 0);
        lapic.set_physical_bits(self.shared.profile.physical_bits);
        lapic
            .restore(&state.lapic)
            .map_err(|error| damaged(error.to_string()))
    }

    /// A pending INIT is one that was sent: KVM has no other way to set it.
    fn send_init(&self) {
        /// Edge, asserted, delivery mode INIT (SDM vol. 3, 11.11.2).
        const INIT: u32 = 1 << 14 | 5 << 8;
        lines::send(
            &self.shared.vm,
            Msi {
                address: 0xFEE0_0000 | u64::from(self.index & 0xFF) << 12,
                data: INIT,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(held: u64, size: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
        bytes[HEADER..COMPONENTS].fill(0);
        bytes[HEADER..HEADER + 8].copy_from_slice(&held.to_le_bytes());
        bytes
    }

    #[test]
    fn xsave_areas_survive_both_ways() {
        for (xcr0, size) in [(0b111, COMPONENTS + AVX), (0b011, COMPONENTS)] {
            let bytes = area(xcr0, size);
            let kvm = xsave_to_kvm(&bytes, xcr0).unwrap();
            assert_eq!(xsave_from_kvm(&kvm, xcr0), bytes);
        }
        // A component of the host's alone is not the guest's.
        let bytes = area(0b111, COMPONENTS + AVX);
        let mut with_pkru = xsave_to_kvm(&bytes, 0b111).unwrap();
        with_pkru.region[HEADER / 4] |= 1 << 9;
        assert_eq!(xsave_from_kvm(&with_pkru, 0b111), bytes);
        // Without AVX in use the area may end before it.
        let short = area(0b011, COMPONENTS);
        let kvm = xsave_to_kvm(&short, 0b111).unwrap();
        assert_eq!(xsave_from_kvm(&kvm, 0b111)[..COMPONENTS], short);
    }

    #[test]
    fn damaged_xsave_areas_are_refused() {
        assert!(xsave_to_kvm(&[], 0b111).is_err());
        assert!(xsave_to_kvm(&area(0b111, COMPONENTS), 0b111).is_err());
        assert!(xsave_to_kvm(&area(0b1000, COMPONENTS), 0b111).is_err());
        let mut compacted = area(0b11, COMPONENTS);
        compacted[HEADER + 15] = 0x80;
        assert!(xsave_to_kvm(&compacted, 0b111).is_err());
    }
}
