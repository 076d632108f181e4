//! `/dev/kvm`: whether it is there and has what Croft needs, and what to do
//! where not.

use std::arch::x86_64::__cpuid;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;

use kvm_bindings::*;
use kvm_ioctls::Kvm;

/// Where KVM is.
pub const DEVICE: &CStr = c"/dev/kvm";
/// The only version that was ever released (Linux
/// `Documentation/virt/kvm/api.rst`, KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

/// What must be there. The youngest came with Linux 5.16.
const REQUIRED: [(u32, &str); 24] = [
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"),
    (KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
    (KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"),
    (KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG"),
    (KVM_CAP_REINJECT_CONTROL, "KVM_CAP_REINJECT_CONTROL"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"),
    (KVM_CAP_PIT2, "KVM_CAP_PIT2"),
    (KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
    (
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    ),
    (KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"),
    (KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"),
    (KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"),
    (KVM_CAP_XSAVE, "KVM_CAP_XSAVE"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS"),
    (KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES"),
];

/// The processor we run on, as far as virtualization goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// VMX or SVM is announced.
    virtualization: bool,
    /// AMD's, with SVM.
    amd: bool,
    /// It is itself virtual.
    hypervisor: bool,
}

impl Processor {
    /// Asks CPUID.
    pub fn detect() -> Self {
        let basic = __cpuid(1);
        let vmx = basic.ecx >> 5 & 1 != 0;
        let extended = __cpuid(0x8000_0000).eax >= 0x8000_0001;
        let svm = extended && __cpuid(0x8000_0001).ecx >> 2 & 1 != 0;
        // "AuthenticAMD" and "HygonGenuine".
        let amd = matches!(__cpuid(0).ebx, 0x6874_7541 | 0x6F67_7948);
        Processor {
            virtualization: vmx || svm,
            amd,
            hypervisor: basic.ecx >> 31 != 0,
        }
    }

    /// What to do when KVM has not come up.
    fn remedy(self) -> &'static str {
        match (self.virtualization, self.amd, self.hypervisor) {
            (true, true, _) => "load its module: modprobe kvm_amd",
            (true, false, _) => "load its module: modprobe kvm_intel",
            (false, _, true) => {
                "this host is itself a virtual machine without nested virtualization; \
                 ask its provider for a type that has it"
            }
            (false, true, false) => {
                "enable SVM (AMD-V) in the firmware setup, then modprobe kvm_amd"
            }
            (false, false, false) => "enable VT-x in the firmware setup, then modprobe kvm_intel",
        }
    }
}

/// Why `/dev/kvm` could not be opened, and what to do.
fn cannot_open(error: &io::Error, processor: Processor) -> String {
    match error.kind() {
        ErrorKind::NotFound => format!("there is no /dev/kvm; {}", processor.remedy()),
        ErrorKind::PermissionDenied => "no permission for /dev/kvm; add the user to its group \
             (usermod -aG kvm USER, then log in again)"
            .to_owned(),
        _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            format!("/dev/kvm has no module behind it; {}", processor.remedy())
        }
        _ => format!("/dev/kvm cannot be opened: {error}"),
    }
}

/// Where KVM comes from.
#[derive(Debug)]
pub enum Device {
    /// This process opens it.
    Path(&'static CStr),
    /// It was opened by somebody else, or that failed with this error number.
    Handed(Result<File, i32>),
}

impl Device {
    /// KVM, if it has what is needed.
    pub fn open(&self, processor: Processor) -> Result<Kvm, String> {
        let opened = match self {
            Device::Path(path) => return open(path, processor),
            Device::Handed(Ok(file)) => file.try_clone(),
            Device::Handed(Err(errno)) => Err(io::Error::from_raw_os_error(*errno)),
        };
        let file = opened.map_err(|error| cannot_open(&error, processor))?;
        check(file, &DEVICE.to_string_lossy())
    }
}

/// Opens KVM at `path` and checks that it has what is needed.
fn open(path: &CStr, processor: Processor) -> Result<Kvm, String> {
    let text = path.to_string_lossy();
    let file = File::options()
        .read(true)
        .write(true)
        .open(Path::new(&*text))
        .map_err(|error| cannot_open(&error, processor))?;
    check(file, &text)
}

/// Checks that a file is KVM and has what is needed.
fn check(file: File, text: &str) -> Result<Kvm, String> {
    // SAFETY: the descriptor is ours alone and open.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(format!(
            "{text} is not KVM: it reports API version {version} instead of {API_VERSION}"
        ));
    }
    let missing: Vec<_> = REQUIRED
        .iter()
        .filter(|(cap, _)| kvm.check_extension_raw(u64::from(*cap)) <= 0)
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "this kernel's KVM lacks {}; Linux 5.16 or newer has all of it",
            missing.join(", ")
        ));
    }
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    const BARE: Processor = Processor {
        virtualization: false,
        amd: false,
        hypervisor: false,
    };

    /// As it is told by who was to be handed the device.
    fn obstacle(errno: i32, processor: Processor) -> String {
        let device = Device::Handed(Err(errno));
        device.open(processor).err().unwrap()
    }

    #[test]
    fn every_obstacle_comes_with_a_remedy() {
        let cases = [
            (BARE, "VT-x"),
            (Processor { amd: true, ..BARE }, "AMD-V"),
            (
                Processor {
                    hypervisor: true,
                    ..BARE
                },
                "nested",
            ),
            (
                Processor {
                    virtualization: true,
                    ..BARE
                },
                "modprobe kvm_intel",
            ),
            (
                Processor {
                    virtualization: true,
                    amd: true,
                    ..BARE
                },
                "modprobe kvm_amd",
            ),
        ];
        for (processor, expected) in cases {
            let text = obstacle(libc::ENOENT, processor);
            assert!(text.contains(expected), "{text}");
        }
        let text = obstacle(libc::EACCES, BARE);
        assert!(text.contains("usermod -aG kvm"), "{text}");
        let text = obstacle(libc::ENODEV, BARE);
        assert!(text.contains("module"), "{text}");
    }

    #[test]
    fn a_module_that_is_gone_is_told_from_a_missing_device() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvm");
        // Nobody listens: opening it is ENXIO, as for a device without driver.
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let text = open(&path, BARE).err().unwrap();
        assert!(text.contains("no module behind it; enable VT-x"), "{text}");
    }

    #[test]
    fn missing_permission_is_told_with_the_group() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), Permissions::from_mode(0o0)).unwrap();
        let path = CString::new(file.path().as_os_str().as_encoded_bytes()).unwrap();
        let text = std::thread::spawn(move || {
            // SAFETY: takes this thread's rights to other users' files, and
            // nothing else.
            unsafe { libc::setfsuid(65534) };
            open(&path, BARE).err().unwrap()
        });
        let text = text.join().unwrap();
        assert!(text.contains("usermod -aG kvm"), "{text}");
    }

    #[test]
    fn another_file_is_not_kvm() {
        let null = Device::Handed(Ok(File::open("/dev/null").unwrap()));
        let text = null.open(BARE).err().unwrap();
        assert!(text.contains("API version -1"), "{text}");
        let text = open(c"/dev/null", BARE).err().unwrap();
        assert!(text.contains("API version -1"), "{text}");
        assert!(
            open(c"/nowhere/kvm", BARE)
                .err()
                .unwrap()
                .contains("no /dev/kvm")
        );
    }
}
