//! Interrupt lines, messages and the event objects that raise them.
//!
//! ```text
//!  GSI 0 (timer) ──┬─▶ PIC input 0      GSI 24… ──▶ one message each,
//!                  └─▶ I/O APIC pin 2              made with its irqfd
//!  GSI n ──────────┬─▶ PIC input n (below 16, not 2)
//!                  └─▶ I/O APIC pin n
//! ```
//!
//! A line that is resampled has irqfds that stay up until the EOI; one whose
//! irqfds were made before that is asked for has them made anew.

use std::os::fd::AsRawFd;

use croft_engine::{EngineError, InterruptRoute};
use croft_irqchip::{Message, Msi};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chips::PINS;
use crate::error::{host, os};
use crate::sys;

/// GSI of the interval timer, and its pin.
const GSI_TIMER: u32 = 0;
const PIN_TIMER: u32 = 2;
/// GSI of the cascade, which no device has.
const GSI_CASCADE: u32 = 2;
/// First GSI of messages; those below are lines.
const GSI_MESSAGES: u32 = PINS as u32;

/// Whether this line exists.
pub fn is_line(gsi: u32) -> bool {
    gsi < GSI_MESSAGES && gsi != GSI_CASCADE
}

/// I/O APIC pin of a line.
pub fn pin(gsi: u32) -> u32 {
    if gsi == GSI_TIMER { PIN_TIMER } else { gsi }
}

fn to_chip(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn to_message(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

fn line_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for gsi in (0..GSI_MESSAGES).filter(|gsi| is_line(*gsi)) {
        match gsi {
            0..8 => routes.push(to_chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => routes.push(to_chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        routes.push(to_chip(gsi, KVM_IRQCHIP_IOAPIC, pin(gsi)));
    }
    routes
}

struct LineEvent {
    gsi: u32,
    event: EventFd,
    /// Made with resampling.
    resampled: bool,
}

/// The routes and events of one machine.
pub struct Lines {
    messages: Vec<Msi>,
    /// KVM holds references to events; these keep their descriptors, by
    /// which they are taken back.
    events: Vec<LineEvent>,
    message_events: Vec<EventFd>,
    /// What the guest's EOI signals, by line.
    resamples: Vec<(u32, EventFd)>,
}

impl Lines {
    /// The lines, no messages yet.
    pub fn new(vm: &VmFd) -> Result<Self, EngineError> {
        let lines = Lines {
            messages: Vec::new(),
            events: Vec::new(),
            message_events: Vec::new(),
            resamples: Vec::new(),
        };
        lines.route(vm)?;
        Ok(lines)
    }

    fn route(&self, vm: &VmFd) -> Result<(), EngineError> {
        let mut routes = line_routes();
        routes.extend(
            (GSI_MESSAGES..)
                .zip(&self.messages)
                .map(|(gsi, msi)| to_message(gsi, *msi)),
        );
        let routing = KvmIrqRouting::from_entries(&routes).map_err(|_| {
            EngineError::Unsupported("KVM takes no more interrupt routes".to_owned())
        })?;
        vm.set_gsi_routing(&routing)
            .map_err(host("cannot route interrupts"))
    }

    /// An event that raises `route`.
    pub fn add(&mut self, vm: &VmFd, route: InterruptRoute) -> Result<EventFd, EngineError> {
        let fail = os("cannot make an interrupt event");
        let event = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        let kept = event.try_clone().map_err(&fail)?;
        match route {
            InterruptRoute::Line(gsi) if is_line(gsi) => {
                let resampled = self.resamples.iter().any(|(line, _)| *line == gsi);
                let mut line = LineEvent {
                    gsi,
                    event: kept,
                    resampled: false,
                };
                self.assign(vm, &mut line, resampled).map_err(&fail)?;
                self.events.push(line);
            }
            InterruptRoute::Msi(msi) if Message::from_msi(msi).is_some() => {
                let gsi = GSI_MESSAGES + self.messages.len() as u32;
                self.messages.push(msi);
                let routed = self
                    .route(vm)
                    .and_then(|()| sys::irqfd(vm, gsi, &kept, None, 0).map_err(&fail));
                if let Err(error) = routed {
                    self.messages.pop();
                    return Err(error);
                }
                self.message_events.push(kept);
            }
            // Nobody hears an unknown line or a message that is none.
            InterruptRoute::Line(_) | InterruptRoute::Msi(_) => {}
        }
        Ok(event)
    }

    /// Registers a line's event; a resampled one falls with the EOI.
    fn assign(&self, vm: &VmFd, line: &mut LineEvent, resampled: bool) -> std::io::Result<()> {
        if resampled {
            // KVM signals this one for the event alone; who asked for
            // resampling has an event of its own.
            let unheard = EventFd::new(EFD_NONBLOCK)?;
            let flags = KVM_IRQFD_FLAG_RESAMPLE;
            sys::irqfd(vm, line.gsi, &line.event, Some(unheard.as_raw_fd()), flags)?;
        } else {
            sys::irqfd(vm, line.gsi, &line.event, None, 0)?;
        }
        line.resampled = resampled;
        Ok(())
    }

    /// An event that the EOI of line `gsi` signals.
    pub fn resample(&mut self, vm: &VmFd, gsi: u32) -> Result<EventFd, EngineError> {
        let fail = os("cannot make an EOI event");
        let heard = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        if !is_line(gsi) {
            return Ok(heard);
        }
        // KVM knows resampling as a property of an event that raises the
        // line; this one never does.
        let never = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        let flags = KVM_IRQFD_FLAG_RESAMPLE;
        sys::irqfd(vm, gsi, &never, Some(heard.as_raw_fd()), flags).map_err(&fail)?;
        self.resamples.push((gsi, never));
        let mut events = std::mem::take(&mut self.events);
        let mut result = Ok(());
        for line in events.iter_mut().filter(|l| l.gsi == gsi && !l.resampled) {
            result = result
                .and_then(|()| sys::irqfd(vm, gsi, &line.event, None, KVM_IRQFD_FLAG_DEASSIGN))
                .and_then(|()| self.assign(vm, line, true));
        }
        self.events = events;
        result.map_err(&fail)?;
        Ok(heard)
    }
}

/// Delivers a message; what is none is ignored.
pub fn send(vm: &VmFd, msi: Msi) {
    if Message::from_msi(msi).is_none() {
        return;
    }
    // A message without a receiver is no error of ours.
    let _ = vm.signal_msi(kvm_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_both_controllers() {
        let routes = line_routes();
        let of = |gsi| {
            let found = routes.iter().filter(move |route| route.gsi == gsi);
            // SAFETY: all these routes are of the irqchip type.
            found
                .map(|route| unsafe { (route.u.irqchip.irqchip, route.u.irqchip.pin) })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of(0),
            [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_IOAPIC, 2)]
        );
        assert_eq!(of(2), []);
        assert_eq!(
            of(12),
            [(KVM_IRQCHIP_PIC_SLAVE, 4), (KVM_IRQCHIP_IOAPIC, 12)]
        );
        assert_eq!(of(23), [(KVM_IRQCHIP_IOAPIC, 23)]);
        assert_eq!(of(24), []);
    }
}
