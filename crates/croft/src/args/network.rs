//! `croft network`.

use clap::Subcommand;
use clap::builder::StyledStr;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use croft_host::Directories;
use croft_network::{Action, Mode, NetworkName, Networks, Rule, Subnet};
use ipnet::{Ipv4Net, Ipv6Net};

use super::output::OutputFormat;

/// What follows the help of `croft network create`.
pub const CREATE_HELP: &str = "\
Modes:
  nat      the world sees this host's addresses (default)
  routed   the world has routes to the network by this host
  closed   instances reach each other, and this host for names
  uplink   part of the network that --uplink is on, which gives the addresses

Rules, of which the first that fits decides:
  ingress|egress allow|drop|reject [tcp|udp|icmp [PORTS]] [from|to SUBNET] [instance NAME] [log]

Examples:
  croft network create lab
  croft network create web --ipv4 10.20.30.0/24 --ipv6 fd12:3456:789a::/64 --isolated
  croft network create office --mode uplink --uplink eth1 --vlan 20
  croft network create db --rule 'ingress allow tcp 5432 from 10.20.30.0/24' --ingress reject";

/// What follows the help of `croft network set`.
pub const SET_HELP: &str = "\
Examples:
  croft network set web --add-rule 'egress drop to 192.168.0.0/16 log'
  croft network set web --delete-rule 1 --isolated true";

/// `croft network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network and start it
    #[command(after_help = CREATE_HELP)]
    Create(Box<CreateOptions>),
    /// List the networks
    #[command(visible_alias = "ls")]
    List(ListOptions),
    /// Tell all that is known of a network
    Show(ShowOptions),
    /// Change a network, at once
    #[command(after_help = SET_HELP)]
    Set(Box<SetOptions>),
    /// Delete networks that no instance is on
    #[command(visible_alias = "rm")]
    Delete(NamesOptions),
    /// Start networks: make what is missing of them
    Start(NamesOptions),
    /// Stop networks that no instance is on: their bridges, rules and servers go
    Stop(NamesOptions),
    /// Mend all networks: bridges, rules and servers that are missing or too many
    Reconcile,
}

/// `croft network create`.
#[derive(Debug, clap::Args)]
pub struct CreateOptions {
    /// The network's name: 1 to 12 of a-z, 0-9 and '-'
    pub name: NetworkName,

    /// How it leads to the world: nat, routed, closed or uplink
    #[arg(long, default_value_t = Mode::Nat)]
    pub mode: Mode,

    /// Its subnet, auto (a free one of 10.0.0.0/8) or none
    #[arg(long, value_name = "SUBNET", default_value = "auto", value_parser = parse_subnet::<Ipv4Net>)]
    pub ipv4: Subnet<Ipv4Net>,

    /// Its subnet of version 6, auto (a random private one) or none
    #[arg(long, value_name = "SUBNET", default_value = "auto", value_parser = parse_subnet::<Ipv6Net>)]
    pub ipv6: Subnet<Ipv6Net>,

    /// Its MTU in bytes
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,

    /// The interface of this host that is part of it
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: Option<String>,

    /// The VLAN of the uplink that it is: 1 to 4094
    #[arg(long, value_name = "ID")]
    pub vlan: Option<u16>,

    /// The domain that its instances' names end in [default: croft]
    #[arg(long)]
    pub domain: Option<String>,

    /// Instances do not reach each other
    #[arg(long)]
    pub isolated: bool,

    /// Instances reach all that this host serves, not only names and addresses
    #[arg(long)]
    pub host_access: bool,

    /// What becomes of packets from outside without a rule: allow, drop or reject
    #[arg(long, value_name = "ACTION", default_value_t = Action::Drop)]
    pub ingress: Action,

    /// What becomes of packets to the outside without a rule: allow, drop or reject
    #[arg(long, value_name = "ACTION", default_value_t = Action::Allow)]
    pub egress: Action,

    /// A rule of its firewall; can be given several times
    #[arg(long = "rule", value_name = "RULE")]
    pub rules: Vec<Rule>,
}

/// `croft network list`.
#[derive(Debug, clap::Args)]
pub struct ListOptions {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft network show`.
#[derive(Debug, clap::Args)]
pub struct ShowOptions {
    /// Its name
    #[arg(add = ArgValueCandidates::new(names))]
    pub name: NetworkName,

    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// `croft network set`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct SetOptions {
    /// Its name
    #[arg(add = ArgValueCandidates::new(names))]
    pub name: NetworkName,

    /// Its MTU in bytes; guests learn it when they ask for their address again
    #[arg(long, value_name = "BYTES", group = "change")]
    pub mtu: Option<u16>,

    /// Whether instances do not reach each other
    #[arg(long, value_name = "BOOL", group = "change")]
    pub isolated: Option<bool>,

    /// Whether instances reach all that this host serves
    #[arg(long, value_name = "BOOL", group = "change")]
    pub host_access: Option<bool>,

    /// What becomes of packets from outside without a rule: allow, drop or reject
    #[arg(long, value_name = "ACTION", group = "change")]
    pub ingress: Option<Action>,

    /// What becomes of packets to the outside without a rule: allow, drop or reject
    #[arg(long, value_name = "ACTION", group = "change")]
    pub egress: Option<Action>,

    /// Take away the rule of this number, from 1; can be given several times, and comes first
    #[arg(long = "delete-rule", value_name = "N", group = "change")]
    pub delete_rules: Vec<usize>,

    /// A further rule, after those there are; can be given several times
    #[arg(long = "add-rule", value_name = "RULE", group = "change")]
    pub add_rules: Vec<Rule>,
}

/// Some networks.
#[derive(Debug, clap::Args)]
pub struct NamesOptions {
    /// Their names
    #[arg(required = true, add = ArgValueCandidates::new(names))]
    pub names: Vec<NetworkName>,
}

fn parse_subnet<T: std::str::FromStr>(text: &str) -> Result<Subnet<T>, String> {
    match text {
        "auto" => Ok(Subnet::Auto),
        "none" => Ok(Subnet::None),
        text => text.parse().map(Subnet::Is).map_err(|_| {
            "give a subnet as in 10.20.30.0/24 or fd12:3456:789a::/64, auto or none".to_owned()
        }),
    }
}

/// The networks there are, for a shell's completion.
pub fn names() -> Vec<CompletionCandidate> {
    let Ok(directories) = Directories::find() else {
        return Vec::new();
    };
    let networks = Networks::open(&directories);
    let names = networks.names().unwrap_or_default().into_iter();
    names
        .map(|name| {
            let help = networks.config(&name).ok().and_then(|config| config.ipv4);
            let help = help.map(|net| StyledStr::from(net.to_string()));
            CompletionCandidate::new(name.as_str()).help(help)
        })
        .collect()
}
