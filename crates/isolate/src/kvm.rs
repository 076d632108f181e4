//! Requests to `/dev/kvm` and to what it makes (Linux `linux/kvm.h`).
//!
//! Each is type and number, the low 16 bits of the request; what is above
//! them is the size of the argument, and the kernel compares that itself.

/// The type of all of them.
const KVMIO: u64 = 0xAE << 8;

/// Type without number.
pub const TYPE_MASK: u64 = 0xFF00;
/// Type and number.
pub const REQUEST_MASK: u64 = 0xFFFF;
/// What is asked while a machine is made: anything of KVM.
pub const ALL: &[u64] = &[KVMIO];

/// What raises interrupts: any thread with a device does.
pub const INTERRUPTS: &[u64] = &[
    KVMIO | 0x61, // KVM_IRQ_LINE
    KVMIO | 0x67, // KVM_IRQ_LINE_STATUS
    KVMIO | 0xA5, // KVM_SIGNAL_MSI, KVM_SET_XSAVE
];

/// What the registers of devices lead to.
pub const DEVICES: &[u64] = &[
    KVMIO | 0x6A, // KVM_SET_GSI_ROUTING
    KVMIO | 0x76, // KVM_IRQFD
    KVMIO | 0x79, // KVM_IOEVENTFD
];

/// A vCPU: running it, its registers, its state.
pub const VCPU: &[u64] = &[
    KVMIO | 0x80, // KVM_RUN
    KVMIO | 0x81, // KVM_GET_REGS
    KVMIO | 0x82, // KVM_SET_REGS
    KVMIO | 0x83, // KVM_GET_SREGS
    KVMIO | 0x84, // KVM_SET_SREGS
    KVMIO | 0x85, // KVM_TRANSLATE
    KVMIO | 0x88, // KVM_GET_MSRS
    KVMIO | 0x89, // KVM_SET_MSRS
    KVMIO | 0x8E, // KVM_GET_LAPIC
    KVMIO | 0x8F, // KVM_SET_LAPIC
    KVMIO | 0x90, // KVM_SET_CPUID2
    KVMIO | 0x98, // KVM_GET_MP_STATE
    KVMIO | 0x99, // KVM_SET_MP_STATE
    KVMIO | 0x9A, // KVM_NMI
    KVMIO | 0x9B, // KVM_SET_GUEST_DEBUG
    KVMIO | 0x9F, // KVM_GET_VCPU_EVENTS, KVM_GET_PIT2
    KVMIO | 0xA0, // KVM_SET_VCPU_EVENTS, KVM_SET_PIT2
    KVMIO | 0xA1, // KVM_GET_DEBUGREGS
    KVMIO | 0xA2, // KVM_SET_DEBUGREGS, KVM_SET_TSC_KHZ
    KVMIO | 0xA3, // KVM_GET_TSC_KHZ
    KVMIO | 0xA4, // KVM_GET_XSAVE
    KVMIO | 0xA5, // KVM_SET_XSAVE
    KVMIO | 0xA6, // KVM_GET_XCRS
    KVMIO | 0xA7, // KVM_SET_XCRS
    KVMIO | 0xAD, // KVM_KVMCLOCK_CTRL
    KVMIO | 0xE1, // KVM_SET_DEVICE_ATTR: the TSC's offset
    KVMIO | 0xE2, // KVM_GET_DEVICE_ATTR
    KVMIO | 0xE3, // KVM_HAS_DEVICE_ATTR
];

/// A machine as a whole: clock, chips, memory slots and their dirty logs.
pub const MACHINE: &[u64] = &[
    KVMIO | 0x42, // KVM_GET_DIRTY_LOG
    KVMIO | 0x46, // KVM_SET_USER_MEMORY_REGION
    KVMIO | 0x62, // KVM_GET_IRQCHIP
    KVMIO | 0x63, // KVM_SET_IRQCHIP
    KVMIO | 0x71, // KVM_REINJECT_CONTROL
    KVMIO | 0x7B, // KVM_SET_CLOCK
    KVMIO | 0x7C, // KVM_GET_CLOCK
    KVMIO | 0x9F, // KVM_GET_PIT2
    KVMIO | 0xA0, // KVM_SET_PIT2
    KVMIO | 0xC0, // KVM_CLEAR_DIRTY_LOG
];
