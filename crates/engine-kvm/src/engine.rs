//! The KVM engine behind the seam.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use croft_engine::{
    Capabilities, CpuModel, CpuProfile, Engine, EngineError, Fitness, Missing, Partition,
    PartitionConfig, Topology,
};
use kvm_bindings::{KVM_CAP_TSC_CONTROL, KVM_CAP_TSC_DEADLINE_TIMER, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use crate::cpuid::Supported;
use crate::host::{DEVICE, Device, Processor};
use crate::partition::KvmPartition;

/// Most vCPUs: APIC ids of one byte, 0xFF being the broadcast.
const MAX_VCPUS: u32 = 254;
/// Address bits told when there is no KVM to ask.
const PHYSICAL_BITS: u8 = 46;

/// An open `/dev/kvm` and what it told.
pub struct Facts {
    /// The device.
    pub kvm: Kvm,
    /// What it supports of CPUID.
    supported: Supported,
    /// Host TSC frequency in kHz.
    pub tsc_khz: u32,
    /// The processor can scale the TSC for a guest.
    pub scales_tsc: bool,
    max_vcpus: u32,
}

impl Facts {
    fn gather(device: &Device) -> Result<Self, String> {
        let kvm = device.open(Processor::detect())?;
        let told = |what: &str, error: kvm_ioctls::Error| {
            format!("/dev/kvm is there, but does not tell {what}: {error}")
        };
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| told("its CPUID", error))?;
        let has = |cap: u32| kvm.check_extension_raw(cap.into()) > 0;
        let (deadline, scales_tsc) = (has(KVM_CAP_TSC_DEADLINE_TIMER), has(KVM_CAP_TSC_CONTROL));
        // Only a vCPU knows the frequency.
        let tsc_khz = kvm
            .create_vm()
            .and_then(|vm| vm.create_vcpu(0))
            .and_then(|vcpu| vcpu.get_tsc_khz())
            .map_err(|error| told("its TSC frequency", error))?;
        if tsc_khz == 0 {
            return Err("the host's TSC has no constant frequency, so KVM cannot keep time".into());
        }
        Ok(Facts {
            supported: Supported::new(cpuid.as_slice(), deadline),
            tsc_khz,
            scales_tsc,
            max_vcpus: u32::try_from(kvm.get_max_vcpus())
                .unwrap_or(MAX_VCPUS)
                .min(MAX_VCPUS),
            kvm,
        })
    }
}

/// Runs x86-64 machines by hardware virtualization.
pub struct KvmEngine {
    device: Device,
    facts: OnceLock<Result<Arc<Facts>, String>>,
}

impl Default for KvmEngine {
    fn default() -> Self {
        KvmEngine {
            device: Device::Path(DEVICE),
            facts: OnceLock::new(),
        }
    }
}

impl KvmEngine {
    /// The engine. `/dev/kvm` is opened when it is first asked for something.
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine on a `/dev/kvm` that was opened by somebody else, or could
    /// not be, with this error number.
    pub fn handed(device: Result<OwnedFd, i32>) -> Self {
        KvmEngine {
            device: Device::Handed(device.map(File::from)),
            ..Self::default()
        }
    }

    fn facts(&self) -> Result<&Arc<Facts>, &str> {
        self.facts
            .get_or_init(|| Facts::gather(&self.device).map(Arc::new))
            .as_ref()
            .map_err(String::as_str)
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn probe(&self) -> Fitness {
        let probed = self
            .facts()
            .map_err(str::to_owned)
            .and_then(|facts| crate::probe::probe(&facts.kvm).map(|()| facts));
        match probed {
            Ok(facts) => Fitness::Fit(format!(
                "hardware virtualization, up to {} vCPUs, TSC at {} kHz",
                facts.max_vcpus, facts.tsc_khz
            )),
            Err(text) => Fitness::Unfit(text),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let facts = self.facts().ok();
        Capabilities {
            max_vcpus: facts.map_or(MAX_VCPUS, |facts| facts.max_vcpus),
            physical_bits: facts.map_or(PHYSICAL_BITS, |facts| facts.supported.physical_bits),
            data_breakpoints: true,
        }
    }

    fn profile(&self, model: CpuModel, topology: Topology) -> Result<CpuProfile, Vec<Missing>> {
        let facts = self.facts().map_err(|_| {
            vec![Missing {
                feature: "/dev/kvm",
                lacking: "host",
            }]
        })?;
        facts.supported.profile(model, topology, facts.tsc_khz)
    }

    fn partition(&self, config: PartitionConfig) -> Result<Arc<dyn Partition>, EngineError> {
        let most = self.capabilities().max_vcpus;
        if config.vcpus == 0 || config.vcpus > most {
            return Err(EngineError::TooManyVcpus {
                engine: self.name(),
                wanted: config.vcpus,
                most,
            });
        }
        if config.profile.model == CpuModel::SoftwareFast {
            return Err(EngineError::Unsupported(
                "the CPU model software-fast is not safe on hardware; use portable-v1".to_owned(),
            ));
        }
        let facts = self
            .facts()
            .map_err(|text| EngineError::Unsupported(text.to_owned()))?;
        Ok(Arc::new(KvmPartition::new(facts, config)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_engine_software::SoftwareEngine;
    use croft_memory::{GuestRam, Range};

    const TOPOLOGY: Topology = Topology { vcpus: 1 };

    /// An engine on a host without KVM.
    fn without() -> KvmEngine {
        KvmEngine {
            device: Device::Path(c"/nowhere/kvm"),
            ..KvmEngine::default()
        }
    }

    fn config(vcpus: u32, model: CpuModel) -> PartitionConfig {
        let range = Range {
            start: 0,
            len: 0x1000,
        };
        PartitionConfig {
            ram: GuestRam::new(&[range]).unwrap(),
            profile: SoftwareEngine::new().profile(model, TOPOLOGY).unwrap(),
            vcpus,
        }
    }

    fn refusal(engine: &KvmEngine, config: PartitionConfig) -> String {
        let made = engine.partition(config).map(drop);
        made.expect_err("a machine was made").to_string()
    }

    #[test]
    fn without_the_device_everything_says_so() {
        let engine = without();
        let Fitness::Unfit(text) = engine.probe() else {
            panic!("fit");
        };
        assert!(text.starts_with("there is no /dev/kvm; "), "{text}");
        let missing = engine.profile(CpuModel::PortableV1, TOPOLOGY).unwrap_err();
        assert_eq!(missing[0].feature, "/dev/kvm");
        assert_eq!(refusal(&engine, config(1, CpuModel::PortableV1)), text);
        assert_eq!(engine.capabilities().max_vcpus, MAX_VCPUS);
    }

    #[test]
    fn what_no_host_can_do_is_refused_on_any() {
        let engine = without();
        for vcpus in [0, 255, u32::MAX] {
            let text = refusal(&engine, config(vcpus, CpuModel::PortableV1));
            assert_eq!(
                text,
                format!("{vcpus} vCPUs asked for, the kvm engine runs at most 254; lower --cpus")
            );
        }
        let text = refusal(&engine, config(1, CpuModel::SoftwareFast));
        assert!(text.contains("use portable-v1"), "{text}");
    }
}
