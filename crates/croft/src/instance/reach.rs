//! The addresses at which instances can be reached.
//!
//! ```text
//! list, show ──asks──► a thread for each machine ──► its monitor ──► agent
//!     │      ◄─answers of those in time──┘
//!     ├─ containers: what their network namespaces have
//!     └─ of whom nothing is known: what their networks give them
//! ```
//!
//! Nothing that a guest does, or does not, holds up who asks: what is not
//! known in time is left out.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use croft_agent::client::Client as Agent;
use croft_api::agent::{Interface, PORT};
use croft_api::{Phase, Status};
use croft_host::process::identify;
use croft_host::store::Kind;
use croft_host::{Client, Instances};
use croft_network::{Networks, addresses_of};

use super::list::Known;

/// How long all agents together may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most addresses of an instance.
const MAX: usize = 16;

/// Adds their addresses to those that run.
pub fn add_addresses(instances: &Instances, all: &mut [Known]) {
    let (sender, answers) = mpsc::channel();
    for (index, known) in all.iter_mut().enumerate() {
        if let Some(told) = of_container(known) {
            known.addresses = told;
            continue;
        }
        if !known.status.as_ref().is_some_and(can_be_asked) {
            continue;
        }
        let Ok(name) = known.name.parse() else {
            continue;
        };
        let socket: PathBuf = instances.directories().socket(&name);
        let sender = sender.clone();
        let ask = move || {
            // Who asked may have gone on.
            let _ = sender.send((index, ask(&socket)));
        };
        // Without a thread there is no answer, as if there were no agent.
        let _ = thread::Builder::new()
            .name("addresses".to_owned())
            .spawn(ask);
    }
    // So that the answers end with the last who is asked.
    drop(sender);
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    while let Ok((index, addresses)) = answers.recv_timeout(left()) {
        if let (Some(addresses), Some(known)) = (addresses, all.get_mut(index)) {
            known.addresses = addresses;
        }
    }
    let networks = Networks::open(instances.directories());
    for known in all.iter_mut().filter(|known| known.addresses.is_empty()) {
        if let Some(given) = given(&networks, known) {
            known.addresses = given;
        }
    }
}

/// What the network namespace of a container has, if it is one that runs.
fn of_container(known: &Known) -> Option<Vec<IpAddr>> {
    let status = known.status.as_ref()?;
    let Kind::Container(_) = known.config.as_ref()?.kind else {
        return None;
    };
    let init = status.payload.filter(|_| status.phase.has_payload())?;
    let found = addresses_of(init.pid).ok()?;
    // Another process may have its number by now.
    (identify(init.pid) == Some(init)).then(|| leading(found.into_iter()))
}

/// What its networks give an instance that runs: it may not have told yet, or
/// have nobody who tells.
fn given(networks: &Networks, known: &Known) -> Option<Vec<IpAddr>> {
    let (config, status) = (known.config.as_ref()?, known.status.as_ref()?);
    let name = known.name.parse().ok()?;
    let given = status
        .phase
        .has_payload()
        .then(|| networks.addresses(&name, &config.nics))?;
    Some(leading(given.into_iter()))
}

/// Whether there is an agent that would answer.
fn can_be_asked(status: &Status) -> bool {
    let ready = status.agent.as_ref().is_some_and(|agent| agent.ready);
    ready && status.phase == Phase::Running
}

fn ask(socket: &Path) -> Option<Vec<IpAddr>> {
    let stream = Client::connect(socket).ok()?.guest(PORT, PATIENCE).ok()?;
    let agent = Agent::connect(stream.into()).ok()?;
    agent.addresses().ok().map(|all| addresses(&all))
}

/// The addresses of a guest's interfaces.
fn addresses(interfaces: &[Interface]) -> Vec<IpAddr> {
    let texts = interfaces.iter().flat_map(|interface| &interface.addresses);
    let addresses = texts.filter_map(|text| {
        let address = text
            .split_once('/')
            .map_or(text.as_str(), |(address, _)| address);
        address.parse().ok()
    });
    leading(addresses)
}

/// Those that lead to an instance from elsewhere, and not too many.
fn leading(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    addresses.filter(leads_there).take(MAX).collect()
}

/// An IPv6 address of one link leads nowhere without the link's name.
fn leads_there(address: &IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use croft_api::instance::AgentStatus;

    use super::*;

    #[test]
    fn what_leads_nowhere_or_is_none_is_left_out() {
        let interface = |texts: &[&str]| Interface {
            name: "eth0".to_owned(),
            mac: String::new(),
            addresses: texts.iter().map(|text| (*text).to_owned()).collect(),
        };
        let told = [
            interface(&[
                "192.0.2.7/24",
                "fe80::1/64",
                "127.0.0.1/8",
                "\u{1b}[2J",
                "/",
            ]),
            interface(&["2001:db8::7/64", "::/0", "10.0.0.1"]),
        ];
        let found: Vec<String> = addresses(&told).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.7", "2001:db8::7", "10.0.0.1"]);
        let many = vec![interface(&["192.0.2.7/24"]); 1000];
        assert_eq!(addresses(&many).len(), MAX);
    }

    #[test]
    fn only_who_is_ready_and_runs_is_asked() {
        let mut status = Status::created(0);
        status.phase = Phase::Running;
        assert!(!can_be_asked(&status));
        status.agent = Some(AgentStatus { ready: true });
        assert!(can_be_asked(&status));
        status.phase = Phase::Paused;
        assert!(!can_be_asked(&status));
    }
}
