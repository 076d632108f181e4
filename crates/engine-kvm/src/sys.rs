//! System calls of KVM that `kvm-ioctls` lacks or narrows.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_ioeventfd, kvm_irqfd,
    kvm_reinject_control,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_io_nr!(KVM_REINJECT_CONTROL, KVMIO, 0x71);

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Registers or removes a doorbell.
pub fn ioeventfd(vm: &VmFd, request: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: the file is a KVM virtual machine and the request is one that
    // the kernel only reads.
    done(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), request) })
}

/// Registers or removes an interrupt event; with `resample`, one that keeps
/// its line up until the guest's EOI.
pub fn irqfd(
    vm: &VmFd,
    gsi: u32,
    event: &EventFd,
    resample: Option<RawFd>,
    flags: u32,
) -> io::Result<()> {
    let request = kvm_irqfd {
        fd: event.as_raw_fd() as u32,
        gsi,
        flags,
        resamplefd: resample.unwrap_or_default() as u32,
        ..Default::default()
    };
    // SAFETY: as above.
    done(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &request) })
}

/// PIT periods that the guest missed make one interrupt, not a burst.
pub fn no_pit_reinjection(vm: &VmFd) -> io::Result<()> {
    let request = kvm_reinject_control {
        pit_reinject: 0,
        ..Default::default()
    };
    // SAFETY: as above.
    done(unsafe { ioctl_with_ref(vm, KVM_REINJECT_CONTROL(), &request) })
}

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

fn tsc_offset_attribute(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: ptr::from_mut(value) as u64,
    }
}

/// What is added to the (scaled) host TSC to make this vCPU's.
pub fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut value = 0;
    let request = tsc_offset_attribute(&mut value);
    // SAFETY: the file is a KVM vCPU; the kernel writes eight bytes to `value`.
    done(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &request) })?;
    Ok(value)
}

/// Counterpart of [`tsc_offset`].
pub fn set_tsc_offset(vcpu: &VcpuFd, mut value: u64) -> io::Result<()> {
    let request = tsc_offset_attribute(&mut value);
    // SAFETY: as above; the kernel reads eight bytes.
    done(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &request) })
}
