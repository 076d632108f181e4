//! What the kernel is told under `/proc/sys/net`, for the network namespace of
//! this process.
//!
//! Bridges have settings of their own, which go with them. Forwarding is the
//! whole host's: it is turned on with the first network and, if it was off
//! before, off again with the last one. Until then our rules keep the host
//! from forwarding what has nothing to do with our networks
//! ([`super::rules`]).
//!
//! A host that forwards IPv6 ignores router advertisements on interfaces with
//! `accept_ra` 1, and loses its own default route. 2 says "although we
//! forward" (ip-sysctl.rst); those with 1 get it first, and 1 again at the end.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use croft_host::files::{read_json, write_json};
use serde::{Deserialize, Serialize};

use super::error::{NetworkError, file};

const ROOT: &str = "/proc/sys/net";
/// What was changed of the host's own.
const CHANGED: &str = "networks.json";
const FORWARD_4: &str = "ipv4/ip_forward";
const FORWARD_6: &str = "ipv6/conf/all/forwarding";

/// What was changed of the host's own, in this run of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Which run it was.
    boot: String,
    /// IPv4 is forwarded because of us.
    pub ipv4: bool,
    /// IPv6 is.
    pub ipv6: bool,
    /// Interfaces whose `accept_ra` was 1.
    accept_ra: Vec<String>,
}

/// Reads a setting.
fn get(path: &str) -> Result<String, NetworkError> {
    let path = Path::new(ROOT).join(path);
    let text = fs::read_to_string(&path).map_err(file(path))?;
    Ok(text.trim().to_owned())
}

/// Writes a setting, if it has another value.
fn set(path: &str, value: &str) -> Result<(), NetworkError> {
    if get(path)? == value {
        return Ok(());
    }
    let path = Path::new(ROOT).join(path);
    fs::write(&path, value).map_err(file(path))
}

fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").exists()
}

/// Settings of a managed bridge, before it goes up. `published`: connections
/// from this host's loopback addresses lead to it.
pub fn bridge(name: &str, published: bool, ipv6: bool) -> Result<(), NetworkError> {
    let published = if published { "1" } else { "0" };
    for (setting, value) in [
        // A packet from a bridge comes from its subnet.
        ("rp_filter", "1"),
        ("accept_redirects", "0"),
        ("send_redirects", "0"),
        ("route_localnet", published),
    ] {
        set(&format!("ipv4/conf/{name}/{setting}"), value)?;
    }
    if !ipv6 {
        return port(name);
    }
    if has_ipv6() {
        for (setting, value) in [
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("accept_redirects", "0"),
            ("accept_dad", "0"),
            // It has the addresses that it is given (none of its own:
            // IN6_ADDR_GEN_MODE_NONE, if_link.h).
            ("addr_gen_mode", "1"),
            ("disable_ipv6", "0"),
        ] {
            set(&format!("ipv6/conf/{name}/{setting}"), value)?;
        }
    }
    Ok(())
}

/// Shows no frames on bridges but those of bridges that ask for it to the
/// rules for IP. For who has just loaded what can: by default it shows all.
pub fn filter_no_other_bridges() -> Result<(), NetworkError> {
    for kind in ["arptables", "iptables", "ip6tables"] {
        set(&format!("bridge/bridge-nf-call-{kind}"), "0")?;
    }
    Ok(())
}

/// Settings of an interface that only carries frames: the host has no address
/// on it.
pub fn port(name: &str) -> Result<(), NetworkError> {
    if has_ipv6() {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    Ok(())
}

/// Settings of a container's NIC that is given its addresses, for the network
/// namespace of this thread: it asks nobody for others.
pub fn container(name: &str, ipv6: bool) -> Result<(), NetworkError> {
    if !ipv6 {
        return port(name);
    }
    for (setting, value) in [
        ("accept_ra", "0"),
        ("autoconf", "0"),
        // Nobody else has them: the filters see to that.
        ("accept_dad", "0"),
        // That of the link follows from the MAC address (IN6_ADDR_GEN_MODE_EUI64,
        // if_link.h), as the filters expect.
        ("addr_gen_mode", "0"),
        ("disable_ipv6", "0"),
    ] {
        set(&format!("ipv6/conf/{name}/{setting}"), value)?;
    }
    Ok(())
}

/// Whether frames on bridges can pass the rules for IP.
pub fn can_filter_bridged() -> bool {
    Path::new(ROOT)
        .join("bridge/bridge-nf-call-iptables")
        .exists()
}

/// Whether this host has IPv6.
pub fn ipv6_is_there() -> bool {
    has_ipv6()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What was changed so far.
pub fn changed(runtime: &Path) -> Changed {
    let known: Changed = read_json(&runtime.join(CHANGED)).unwrap_or_default();
    if known.boot == boot() {
        return known;
    }
    Changed {
        boot: boot(),
        ..Changed::default()
    }
}

fn remember(runtime: &Path, changed: &Changed) -> Result<(), NetworkError> {
    let failed = |source: io::Error| file(runtime.join(CHANGED))(source);
    // As `Directories::create` makes it: sockets of instances will be in it.
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(runtime).map_err(failed)?;
    write_json(runtime, CHANGED, changed).map_err(|source| file(runtime.join(CHANGED))(source))
}

/// Writes down what [`forward`] will change. The rules can follow from that
/// before the host forwards anything.
pub fn prepare(runtime: &Path, ipv4: bool, ipv6: bool) -> Result<Changed, NetworkError> {
    let before = changed(runtime);
    let mut changed = before.clone();
    if ipv4 && get(FORWARD_4)? == "0" {
        changed.ipv4 = true;
    }
    if ipv6 && has_ipv6() && get(FORWARD_6)? == "0" {
        changed.ipv6 = true;
        changed.accept_ra = listening()?;
    }
    // First written, then done: after a crash in between what is off is
    // turned off.
    if changed != before {
        remember(runtime, &changed)?;
    }
    Ok(changed)
}

/// Lets the host forward.
pub fn forward(changed: &Changed, ipv4: bool, ipv6: bool) -> Result<(), NetworkError> {
    if ipv4 {
        set(FORWARD_4, "1")?;
    }
    if ipv6 && has_ipv6() && get(FORWARD_6)? == "0" {
        for interface in &changed.accept_ra {
            // It may be gone by now.
            if Path::new(ROOT).join(accept_ra(interface)).exists() {
                set(&accept_ra(interface), "2")?;
            }
        }
        set(FORWARD_6, "1")?;
    }
    Ok(())
}

/// Makes the host as it was.
pub fn stop_forwarding(runtime: &Path) -> Result<(), NetworkError> {
    let changed = changed(runtime);
    if changed.ipv4 {
        set(FORWARD_4, "0")?;
    }
    if changed.ipv6 {
        set(FORWARD_6, "0")?;
        for interface in &changed.accept_ra {
            // One that somebody has set since stays, and one that is gone.
            if get(&accept_ra(interface)).is_ok_and(|value| value == "2") {
                set(&accept_ra(interface), "1")?;
            }
        }
    }
    let path: PathBuf = runtime.join(CHANGED);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
        _ => Ok(()),
    }
}

fn accept_ra(interface: &str) -> String {
    format!("ipv6/conf/{interface}/accept_ra")
}

/// The interfaces that listen to routers until the host forwards: those there
/// are, and those to come.
fn listening() -> Result<Vec<String>, NetworkError> {
    let path = Path::new(ROOT).join("ipv6/conf");
    let entries = fs::read_dir(&path).map_err(file(path))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "all")
        .filter(|name| get(&accept_ra(name)).is_ok_and(|value| value == "1"))
        .collect();
    names.sort();
    Ok(names)
}
