//! dnsmasq: addresses (DHCP, router advertisements) and names for a network.
//!
//! ```text
//! <data>/networks/NAME/dnsmasq/dnsmasq.conf   how it is started
//!                              hosts          who gets which address
//!                              names          which names have which address
//!                              leases         who has had one
//!                              pid            its number, once it serves
//! ```
//!
//! One process for each network; it outlives whoever starts it. It is found
//! again by the configuration that it was started with, which is in its
//! arguments, so that nothing has to be written down between its start and a
//! crash. Two files change while it runs; SIGHUP has it read them anew. One that
//! was killed with its starter half way, and does not serve yet, would not hear
//! that: it is ended, and another is started.

mod process;
mod text;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use croft_api::instance::ProcessId;

use super::address::{gateway4, gateway6};
use super::config::NetworkConfig;
use super::error::{NetworkError, file};
use super::name::NetworkName;
use super::store::{Lease, Store};

const CONF: &str = "dnsmasq.conf";
const HOSTS: &str = "hosts";
const NAMES: &str = "names";
const LEASES: &str = "leases";
const PID: &str = "pid";
/// Users that dnsmasq can run as, the first that there is.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];

/// Sees to it that a network's dnsmasq runs with what is wanted now. `fresh`:
/// its bridge has just been made, and a process that is older listens to
/// nothing.
pub fn ensure(
    store: &Store,
    name: &NetworkName,
    config: &NetworkConfig,
    leases: &[Lease],
    fresh: bool,
) -> Result<(), NetworkError> {
    let directory = store.dnsmasq(name);
    fs::create_dir_all(&directory).map_err(file(&directory))?;
    let user = user(&directory)?;
    let conf = directory.join(CONF);
    let wanted = text::configuration(name, config, &directory, user);
    let mut changed = write(&directory, HOSTS, &text::hosts(leases))?;
    changed |= write(&directory, NAMES, &text::names(config, leases))?;
    let other = write(&directory, CONF, &wanted)?;
    let running = process::find(&conf);
    let serving = match running.as_slice() {
        [process] => (process.here && serves(&directory, process.id)).then_some(process.id),
        _ => None,
    };
    if let Some(id) = serving.filter(|_| !fresh && !other) {
        if changed {
            process::reload(id);
        }
        return Ok(());
    }
    process::end_all(|| {
        process::find(&conf)
            .into_iter()
            .map(|process| process.id)
            .collect()
    });
    let pid = directory.join(PID);
    match fs::remove_file(&pid) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(pid)(error)),
        _ => {}
    }
    for gateway in gateways(config) {
        check_port(name, gateway)?;
    }
    process::start(&conf)
}

/// Whether a process has come so far as to serve.
fn serves(directory: &Path, id: ProcessId) -> bool {
    fs::read_to_string(directory.join(PID)).is_ok_and(|text| text.trim() == id.pid.to_string())
}

/// Ends those of networks that are no more: all below the store's directory
/// for which `wanted` says no.
pub fn stop_others(store: &Store, wanted: impl Fn(&NetworkName) -> bool) {
    process::end_all(|| {
        process::all_below(&store.root())
            .into_iter()
            .filter(|(name, _)| !name.as_ref().is_some_and(&wanted))
            .map(|(_, id)| id)
            .collect()
    });
}

/// The process that a network has, for people.
pub fn pid(store: &Store, name: &NetworkName) -> Option<u32> {
    let found = process::find(&store.dnsmasq(name).join(CONF));
    found.first().map(|process| process.id.pid)
}

fn gateways(config: &NetworkConfig) -> Vec<IpAddr> {
    let four = config.ipv4.map(|net| IpAddr::V4(gateway4(net)));
    let six = config.ipv6.map(|net| IpAddr::V6(gateway6(net)));
    four.into_iter().chain(six).collect()
}

/// Whether names can be served at the address.
fn check_port(network: &NetworkName, address: IpAddr) -> Result<(), NetworkError> {
    // Number of the domain service (RFC 6335's registry).
    let at = SocketAddr::new(address, 53);
    let taken =
        |bound: io::Result<()>| bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    if taken(UdpSocket::bind(at).map(drop)) || taken(TcpListener::bind(at).map(drop)) {
        return Err(NetworkError::PortTaken {
            network: network.clone(),
            address,
        });
    }
    Ok(())
}

/// Who dnsmasq runs as: a user without rights, if that user can reach what it
/// reads anew while it runs; else root. It opens the file of its leases while
/// it is root, and keeps it open, so that no file has to be that user's.
fn user(directory: &Path) -> Result<&'static str, NetworkError> {
    let rights = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory, rights).map_err(file(directory))?;
    let passable = |path: &Path| fs::metadata(path).is_ok_and(|about| about.mode() & 0o001 != 0);
    let reachable = directory.ancestors().all(passable);
    Ok(unprivileged().filter(|_| reachable).unwrap_or("root"))
}

/// A user without rights, by `/etc/passwd`, which has those of packages.
fn unprivileged() -> Option<&'static str> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    USERS.into_iter().find(|wanted| {
        let named = |line: &&str| line.split(':').next() == Some(*wanted);
        passwd.lines().any(|line| named(&line))
    })
}

/// Writes a file that dnsmasq reads; whether it was another before.
fn write(directory: &Path, name: &str, text: &str) -> Result<bool, NetworkError> {
    let path = directory.join(name);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    // Whole or not at all: dnsmasq may read it in this moment.
    let new = directory.join(format!(".{name}.new"));
    fs::write(&new, text)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(file(&path))?;
    Ok(true)
}
