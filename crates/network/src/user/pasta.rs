//! pasta, for a container's network namespace.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_api::net::{Mac, Publish};
use croft_net::{make_tap, taps_are_for_all};
use ipnet::{Ipv4Net, Ipv6Net};
use rustix::process::geteuid;

use super::child::PATIENCE;
use super::{
    GATEWAY, GATEWAY6, GUEST, GUEST6, Host, PREFIX, Passt, Program, RESOLVER, RESOLVER6,
    StartError, command, spawn,
};
use crate::NetworkError;
use crate::link::Netlink;
use crate::managed::{Setup, delete};
use crate::names::Names;
use crate::namespace::Home;

/// How often it is looked at whether it serves; it takes 20 ms.
const LOOK: Duration = Duration::from_millis(1);
/// The first port that is not root's.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// What that is without such a file.
const UNPRIVILEGED_DEFAULT: u16 = 1024;
/// Bits of the network's part of [`GUEST6`].
const PREFIX6: u8 = 64;

/// Where a container's cable ends.
#[derive(Clone, Copy, Debug)]
pub struct ContainerEnd<'a> {
    /// The container's namespaces.
    pub home: Home<'a>,
    /// The NIC's name there: `eth0`.
    pub name: &'a str,
    /// Its address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Metric of its default routes.
    pub metric: u32,
}

impl ContainerEnd<'_> {
    /// Makes the interface and gives it its addresses, unless it is as it
    /// should be already.
    fn prepare(&self, host: &Host) -> Result<(), NetworkError> {
        let prepare = || {
            let failed = |what, source| NetworkError::Link {
                what,
                interface: self.name.to_owned(),
                source,
            };
            let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
            make_tap(self.name)?;
            let link = netlink
                .link(self.name)
                .map_err(NetworkError::Interfaces)?
                .ok_or_else(|| NetworkError::NoInterface(self.name.to_owned()))?;
            if link.mac != Some(self.mac.bytes()) {
                netlink
                    .set_mac(link.index, self.mac.bytes())
                    .map_err(|error| failed("cannot give its MAC address to", error))?;
            }
            if link.mtu != u32::from(self.mtu) {
                netlink
                    .set_mtu(link.index, self.mtu.into())
                    .map_err(|error| failed("cannot set the MTU of", error))?;
            }
            self.setup(host).apply().map(|()| true)
        };
        self.home.inside(prepare).map(drop)
    }

    /// Deletes the interface, if it is there.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let remove = || {
            let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
            delete(&mut netlink, self.name).map(|()| true)
        };
        self.home.inside(remove).map(drop)
    }

    fn setup(&self, host: &Host) -> Setup<'_> {
        let six = host.ipv6.is_some();
        let gateways = [Some(IpAddr::V4(GATEWAY)), six.then_some(GATEWAY6.into())];
        Setup {
            name: self.name,
            ipv4: Ipv4Net::new(GUEST, PREFIX).ok(),
            ipv6: Ipv6Net::new(GUEST6, PREFIX6).ok().filter(|_| six),
            gateways: gateways.into_iter().flatten().collect(),
            metric: self.metric,
            alone: true,
        }
    }

    /// Whether somebody is at the other end of the cable.
    fn is_served(&self) -> Result<bool, NetworkError> {
        self.home.inside(|| {
            let link = Netlink::open().and_then(|mut netlink| netlink.link(self.name));
            let link = link.map_err(NetworkError::Interfaces)?;
            Ok(link.is_some_and(|link| link.carrier))
        })
    }

    /// Whether only root can be at the other end. Otherwise who is there has
    /// rights over the container alone.
    fn needs_root(&self, publish: &[Publish]) -> bool {
        geteuid().is_root()
            && (self.home.user.is_none()
                || !taps_are_for_all()
                || publish.iter().any(is_privileged))
    }
}

fn is_privileged(publish: &Publish) -> bool {
    let first = fs::read_to_string(UNPRIVILEGED);
    let first = first.ok().and_then(|text| text.trim().parse().ok());
    publish.host.get() < first.unwrap_or(UNPRIVILEGED_DEFAULT)
}

impl Passt {
    /// Makes the interface at the container's end and starts pasta for it.
    pub fn spawn_container(
        program: &Path,
        host: &Host,
        publish: &[Publish],
        end: &ContainerEnd<'_>,
    ) -> Result<Passt, StartError> {
        end.prepare(host)?;
        let failed = |error| StartError::Spawn(Program::Pasta, error);
        let root = end.needs_root(publish);
        let namespace = end.home.network.try_clone_to_owned().map_err(failed)?;
        let user = end.home.user.filter(|_| !root);
        let user = user.map(|user| user.try_clone_to_owned()).transpose();
        let mut command = Command::new(program);
        command
            .args(command::pasta(host, publish, end.mtu, end.name, root))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(namespace))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let terminal = spawn::prepare(&mut command, user.map_err(failed)?).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        Passt::new(Program::Pasta, child, Some(terminal))
    }

    /// As [`Passt::spawn_container`], and waits until it serves, or says why
    /// it does not.
    pub fn start_container(
        program: &Path,
        host: &Host,
        publish: &[Publish],
        end: &ContainerEnd<'_>,
    ) -> Result<Passt, StartError> {
        let mut pasta = Passt::spawn_container(program, host, publish, end)?;
        let failed = |error| StartError::Spawn(Program::Pasta, error);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // In this order: one that has ended may have been there before.
            let served = end.is_served()?;
            if pasta.child.try_wait().map_err(failed)?.is_some() {
                return Err(StartError::ended(Program::Pasta, pasta.last_words()));
            }
            if served {
                return Ok(pasta);
            }
            if Instant::now() >= deadline {
                return Err(StartError::Silent(Program::Pasta));
            }
            thread::sleep(LOOK);
        }
    }
}

/// What a container on the user network is told of names.
pub fn names(host: &Host) -> Names {
    let six = host.resolvers.iter().any(IpAddr::is_ipv6);
    // One that only this host can ask is asked for the container too, by IPv4.
    let four = !six || host.resolvers.iter().any(IpAddr::is_ipv4);
    let resolvers = [
        four.then_some(IpAddr::V4(RESOLVER)),
        six.then_some(IpAddr::V6(RESOLVER6)),
    ];
    let addresses = [
        Some(IpAddr::V4(GUEST)),
        host.ipv6.is_some().then_some(IpAddr::V6(GUEST6)),
    ];
    Names {
        resolvers: resolvers.into_iter().flatten().collect(),
        domain: None,
        addresses: addresses.into_iter().flatten().collect(),
    }
}
