//! Whether ports of the host's can be published.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use croft_api::net::{Protocol, Publish};
use rustix::io::Errno;
use thiserror::Error;

use super::Host;

/// Why a port cannot be published.
#[derive(Debug, Error)]
pub enum PublishFault {
    /// Twice in one machine.
    #[error("--publish {0} and --publish {1} are the same port of the host; leave one out")]
    Twice(Publish, Publish),
    /// Somebody listens there.
    #[error(
        "--publish {0}: port {port} ({protocol}) of the host is in use already; publish another one, \
         or stop what uses it ('ss -lnp sport = :{port}' tells what)", port = .0.host, protocol = .0.protocol
    )]
    Taken(Publish),
    /// The port is root's.
    #[error(
        "--publish {0}: this user may not listen at port {port}; choose a higher one, or allow it, as \
         root: sysctl net.ipv4.ip_unprivileged_port_start={port}", port = .0.host
    )]
    Forbidden(Publish),
    /// The address is not the host's.
    #[error(
        "--publish {0}: the host does not have this address; 'ip address' lists those that it has"
    )]
    NotHere(Publish),
    /// There is no IPv6.
    #[error("--publish {0}: the host has no IPv6 (no default route); publish an IPv4 address")]
    NoIpv6(Publish),
    /// The host fails.
    #[error("--publish {0}: {1}")]
    Host(Publish, #[source] io::Error),
}

/// Tries each port, so that one that is taken is named before anything of a
/// machine is started. passt may still lose a race, and then says so itself.
pub fn check(publish: &[Publish], host: &Host) -> Result<(), PublishFault> {
    for (index, port) in publish.iter().enumerate() {
        let before = publish.iter().take(index);
        if let Some(other) = before.into_iter().find(|other| port.collides(other)) {
            return Err(PublishFault::Twice(*other, *port));
        }
    }
    publish.iter().try_for_each(|port| check_one(port, host))
}

fn check_one(port: &Publish, host: &Host) -> Result<(), PublishFault> {
    let ipv6 = host.ipv6.is_some();
    let address = match port.address {
        Some(IpAddr::V6(_)) if !ipv6 => return Err(PublishFault::NoIpv6(*port)),
        Some(address) => address,
        // Takes those of version 4 as well, as passt's does.
        None if ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(address, port.host.get());
    let tried = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    tried.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::ADDRINUSE) => PublishFault::Taken(*port),
        Some(Errno::ACCESS) => PublishFault::Forbidden(*port),
        Some(Errno::ADDRNOTAVAIL) => PublishFault::NotHere(*port),
        _ => PublishFault::Host(*port, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(texts: &[&str]) -> String {
        let ports: Vec<Publish> = texts.iter().map(|text| text.parse().unwrap()).collect();
        match check(&ports, &Host::default()) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn taken_ports_are_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        for text in [format!("{port}:22"), format!("127.0.0.1:{port}:22")] {
            let said = error(&[&text]);
            assert!(
                said.contains("in use") && said.contains(&format!("port {port} (tcp)")),
                "{said}"
            );
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(error(&[&format!("127.0.0.1:{port}:53/udp")]).contains("(udp)"));
        drop((tcp, udp));
        assert_eq!(error(&[&format!("127.0.0.1:{port}:53/udp")]), "");
    }

    #[test]
    fn a_port_is_published_once() {
        assert!(error(&["4001:1", "127.0.0.1:4001:2"]).contains("the same port"));
        assert!(error(&["0.0.0.0:4001:1", "127.0.0.1:4001:2"]).contains("the same port"));
        assert_eq!(error(&["127.0.0.2:4001:1", "127.0.0.1:4001:2"]), "");
        assert_eq!(error(&["127.0.0.1:4001:1/udp", "127.0.0.1:4001:1"]), "");
    }

    #[test]
    fn addresses_are_the_hosts() {
        assert!(error(&["192.0.2.211:4002:1"]).contains("does not have this address"));
        assert!(error(&["[::1]:4002:1"]).contains("no IPv6"));
    }
}
