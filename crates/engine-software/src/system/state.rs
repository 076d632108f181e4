//! The vCPU as engine-neutral state and back.

use croft_engine::CpuState;
use croft_engine::state::{
    MpState, MsrState, PendingEvents, STATE_VERSION, SegmentState, StateError, TableState,
    check_version,
};

use crate::cpu::{Activity, Cpu, Segment, Table, cr0, cr4, efer, flag};
use crate::fault::{Raised, vector};
use crate::msr::index;
use crate::shared::lock;
use crate::system::debug::{DR6_BITS, DR6_FIXED, DR7_BITS, DR7_FIXED};

fn save_segment(segment: &Segment) -> SegmentState {
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: segment.attr,
    }
}

fn restore_segment(state: &SegmentState) -> Segment {
    Segment {
        selector: state.selector,
        attr: state.attributes & 0x1_F0FF,
        limit: state.limit,
        base: state.base,
    }
}

fn save_table(table: &Table) -> TableState {
    TableState {
        base: table.base,
        limit: table.limit,
    }
}

fn restore_table(state: &TableState) -> Table {
    Table {
        base: state.base,
        limit: state.limit,
    }
}

fn damaged(what: impl Into<String>) -> StateError {
    StateError::Damaged(what.into())
}

const PDPTES: &str = "reserved bits in PAE page-directory pointers";

impl Cpu {
    /// Everything of this vCPU. It must stand on an instruction boundary.
    pub fn save_state(&mut self) -> CpuState {
        self.collect_pv_eoi();
        let mut msrs = self.msrs.export();
        msrs.push(MsrState {
            index: index::EFER,
            value: self.efer,
        });
        msrs.sort_by_key(|msr| msr.index);
        let lapic = lock(&self.own.lapic);
        let mut registers = [0; 16];
        registers.copy_from_slice(&self.regs[..16]);
        CpuState {
            version: STATE_VERSION,
            registers,
            rip: self.rip(),
            rflags: self.rflags,
            segments: std::array::from_fn(|n| save_segment(&self.segs[n])),
            tr: save_segment(&self.tr),
            ldtr: save_segment(&self.ldtr),
            gdtr: save_table(&self.gdtr),
            idtr: save_table(&self.idtr),
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            pdptes: self.pae_paging().then_some(self.pdpte),
            cr8: u64::from(lapic.cr8()),
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            xcr0: self.xcr0,
            xsave: self.vector.to_xsave(self.shared.profile.xcr0),
            msrs,
            lapic: lapic.save(),
            events: PendingEvents {
                exception: self.inject.map(|raised| (raised.vector, raised.error)),
                interrupt: self.inject_interrupt,
                nmi_pending: self.nmi_pending,
                nmi_blocked: self.nmi_blocked,
                interrupt_shadow: self.shadow,
                debug_shadow: self.shadow_ss,
            },
            mp_state: match self.activity {
                Activity::Running => MpState::Running,
                Activity::Halted => MpState::Halted,
                Activity::Uninitialized => MpState::Uninitialized,
                Activity::WaitForStartup => MpState::WaitForStartup,
            },
        }
    }

    /// Counterpart of [`Cpu::save_state`]. A state with values that no
    /// processor can have is refused, and changes nothing; only one that
    /// leaves bad PAE page-directory pointers to be loaded from guest memory
    /// is found out late, and leaves a vCPU that must be reset.
    pub fn restore_state(&mut self, state: &CpuState) -> Result<(), StateError> {
        check_version(state.version)?;
        let msr = |index| state.msrs.iter().find(|msr| msr.index == index);
        let new_efer = msr(index::EFER).map_or(0, |msr| msr.value);
        self.check_state(state, new_efer)?;
        let mut vector = self.vector.clone();
        vector
            .from_xsave(&state.xsave)
            .map_err(|error| damaged(error.to_string()))?;
        // A refused state leaves the APIC as it was.
        lock(&self.own.lapic)
            .restore(&state.lapic)
            .map_err(|error| damaged(error.to_string()))?;
        self.vector = vector;
        self.regs[..16].copy_from_slice(&state.registers);
        self.regs[16] = 0;
        self.set_rip(state.rip);
        self.rflags = state.rflags | flag::FIXED;
        self.segs = std::array::from_fn(|n| restore_segment(&state.segments[n]));
        self.tr = restore_segment(&state.tr);
        self.ldtr = restore_segment(&state.ldtr);
        self.gdtr = restore_table(&state.gdtr);
        self.idtr = restore_table(&state.idtr);
        self.cr0 = state.cr0 | cr0::ET;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.efer = new_efer;
        self.dr = state.dr;
        self.dr6 = state.dr6 & DR6_BITS | DR6_FIXED;
        self.dr7 = state.dr7 & DR7_BITS | DR7_FIXED;
        self.xcr0 = state.xcr0;
        self.msrs.import(&state.msrs);
        self.msrs.pv_eoi_pending = false;
        self.inject = state.events.exception.map(|(vector, error)| Raised {
            vector,
            error,
            // CR2 and DR6 were set when it was raised.
            cr2: state.cr2,
            dr6: if vector == vector::DB {
                state.dr6 & 0xF
            } else {
                0
            },
            ..Raised::default()
        });
        self.inject_interrupt = state.events.interrupt;
        self.nmi_pending = state.events.nmi_pending;
        self.nmi_blocked = state.events.nmi_blocked;
        self.shadow = state.events.interrupt_shadow;
        self.shadow_ss = state.events.debug_shadow;
        self.activity = match state.mp_state {
            MpState::Running => Activity::Running,
            MpState::Halted => Activity::Halted,
            MpState::Uninitialized => Activity::Uninitialized,
            MpState::WaitForStartup => Activity::WaitForStartup,
        };
        self.update_mode();
        match state.pdptes {
            Some(pdptes) => self.pdpte = pdptes,
            None if self.pae_paging() && self.load_pdptes().is_err() => {
                return Err(damaged(PDPTES));
            }
            None => {}
        }
        self.flush_tlb();
        self.write_system_time();
        Ok(())
    }

    fn check_state(&self, state: &CpuState, new_efer: u64) -> Result<(), StateError> {
        let features = &self.shared.features;
        let paging = state.cr0 & cr0::PG != 0;
        let long = new_efer & efer::LMA != 0;
        if state.cr4 & !features.cr4 != 0 {
            let bits = state.cr4 & !features.cr4;
            return Err(damaged(format!(
                "CR4 bits {bits:#x} are not of this CPU model"
            )));
        }
        if long != (paging && new_efer & efer::LME != 0)
            || long && state.cr4 & cr4::PAE == 0
            || paging && state.cr0 & cr0::PE == 0
        {
            return Err(damaged("CR0, CR4 and EFER contradict each other"));
        }
        if state
            .pdptes
            .is_some_and(|pdptes| !self.pdptes_allowed(&pdptes))
        {
            return Err(damaged(PDPTES));
        }
        if state.xcr0 & !self.shared.profile.xcr0 != 0 || state.xcr0 & 1 == 0 {
            return Err(damaged(format!("XCR0 is {:#x}", state.xcr0)));
        }
        if state.cr3 >> self.shared.profile.physical_bits != 0 {
            return Err(damaged(format!("CR3 is {:#x}", state.cr3)));
        }
        if state
            .events
            .exception
            .is_some_and(|(vector, _)| vector > 31)
        {
            return Err(damaged("an exception above vector 31 is pending"));
        }
        Ok(())
    }
}
