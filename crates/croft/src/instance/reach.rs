//! The addresses at which guests can be reached, as their agents tell them.
//!
//! ```text
//! list, show ──asks──► a thread for each instance ──► its monitor ──► agent
//!            ◄─answers of those in time──┘
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
use croft_host::{Client, Instances};

use super::list::Known;

/// How long all agents together may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most addresses of a guest.
const MAX: usize = 16;

/// Adds their addresses to those whose guests are ready.
pub fn add_addresses(instances: &Instances, all: &mut [Known]) {
    let (sender, answers) = mpsc::channel();
    for (index, known) in all.iter().enumerate() {
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
        let status = all.get_mut(index).and_then(|known| known.status.as_mut());
        if let (Some(addresses), Some(agent)) =
            (addresses, status.and_then(|status| status.agent.as_mut()))
        {
            agent.addresses = addresses;
        }
    }
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

/// Those that lead to the guest from elsewhere.
fn addresses(interfaces: &[Interface]) -> Vec<IpAddr> {
    let texts = interfaces.iter().flat_map(|interface| &interface.addresses);
    let addresses = texts.filter_map(|text| {
        let address = text
            .split_once('/')
            .map_or(text.as_str(), |(address, _)| address);
        address.parse().ok()
    });
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
        status.agent = Some(AgentStatus {
            ready: true,
            addresses: Vec::new(),
        });
        assert!(can_be_asked(&status));
        status.phase = Phase::Paused;
        assert!(!can_be_asked(&status));
    }
}
