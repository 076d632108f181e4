//! `croft network`: managed networks.
//!
//! All that is done to them is the crate `croft-network`'s; this is what
//! people see of it.

mod describe;
mod users;

use croft_host::Directories;
use croft_network::{NetworkError, NetworkName, Networks, NewNetwork, Subject};

use crate::args::network::{CreateOptions, NetworkCommand, SetOptions};
use crate::exit::Exit;
use crate::say;

/// Why something was not done.
struct Fault {
    exit: Exit,
    message: String,
}

impl From<NetworkError> for Fault {
    fn from(error: NetworkError) -> Self {
        let exit = match error {
            NetworkError::File { .. }
            | NetworkError::Program { .. }
            | NetworkError::Link { .. }
            | NetworkError::Interfaces(_)
            | NetworkError::Routes(_)
            | NetworkError::Busy(_) => Exit::Failed,
            _ => Exit::Usage,
        };
        Fault {
            exit,
            message: error.to_string(),
        }
    }
}

fn usage(message: impl Into<String>) -> Fault {
    Fault {
        exit: Exit::Usage,
        message: message.into(),
    }
}

/// Does what the command says.
pub fn run(command: NetworkCommand) -> Exit {
    match execute(command) {
        Ok(exit) => exit,
        Err(fault) => {
            say::line(&format!("croft: {}", fault.message));
            fault.exit
        }
    }
}

fn execute(command: NetworkCommand) -> Result<Exit, Fault> {
    let directories = Directories::find().map_err(|error| usage(error.to_string()))?;
    directories
        .create()
        .map_err(|error| usage(error.to_string()))?;
    let networks = Networks::open(&directories);
    match command {
        NetworkCommand::Create(options) => create(&networks, *options),
        NetworkCommand::List(options) => describe::list(&networks, options.output),
        NetworkCommand::Show(options) => describe::show(&networks, &options.name, options.output),
        NetworkCommand::Set(options) => set(&networks, *options),
        NetworkCommand::Delete(options) => Ok(each(&options.names, |name| {
            users::none(&directories, name)?;
            Ok(networks.delete(name)?)
        })),
        NetworkCommand::Start(options) => {
            Ok(each(&options.names, |name| Ok(networks.start(name)?)))
        }
        NetworkCommand::Stop(options) => Ok(each(&options.names, |name| Ok(networks.stop(name)?))),
        NetworkCommand::Reconcile => {
            let faults = networks.reconcile()?;
            for fault in &faults {
                let of = match &fault.subject {
                    Subject::Network(name) => format!("network '{name}'"),
                    Subject::Port(port) => format!("interface '{port}'"),
                };
                say::line(&format!("croft: {of}: {}", fault.error));
            }
            Ok(if faults.is_empty() {
                Exit::PowerOff
            } else {
                Exit::Failed
            })
        }
    }
}

/// Does it to each; the exit code is that of the last failure.
fn each(names: &[NetworkName], act: impl Fn(&NetworkName) -> Result<(), Fault>) -> Exit {
    let mut exit = Exit::PowerOff;
    for name in names {
        if let Err(fault) = act(name) {
            say::line(&format!("croft: {}", fault.message));
            exit = fault.exit;
        }
    }
    exit
}

fn create(networks: &Networks, options: CreateOptions) -> Result<Exit, Fault> {
    let new = NewNetwork {
        mode: options.mode,
        ipv4: options.ipv4,
        ipv6: options.ipv6,
        mtu: options.mtu,
        uplink: options.uplink,
        vlan: options.vlan,
        domain: options.domain,
        isolated: options.isolated,
        host_access: options.host_access,
        ingress: Some(options.ingress),
        egress: Some(options.egress),
        rules: options.rules,
    };
    let config = networks.create(&options.name, &new)?;
    say::line(&format!(
        "croft: network {}{}",
        options.name,
        describe::subnets(&config)
    ));
    Ok(Exit::PowerOff)
}

fn set(networks: &Networks, options: SetOptions) -> Result<Exit, Fault> {
    let name = &options.name;
    let count = networks.config(name)?.rules.len();
    if let Some(none) = options
        .delete_rules
        .iter()
        .find(|number| !(1..=count).contains(*number))
    {
        return Err(usage(format!(
            "network '{name}' has no rule {none}; 'croft network show {name}' numbers them"
        )));
    }
    networks.set(name, |config| {
        config.mtu = options.mtu.unwrap_or(config.mtu);
        config.isolated = options.isolated.unwrap_or(config.isolated);
        config.host_access = options.host_access.unwrap_or(config.host_access);
        config.ingress = options.ingress.unwrap_or(config.ingress);
        config.egress = options.egress.unwrap_or(config.egress);
        let mut number = 0;
        config.rules.retain(|_| {
            number += 1;
            !options.delete_rules.contains(&number)
        });
        config.rules.extend(options.add_rules);
    })?;
    Ok(Exit::PowerOff)
}
