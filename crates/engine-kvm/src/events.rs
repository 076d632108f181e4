//! Pending events and the processor's activity between KVM and the seam.

use croft_engine::state::{MpState, PendingEvents};
use croft_irqchip::LapicState;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};

const SHADOW_MOV_SS: u8 = KVM_X86_SHADOW_INT_MOV_SS as u8;
const SHADOW_STI: u8 = KVM_X86_SHADOW_INT_STI as u8;
/// RFLAGS.IF.
const INTERRUPTS_ON: u64 = 1 << 9;

/// What KVM has pending. Events raised by software (INT n) are left out: RIP
/// still points at the instruction, which raises them again.
pub fn from_kvm(events: &kvm_vcpu_events) -> PendingEvents {
    let e = &events.exception;
    let i = &events.interrupt;
    PendingEvents {
        exception: (e.injected != 0 || e.pending != 0)
            .then(|| (e.nr, (e.has_error_code != 0).then_some(e.error_code))),
        interrupt: (i.injected != 0 && i.soft == 0).then_some(i.nr),
        nmi_pending: events.nmi.injected != 0 || events.nmi.pending != 0,
        // One on its way has not begun to block others.
        nmi_blocked: events.nmi.masked != 0 && events.nmi.injected == 0,
        interrupt_shadow: i.shadow != 0,
        // AMD has one shadow for both and reports both bits.
        debug_shadow: i.shadow == SHADOW_MOV_SS,
    }
}

/// The same for KVM, with what the local APIC's state holds of it.
pub fn to_kvm(events: &PendingEvents, lapic: &LapicState, rflags: u64) -> kvm_vcpu_events {
    let mut kvm = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some((vector, error)) = events.exception {
        kvm.exception.injected = 1;
        kvm.exception.nr = vector;
        kvm.exception.has_error_code = error.is_some().into();
        kvm.exception.error_code = error.unwrap_or_default();
    }
    if let Some(vector) = events.interrupt {
        kvm.interrupt.injected = 1;
        kvm.interrupt.nr = vector;
    }
    kvm.nmi.pending = (events.nmi_pending || lapic.nmi).into();
    kvm.nmi.masked = events.nmi_blocked.into();
    kvm.interrupt.shadow = if events.debug_shadow {
        SHADOW_MOV_SS
    } else if events.interrupt_shadow && rflags & INTERRUPTS_ON != 0 {
        // Without IF there is nothing to hold back, and VMX refuses it.
        SHADOW_STI
    } else {
        0
    };
    if let Some(vector) = lapic.startup {
        kvm.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        kvm.sipi_vector = vector.into();
    }
    kvm
}

/// What the vCPU is doing, of KVM's names for it.
pub fn mp_from_kvm(state: u32) -> MpState {
    match state {
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => MpState::WaitForStartup,
        KVM_MP_STATE_HALTED => MpState::Halted,
        _ => MpState::Running,
    }
}

/// The same for KVM; `startup` says that a start-up message is pending.
pub fn mp_to_kvm(state: MpState, startup: bool) -> u32 {
    match state {
        MpState::Running => KVM_MP_STATE_RUNNABLE,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::WaitForStartup if startup => KVM_MP_STATE_SIPI_RECEIVED,
        MpState::WaitForStartup => KVM_MP_STATE_INIT_RECEIVED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_survive_both_ways(
            exception: Option<(u8, Option<u32>)>,
            interrupt: Option<u8>,
            nmi_pending: bool,
            nmi_blocked: bool,
            shadow in 0u8..3,
        ) {
            let events = PendingEvents {
                exception,
                interrupt,
                nmi_pending,
                nmi_blocked,
                interrupt_shadow: shadow > 0,
                debug_shadow: shadow > 1,
            };
            let kvm = to_kvm(&events, &LapicState::default(), INTERRUPTS_ON);
            prop_assert_eq!(from_kvm(&kvm), events);
        }
    }

    #[test]
    fn an_nmi_on_its_way_is_delivered_again() {
        let mut kvm = kvm_vcpu_events::default();
        kvm.nmi.injected = 1;
        kvm.nmi.masked = 1;
        let events = from_kvm(&kvm);
        assert!(events.nmi_pending && !events.nmi_blocked);
    }

    #[test]
    fn activities_survive_both_ways() {
        for state in [
            MpState::Running,
            MpState::Halted,
            MpState::Uninitialized,
            MpState::WaitForStartup,
        ] {
            assert_eq!(mp_from_kvm(mp_to_kvm(state, false)), state);
        }
        assert_eq!(
            mp_to_kvm(MpState::WaitForStartup, true),
            KVM_MP_STATE_SIPI_RECEIVED
        );
    }
}
