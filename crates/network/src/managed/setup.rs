//! What an interface in a container is given.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::{NetworkError, link as failed};
use super::sysctl;
use crate::link::Netlink;

/// An interface that is there, as it should be.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address in its subnet.
    pub ipv4: Option<Ipv4Net>,
    /// The same.
    pub ipv6: Option<Ipv6Net>,
    /// Who leads to the world.
    pub gateways: Vec<IpAddr>,
    /// Metric of the routes by them.
    pub metric: u32,
    /// It has no other addresses than these, and asks nobody for any.
    pub alone: bool,
}

impl Setup<'_> {
    /// Makes it so, in the network namespace of this thread. What is so
    /// already stays.
    pub fn apply(&self) -> Result<(), NetworkError> {
        let name = self.name;
        let mut netlink = Netlink::open().map_err(NetworkError::Interfaces)?;
        let link = netlink
            .link(name)
            .map_err(NetworkError::Interfaces)?
            .ok_or_else(|| NetworkError::NoInterface(name.to_owned()))?;
        let index = link.index;
        if self.alone {
            sysctl::container(name, self.ipv6.is_some())?;
        }
        let nets = [self.ipv4.map(IpNet::V4), self.ipv6.map(IpNet::V6)];
        for net in nets.into_iter().flatten() {
            netlink
                .add_address(index, net)
                .map_err(failed("cannot give an address to", name))?;
        }
        netlink
            .set_up(index, true)
            .map_err(failed("cannot bring up", name))?;
        for gateway in &self.gateways {
            netlink
                .add_default_route(index, *gateway, self.metric)
                .map_err(failed("cannot lead to the world by", name))?;
        }
        Ok(())
    }
}
