//! Making a machine.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use croft_engine::{Engine, Partition, PartitionConfig, Topology, Vcpu};
use croft_memory::GuestRam;

use crate::acpi;
use crate::chipset::Chipset;
use crate::config::{MachineConfig, Outcome, State};
use crate::console::{ConsoleBackend, ConsoleInput};
use crate::error::MachineError;
use crate::events::{Event, Events};
use crate::gdb::GdbListener;
use crate::handle::MachineHandle;
use crate::loader::Payload;
use crate::memory_map;
use crate::owner::Owner;
use crate::power::PowerSwitch;
use crate::sync::Shared;
use crate::virtio::Plugger;

/// A machine that is ready to run.
pub struct Machine {
    pub(crate) name: String,
    pub(crate) ram: GuestRam,
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) chipset: Chipset,
    pub(crate) firmware: Firmware,
    pub(crate) power: Arc<PowerSwitch>,
    pub(crate) console: Arc<dyn ConsoleBackend>,
    pub(crate) no_reboot: bool,
    pub(crate) events: Events,
    pub(crate) queue: Receiver<Event>,
    pub(crate) state: Arc<Shared<State>>,
    pub(crate) gdb: Option<GdbListener>,
}

/// What firmware would do: tables and kernel in memory, and the first vCPU at
/// the kernel's entry. Done at every start.
pub(crate) struct Firmware {
    payload: Payload,
    acpi: acpi::Config,
}

impl Firmware {
    /// Writes guest memory and says how the first vCPU starts.
    pub fn load(&self, ram: &GuestRam) -> Result<crate::boot::Boot, MachineError> {
        let rsdp = acpi::write(&self.acpi, ram)?;
        Ok(self.payload.load(ram, rsdp)?)
    }
}

impl Machine {
    /// Makes a machine on `engine`: everything that a configuration can have
    /// wrong is found here, and nothing is left of a machine that was not
    /// made. Console output and log lines go to `console`.
    pub fn new(
        engine: &dyn Engine,
        config: MachineConfig,
        console: Arc<dyn ConsoleBackend>,
    ) -> Result<Self, MachineError> {
        let capabilities = engine.capabilities();
        let most = capabilities.max_vcpus.min(acpi::VCPUS_MAX);
        if config.vcpus == 0 || config.vcpus > most {
            return Err(MachineError::Vcpus {
                wanted: config.vcpus,
                most,
            });
        }
        let payload = Payload {
            kernel: config.kernel,
            initrd: config.initrd,
            append: config.append,
        };
        payload.check()?;
        let topology = Topology {
            vcpus: config.vcpus,
        };
        let profile =
            engine
                .profile(config.model, topology)
                .map_err(|missing| MachineError::Model {
                    model: config.model,
                    missing,
                })?;
        let physical_bits = profile.physical_bits.min(capabilities.physical_bits);
        let ranges =
            memory_map::ram_ranges(config.memory, physical_bits, memory_map::host_memory())?;
        let ram = GuestRam::new(&ranges)?;
        let firmware = Firmware {
            payload,
            acpi: acpi::Config {
                vcpus: config.vcpus,
                pci_window_64: memory_map::pci_window_64(physical_bits),
            },
        };
        let boot = firmware.load(&ram)?;

        let partition = engine.partition(PartitionConfig {
            ram: ram.clone(),
            profile,
            vcpus: config.vcpus,
        })?;
        // Guest time starts with the first instruction.
        partition.pause_clock();
        let mut vcpus = (0..config.vcpus)
            .map(|index| partition.vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = vcpus.first_mut() {
            boot.enter(&mut **first)?;
        }

        let (events, queue) = mpsc::channel();
        let power = Arc::new(PowerSwitch::new(events.clone(), console.clone()));
        let chipset = Chipset::new(
            partition.clone(),
            &power,
            events.clone(),
            config.test_devices,
        )?;
        Plugger::new(&chipset, &ram, &console).plug(config.disks, config.vcpus)?;
        Ok(Machine {
            name: config.name,
            ram,
            partition,
            vcpus,
            chipset,
            firmware,
            power,
            console,
            no_reboot: config.no_reboot,
            events,
            queue,
            state: Arc::new(Shared::new(State::Created)),
            gdb: None,
        })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets debuggers connect to `listener` while the machine runs. The guest
    /// runs from the start; a debugger that connects stops it, one that
    /// detaches lets it go on.
    pub fn set_gdb(&mut self, listener: GdbListener) {
        self.gdb = Some(listener);
    }

    /// For controlling the machine from other threads; works before, during
    /// and after [`run`](Machine::run).
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            events: self.events.clone(),
            state: self.state.clone(),
            pm: self.chipset.pm.clone(),
            input: ConsoleInput {
                uart: self.chipset.uart.clone(),
                signal: self.chipset.console.clone(),
            },
        }
    }

    /// Runs the machine until it ends. All its threads have ended, and all
    /// console output has reached the backend, when this returns.
    pub fn run(self) -> Outcome {
        let state = self.state.clone();
        let outcome = match Owner::start(self) {
            Ok(owner) => owner.run(),
            Err(error) => Outcome::Failed(format!("cannot start a thread: {error}")),
        };
        *crate::sync::lock(&state) = State::Stopped;
        outcome
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("vcpus", &self.vcpus.len())
            .field("memory", &self.ram.size())
            .finish_non_exhaustive()
    }
}
