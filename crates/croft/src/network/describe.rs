//! `croft network list` and `show`.

use std::fmt::Write;

use croft_network::{Network, NetworkConfig, NetworkName, Networks, Place};
use serde::Serialize;

use super::Fault;
use crate::args::output::OutputFormat;
use crate::describe::print_list;
use crate::exit::Exit;
use crate::table::columns;
use crate::{describe, print};

/// Prints all networks. Those that cannot be read are named on standard error.
pub fn list(networks: &Networks, output: OutputFormat) -> Result<Exit, Fault> {
    let shown = networks.names()?.into_iter().map(|name| {
        let shown = networks.show(&name);
        shown.map_err(|error| format!("network '{name}': {error}"))
    });
    let (all, exit) = describe::readable(shown);
    let text = match output {
        OutputFormat::Json => json(&all)?,
        OutputFormat::Table => table(&all),
    };
    Ok(print_list(&text, exit))
}

/// Prints a network.
pub fn show(networks: &Networks, name: &NetworkName, output: OutputFormat) -> Result<Exit, Fault> {
    let network = networks.show(name)?;
    let text = match output {
        OutputFormat::Json => json(&network)?,
        OutputFormat::Table => page(&network),
    };
    Ok(print(text.as_bytes()))
}

/// The subnets, each after a space.
pub fn subnets(config: &NetworkConfig) -> String {
    let four = config.ipv4.map(|net| format!(" {net}"));
    let six = config.ipv6.map(|net| format!(" {net}"));
    four.into_iter().chain(six).collect()
}

fn json<T: Serialize + ?Sized>(what: &T) -> Result<String, Fault> {
    describe::json(what).map_err(|message| Fault {
        exit: Exit::Failed,
        message,
    })
}

fn state(network: &Network) -> &'static str {
    let served = network.dnsmasq.is_some() || network.config.uplink.is_some();
    match (network.config.started, network.up, served) {
        (false, ..) => "stopped",
        (true, true, true) => "started",
        // 'croft network reconcile' mends it.
        _ => "broken",
    }
}

fn table(networks: &[Network]) -> String {
    let mut rows =
        vec![["NAME", "STATE", "MODE", "IPV4", "IPV6", "BRIDGE", "NICS"].map(str::to_owned)];
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for network in networks {
        let config = &network.config;
        rows.push([
            network.name.to_string(),
            state(network).to_owned(),
            config.mode.to_string(),
            or(config.ipv4.map(|net| net.to_string())),
            or(config.ipv6.map(|net| net.to_string())),
            network.bridge.clone(),
            network.attached.len().to_string(),
        ]);
    }
    columns(rows.into_iter())
}

fn page(network: &Network) -> String {
    let config = &network.config;
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let mut rows = vec![
        ("name", network.name.to_string()),
        ("state", state(network).to_owned()),
        ("mode", config.mode.to_string()),
        ("bridge", network.bridge.clone()),
    ];
    rows.extend(config.ipv4.map(|net| ("ipv4", net.to_string())));
    rows.extend(config.ipv6.map(|net| ("ipv6", net.to_string())));
    if let Some(uplink) = &config.uplink {
        let vlan = config.vlan.map(|vlan| format!(", VLAN {vlan}"));
        rows.push(("uplink", uplink.clone() + &vlan.unwrap_or_default()));
    } else {
        rows.push(("domain", config.domain.clone()));
    }
    rows.extend([
        ("mtu", config.mtu.to_string()),
        ("isolated", yes(config.isolated)),
        ("host access", yes(config.host_access)),
        ("ingress", config.ingress.to_string()),
        ("egress", config.egress.to_string()),
    ]);
    rows.extend(network.dnsmasq.map(|pid| ("dnsmasq", pid.to_string())));
    for (number, rule) in config.rules.iter().enumerate() {
        let title = if number == 0 { "rules" } else { "" };
        rows.push((title, format!("{}  {rule}", number.saturating_add(1))));
    }
    for (number, nic) in network.attached.iter().enumerate() {
        let title = if number == 0 { "nics" } else { "" };
        let mut text = format!("{}  {}  {}", nic.title(), nic.mac, nic.interface);
        if let Place::Network {
            ipv4,
            ipv6,
            publish,
            ..
        } = &nic.place
        {
            let addresses = [ipv4.map(|a| a.to_string()), ipv6.map(|a| a.to_string())];
            for address in addresses.into_iter().flatten() {
                let _ = write!(text, "  {address}");
            }
            for port in publish {
                let _ = write!(text, "  {port}");
            }
        }
        rows.push((title, text));
    }
    rows.into_iter().fold(String::new(), |text, (what, value)| {
        let what = if what.is_empty() {
            String::new()
        } else {
            format!("{what}:")
        };
        format!("{text}{what:<14}{value}\n")
    })
}
