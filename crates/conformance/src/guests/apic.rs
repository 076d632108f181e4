//! What guests that take interrupts share: the local APIC's registers, and
//! talking with the outside while the guest runs.

use std::time::{Duration, Instant};

use croft_irqchip::Msi;
use iced_x86::IcedError;

use crate::machine::Machine;
use crate::{Outcome, Program, check};

pub(super) const APIC_BASE: u32 = 0x1B;
pub(super) const TPR: u32 = 0x808;
pub(super) const EOI: u32 = 0x80B;
pub(super) const SVR: u32 = 0x80F;
pub(super) const ICR: u32 = 0x830;
pub(super) const TIMER: u32 = 0x832;
pub(super) const LINT0: u32 = 0x835;
pub(super) const INITIAL: u32 = 0x838;
pub(super) const CURRENT: u32 = 0x839;
pub(super) const DIVIDE: u32 = 0x83E;
pub(super) const SELF: u32 = 0x83F;
pub(super) const DEADLINE: u32 = 0x6E0;

/// Base of the I/O APIC and of the local APIC's page.
pub(super) const IOAPIC: u64 = 0xFEC0_0000;
pub(super) const XAPIC: u64 = 0xFEE0_0000;

/// x2APIC mode, software-enabled, PIC masked. Uses RAX, RCX, RDX.
pub(super) fn enable(p: &mut Program) -> Result<(), IcedError> {
    p.wrmsr_value(APIC_BASE, XAPIC | 0xD00)?;
    p.wrmsr_value(SVR, 0x1FF)?;
    p.wrmsr_value(LINT0, 1 << 16)
}

/// Waits for one interrupt, then ends it.
pub(super) fn wait(p: &mut Program, vector: u8) -> Result<(), IcedError> {
    p.sti()?;
    p.hlt()?;
    p.cli()?;
    p.event(vector);
    p.wrmsr_value(EOI, 0)
}

pub(super) fn message(vector: u8) -> Msi {
    Msi {
        address: XAPIC,
        data: vector.into(),
    }
}

/// Tells the outside to go on.
pub(super) const READY: u8 = 0x10;

/// Waits until the guest has written to [`READY`] `n` times in all.
pub(super) fn until_ready(m: &Machine, n: usize) {
    let mut seen = 0;
    // The machine gives up a guest that hangs before.
    let until = Instant::now() + Duration::from_secs(900);
    while Instant::now() < until {
        seen += m.io.take().len();
        if seen >= n {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn finish(m: &Machine, stop: croft_engine::Stop) -> Outcome {
    check!(m.io.is_done(), "the guest did not end: {stop:?}");
    m.compare()
}
