//! What the command line says of a machine, as the protocols say it.

use std::path::{Path, PathBuf};

use croft_api::disk::{RunDisk, RunLayer};
use croft_api::monitor::RunShare;
use croft_api::{CpuModel, EngineChoice, MachineSpec, RestartPolicy, SoftwareSpec};
use croft_host::store::{Boot, CONFIG_VERSION, Disk, Kind, Layer, Machine, Share};
use croft_host::{Config, InstanceName, now};

use super::Fault;
use crate::args::create::{InstanceOptions, Restart};
use crate::args::machine::{Cpu, Engine, MachineOptions, SoftwareOptions};

/// The guest's address at its vsock: the lowest there is. It is its own affair,
/// as the host's side are sockets with paths.
const GUEST_CID: u32 = 3;

/// The virtual hardware.
pub fn machine_spec(options: &MachineOptions, name: &str) -> MachineSpec {
    MachineSpec {
        name: name.to_owned(),
        engine: if options.lockstep {
            EngineChoice::Lockstep
        } else {
            options.engine.into()
        },
        software: (&options.software).into(),
        cpu: options.cpu.map(Into::into),
        memory: options.memory,
        cpus: options.cpus,
        append: options.append.clone(),
        no_reboot: options.no_reboot,
        test_devices: options.test_devices,
        ports: Vec::new(),
        vsock: None,
    }
}

impl From<Engine> for EngineChoice {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => EngineChoice::Auto,
            Engine::Software => EngineChoice::Software,
            Engine::Kvm => EngineChoice::Kvm,
        }
    }
}

impl From<Cpu> for CpuModel {
    fn from(cpu: Cpu) -> Self {
        match cpu {
            Cpu::Host => CpuModel::Host,
            Cpu::PortableV1 => CpuModel::PortableV1,
            Cpu::SoftwareFast => CpuModel::SoftwareFast,
        }
    }
}

impl From<&SoftwareOptions> for SoftwareSpec {
    fn from(options: &SoftwareOptions) -> Self {
        SoftwareSpec {
            code_cache: options.code_cache,
            interpret: options.interpret,
            verify_code: options.verify_code,
            stats: options.stats,
        }
    }
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::No => RestartPolicy::No,
            Restart::OnFailure => RestartPolicy::OnFailure,
            Restart::Always => RestartPolicy::Always,
        }
    }
}

/// An instance of files that somebody names, which stay where they are.
pub fn config(
    machine: &MachineOptions,
    instance: &InstanceOptions,
    name: &InstanceName,
) -> Result<Config, Fault> {
    let boot = match &machine.kernel {
        Some(kernel) => Boot::Kernel {
            kernel: absolute(kernel.as_ref())?,
            initrd: match &machine.initrd {
                Some(path) => Some(absolute(path.as_ref())?),
                None => None,
            },
        },
        None => Boot::Disk,
    };
    Ok(Config {
        version: CONFIG_VERSION,
        created: now(),
        kind: Kind::Machine(Box::new(Machine {
            machine: MachineSpec {
                vsock: Some(GUEST_CID),
                ..machine_spec(machine, name.as_str())
            },
            boot,
            disks: disks(&machine.disks)?,
            shares: shares(&machine.shares)?,
        })),
        nics: Vec::new(),
        image: None,
        user: None,
        restart: instance.restart.into(),
        ephemeral: instance.ephemeral,
        autostart: instance.autostart,
    })
}

/// Disks that somebody names, which stay where they are.
pub fn disks(disks: &[RunDisk]) -> Result<Vec<Disk>, Fault> {
    let layer = |layer: &RunLayer| {
        Ok::<_, Fault>(Layer {
            path: absolute(layer.path.as_ref())?,
            format: layer.format,
        })
    };
    let disks = disks.iter().map(|disk| {
        Ok(Disk {
            layers: disk.layers.iter().map(layer).collect::<Result<_, _>>()?,
            index: disk.index,
            options: disk.options,
        })
    });
    disks.collect()
}

/// Directories that somebody names.
fn shares(shares: &[RunShare]) -> Result<Vec<Share>, Fault> {
    let shares = shares.iter().map(|share| {
        Ok(Share {
            path: absolute(share.path.as_ref())?,
            tag: share.tag.clone(),
            read_only: share.read_only,
        })
    });
    shares.collect()
}

/// A file that an instance uses is found from wherever it is started. It is
/// there now, or something about its name is wrong.
fn absolute(path: &Path) -> Result<PathBuf, Fault> {
    let name = path.to_string_lossy();
    let name = name.escape_debug();
    let absolute =
        std::path::absolute(path).map_err(|error| Fault::usage(format!("'{name}': {error}")))?;
    if absolute.to_str().is_none() {
        return Err(Fault::usage(format!(
            "'{name}' is not UTF-8, and cannot be kept in a configuration; rename it"
        )));
    }
    match absolute.metadata() {
        Ok(_) => Ok(absolute),
        Err(error) => Err(Fault::usage(format!(
            "'{name}': {error}; name a file that is there"
        ))),
    }
}
