//! dnsmasq: addresses (DHCP, router advertisements) and names for a network.
//!
//! ```text
//! <data>/networks/NAME/dnsmasq/dnsmasq.conf   how it is started
//!                              hosts          who gets which address
//!                              names          which names have which address
//!                              leases         who has had one
//! ```
//!
//! One process for each network; it outlives whoever starts it. It is found
//! again by the configuration that it was started with, which is in its
//! arguments, so that nothing has to be written down between its start and a
//! crash. Two files change while it runs; SIGHUP has it read them anew.

mod process;
mod text;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Gid, Uid, chown};

use super::address::{gateway4, gateway6};
use super::config::NetworkConfig;
use super::error::{NetworkError, file};
use super::name::NetworkName;
use super::store::{Lease, Store};

const CONF: &str = "dnsmasq.conf";
const HOSTS: &str = "hosts";
const NAMES: &str = "names";
const LEASES: &str = "leases";
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
    let wanted = text::configuration(name, config, &directory, user.name);
    let mut changed = write(&directory, HOSTS, &text::hosts(leases))?;
    changed |= write(&directory, NAMES, &text::names(config, leases))?;
    let other = write(&directory, CONF, &wanted)?;
    let mut running = process::find(&conf);
    if fresh || other || running.len() > 1 || running.iter().any(|process| !process.here) {
        for process in running.drain(..) {
            process::end(process.id);
        }
    }
    match running.first() {
        Some(process) if changed => {
            process::reload(process.id);
            Ok(())
        }
        Some(_) => Ok(()),
        None => {
            for gateway in gateways(config) {
                check_port(name, gateway)?;
            }
            process::start(&conf)
        }
    }
}

/// Ends a network's dnsmasq, if there is one.
pub fn stop(store: &Store, name: &NetworkName) {
    for process in process::find(&store.dnsmasq(name).join(CONF)) {
        process::end(process.id);
    }
}

/// Ends those of networks that are no more: all below the store's directory
/// for which `wanted` says no.
pub fn stop_others(store: &Store, wanted: impl Fn(&NetworkName) -> bool) {
    for (name, id) in process::all_below(&store.root()) {
        if !name.is_some_and(|name| wanted(&name)) {
            process::end(id);
        }
    }
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
    let taken = |bound: io::Result<()>| {
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    if taken(UdpSocket::bind(at).map(drop)) || taken(TcpListener::bind(at).map(drop)) {
        return Err(NetworkError::PortTaken {
            network: network.clone(),
            address,
        });
    }
    Ok(())
}

/// Who dnsmasq runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    name: &'static str,
}

/// A user without rights, if all directories can be gone through by others;
/// else root. Gives that user the files that dnsmasq writes.
fn user(directory: &Path) -> Result<User, NetworkError> {
    const ROOT: User = User { name: "root" };
    let passable = |path: &Path| {
        fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
    };
    let Some((name, uid, gid)) = unprivileged() else {
        return Ok(ROOT);
    };
    let mut above = directory.ancestors().skip(1);
    if !above.all(passable) {
        return Ok(ROOT);
    }
    let rights = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory, rights).map_err(file(directory))?;
    let leases = directory.join(LEASES);
    if !leases.exists() {
        fs::write(&leases, "").map_err(file(&leases))?;
    }
    for path in [directory, &leases] {
        let about = fs::metadata(path).map_err(file(path))?;
        if (about.uid(), about.gid()) != (uid, gid) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chown(path, Some(uid), Some(gid))
                .map_err(io::Error::from)
                .map_err(file(path))?;
        }
    }
    Ok(User { name })
}

/// A user without rights, by `/etc/passwd`, which has those of packages.
fn unprivileged() -> Option<(&'static str, u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    USERS.into_iter().find_map(|wanted| {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(wanted))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some((wanted, uid, gid))
    })
}

/// Writes a file that dnsmasq reads; whether it was another before.
fn write(directory: &Path, name: &str, text: &str) -> Result<bool, NetworkError> {
    let path = directory.join(name);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    // Whole or not at all: dnsmasq may read it in this moment. No link that
    // dnsmasq's user put there is followed.
    let new = directory.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(new)(error)),
        _ => {}
    }
    fs::File::create_new(&new)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(file(&path))?;
    Ok(true)
}
