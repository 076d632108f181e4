//! Doorbells: KVM's ioeventfd.

use std::os::fd::AsRawFd;

use croft_engine::{Doorbell, DoorbellAddress, EngineError};
use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::os;
use crate::sys;

/// The doorbells of one machine.
#[derive(Default)]
pub struct Doorbells(Vec<(Doorbell, EventFd)>);

fn request(doorbell: &Doorbell, event: &EventFd) -> kvm_ioeventfd {
    let (addr, port) = match doorbell.address {
        DoorbellAddress::Memory(address) => (address, false),
        DoorbellAddress::Port(port) => (port.into(), true),
    };
    let mut flags = 0;
    if port {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if doorbell.value.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    kvm_ioeventfd {
        datamatch: doorbell.value.unwrap_or_default(),
        addr,
        len: doorbell.len.into(),
        fd: event.as_raw_fd(),
        flags,
        ..Default::default()
    }
}

impl Doorbells {
    /// Hangs one up.
    pub fn add(&mut self, vm: &VmFd, doorbell: Doorbell) -> Result<EventFd, EngineError> {
        let fail = os("cannot make a doorbell");
        let event = EventFd::new(EFD_NONBLOCK).map_err(&fail)?;
        let kept = event.try_clone().map_err(&fail)?;
        sys::ioeventfd(vm, &request(&doorbell, &kept)).map_err(&fail)?;
        self.0.push((doorbell, kept));
        Ok(event)
    }

    /// Takes all down that are like `doorbell`.
    pub fn remove(&mut self, vm: &VmFd, doorbell: &Doorbell) {
        self.0.retain(|(known, event)| {
            if known != doorbell {
                return true;
            }
            let mut request = request(known, event);
            request.flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
            // It was hung up with the same words: KVM knows it.
            let _ = sys::ioeventfd(vm, &request);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_what_rings() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = Doorbell {
            address: DoorbellAddress::Port(0x510),
            len: 2,
            value: Some(7),
        };
        let made = request(&port, &event);
        assert_eq!(
            (made.addr, made.len, made.datamatch, made.flags),
            (0x510, 2, 7, 0b11)
        );
        let memory = Doorbell {
            address: DoorbellAddress::Memory(0xE000_0000),
            len: 0,
            value: None,
        };
        assert_eq!(request(&memory, &event).flags, 0);
    }
}
