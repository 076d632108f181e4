//! From a request and its descriptors to a machine that is ready to run.

use std::fs::File;
use std::io::{self, BufReader};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use croft_api::machine::{CpuModel as Model, MachineSpec};
use croft_api::vmm::{KvmDevice, StartRequest};
use croft_api::{Outcome, WireError};
use croft_engine::CpuModel;
use croft_engine_kvm::KvmEngine;
use croft_isolate::Wants;
use croft_isolate::landlock::Share;
use croft_machine::{
    BootFrom, ConsoleBackend, DiskConfig, GdbListener, Machine, MachineConfig, MachineError,
    NamedFile, NicConfig, Payload, PortConfig, SavedError, SavedMachine, ShareConfig, VsockConfig,
};
use rustix::net::{AddressFamily, sockopt};

use crate::disks;
use crate::engine::{Chosen, Wanted};
use crate::nics;
use crate::report::Reporter;

/// Bytes of a saved machine read at once.
const BUFFER: usize = 1 << 20;

/// What stands for a `/dev/kvm` that nobody looked for: ENOENT.
const NO_DEVICE: i32 = 2;

/// A saved machine in its file.
pub type Saved = SavedMachine<BufReader<File>>;

/// A request to start, with its descriptors told apart.
#[derive(Debug)]
pub struct Start<S = Saved> {
    /// The configuration.
    pub machine: MachineSpec,
    kernel: Option<NamedFile>,
    initrd: Option<NamedFile>,
    disks: Vec<DiskConfig>,
    nics: Vec<NicConfig>,
    shares: Vec<ShareConfig>,
    saved: Option<S>,
    gdb: Option<OwnedFd>,
    /// `/dev/kvm`, or the number of the error that opening it gave.
    kvm: Result<OwnedFd, i32>,
    ports: Vec<PortConfig>,
}

impl Start<File> {
    /// Tells them apart; the console's socket comes back beside.
    pub fn new(
        request: StartRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Self, OwnedFd), WireError> {
        let complete = descriptors.len() == request.descriptors();
        let mut descriptors = descriptors.into_iter();
        let (true, Some(console)) = (complete, descriptors.next()) else {
            return Err(WireError::Damaged("Start comes with other descriptors"));
        };
        let named = |descriptor: OwnedFd, name| NamedFile {
            file: File::from(descriptor),
            name,
        };
        let kernel = request
            .kernel
            .and_then(|name| descriptors.next().map(|descriptor| named(descriptor, name)));
        let initrd = request
            .initrd
            .and_then(|name| descriptors.next().map(|descriptor| named(descriptor, name)));
        let disks = request.disks.into_iter();
        let disks = disks
            .map(|disk| disks::config(disk, &mut descriptors))
            .collect();
        let nics = request.nics.into_iter();
        let nics = nics
            .map(|nic| nics::config(nic, &mut descriptors))
            .collect();
        let shares = request.shares.into_iter().zip(descriptors.by_ref());
        let shares = shares.map(|(share, directory)| ShareConfig {
            directory,
            tag: share.tag,
            read_only: share.read_only,
        });
        let shares = shares.collect();
        let saved = if request.saved {
            descriptors.next().map(File::from)
        } else {
            None
        };
        let gdb = request.gdb.then(|| descriptors.next()).flatten();
        let kvm = match request.kvm {
            KvmDevice::Handed => descriptors.next().ok_or(NO_DEVICE),
            KvmDevice::Refused(errno) => Err(errno),
            KvmDevice::Unwanted => Err(NO_DEVICE),
        };
        let ports = request.machine.ports.iter().cloned().zip(descriptors);
        let ports = ports.map(|(name, socket)| PortConfig { name, socket });
        let ports = ports.collect();
        let start = Start {
            machine: request.machine,
            kernel,
            initrd,
            disks,
            nics,
            shares,
            saved,
            gdb,
            kvm,
            ports,
        };
        Ok((start, console))
    }

    /// What the jail has to leave open for it.
    pub fn wants(&self) -> Wants {
        Wants {
            kvm: self.kvm.is_ok(),
            shares: !self.shares.is_empty(),
        }
    }

    /// The directories that stay in reach.
    pub fn shares(&self) -> Vec<Share<'_>> {
        self.shares
            .iter()
            .map(|share| Share {
                directory: share.directory.as_fd(),
                read_only: share.read_only,
            })
            .collect()
    }

    /// Reads what a saved machine was.
    pub fn open(self) -> Result<Start, SavedError> {
        let saved = self.saved.map(|file| {
            let reader = BufReader::with_capacity(BUFFER, file);
            SavedMachine::open(reader)
        });
        Ok(Start {
            machine: self.machine,
            kernel: self.kernel,
            initrd: self.initrd,
            disks: self.disks,
            nics: self.nics,
            shares: self.shares,
            saved: saved.transpose()?,
            gdb: self.gdb,
            kvm: self.kvm,
            ports: self.ports,
        })
    }
}

impl Start {
    /// The KVM engine on what came for it.
    pub fn kvm(&mut self) -> KvmEngine {
        KvmEngine::handed(std::mem::replace(&mut self.kvm, Err(NO_DEVICE)))
    }

    /// What it asks of its engine.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            choice: self.machine.engine,
            software: self.machine.software,
            model: match &self.saved {
                Some(saved) => Some(saved.description().profile.model),
                None => self.machine.cpu.map(model),
            },
            vcpus: self.machine.cpus,
        }
    }

    /// Makes the machine.
    pub fn make(
        self,
        chosen: &Chosen,
        console: Arc<dyn ConsoleBackend>,
        reporter: &Reporter,
    ) -> Result<Machine, Outcome> {
        let spec = self.machine;
        let config = MachineConfig {
            name: spec.name,
            vcpus: spec.cpus,
            memory: spec.memory,
            model: spec.cpu.map_or(chosen.default_model, model),
            payload: Payload {
                boot: match self.kernel {
                    Some(kernel) => BootFrom::Files {
                        kernel,
                        initrd: self.initrd,
                    },
                    None => BootFrom::Disk,
                },
                append: spec.append,
            },
            disks: self.disks,
            nics: self.nics,
            ports: self.ports,
            shares: self.shares,
            vsock: spec.vsock.map(|cid| VsockConfig {
                cid,
                host: Arc::new(reporter.clone()),
            }),
            no_reboot: spec.no_reboot,
            test_devices: spec.test_devices,
        };
        let gdb = self.gdb.map(listener).transpose();
        let gdb = gdb.map_err(|error| Outcome::Failed {
            message: format!("the debugger's socket: {error}"),
        })?;
        let engine = &*chosen.engine;
        let made = match self.saved {
            Some(saved) => Machine::restore(engine, config, saved, console),
            None => Machine::new(engine, config, console),
        };
        let mut machine = made.map_err(refusal)?;
        if let Some(listener) = gdb {
            machine.set_gdb(listener);
        }
        Ok(machine)
    }
}

/// What the monitor bound: a port or a socket file.
fn listener(socket: OwnedFd) -> io::Result<GdbListener> {
    Ok(match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => GdbListener::Unix(UnixListener::from(socket)),
        _ => GdbListener::Tcp(TcpListener::from(socket)),
    })
}

fn model(model: Model) -> CpuModel {
    match model {
        Model::Host => CpuModel::Host,
        Model::PortableV1 => CpuModel::PortableV1,
        Model::SoftwareFast => CpuModel::SoftwareFast,
    }
}

/// Says why there is no machine.
pub fn refusal(error: MachineError) -> Outcome {
    let message = error.to_string();
    if error.is_configuration() {
        Outcome::Invalid { message }
    } else {
        Outcome::Failed { message }
    }
}
