//! What follows from a guest's access to its local APIC.

use croft_irqchip::Action;

use crate::cpu::Cpu;
use crate::shared::lock;

impl Cpu {
    /// Carries out what a write to the local APIC asks for.
    pub(crate) fn apic_action(&mut self, action: Action) {
        self.shared.perform(&action);
        self.lapic_changed();
    }

    /// WRMSR to x2APIC register `msr`; `None` is #GP.
    pub(crate) fn write_x2apic(&mut self, msr: u32, value: u64) -> Option<()> {
        let (now, tsc) = (self.shared.clock_ns(), self.tsc());
        let action = lock(&self.own.lapic).write_msr(msr, value, now, tsc).ok()?;
        self.apic_action(action);
        Some(())
    }

    /// The guest ended the interrupt in service.
    pub(crate) fn end_of_interrupt(&mut self) {
        let eoi = lock(&self.own.lapic).eoi();
        self.apic_action(Action {
            eoi,
            ..Action::default()
        });
    }
}
