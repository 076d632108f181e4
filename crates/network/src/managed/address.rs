//! Which subnets and addresses are given.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// The link-local address of the host on every managed bridge: what instances
/// have as their router.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 1);
/// Prefixes that a subnet may have: room for two instances at least, and no
/// more than a bridge can bear.
const V4_PREFIXES: std::ops::RangeInclusive<u8> = 16..=29;
/// The prefix that a subnet of version 6 has: what router advertisements want
/// (RFC 4862, 5.5.3).
const V6_PREFIX: u8 = 64;
/// Most addresses that are tried for an instance in a subnet of version 6.
const V6_HOSTS: u16 = u16::MAX;

/// Why a subnet cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Not a subnet that instances could be in.
    #[error(
        "{0} is no subnet for a network; give one of version 4 of /16 to /29, as in 10.20.30.0/24, that is private or yours"
    )]
    Subnet4(Ipv4Net),
    /// The same, of version 6.
    #[error("{0} is no subnet for a network; give a /64 of version 6, as in fd12:3456:789a::/64")]
    Subnet6(Ipv6Net),
    /// All are in use.
    #[error("every subnet of 10.0.0.0/8 is in use by a route of this host; give one with --ipv4")]
    NoSubnet4,
    /// The same, of version 6.
    #[error("no random subnet of version 6 is free; give one with --ipv6")]
    NoSubnet6,
    /// Something else has part of it.
    #[error("{subnet} overlaps {other}, which {holder} has; choose another subnet")]
    Overlap {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// Who has that.
        holder: String,
    },
    /// All of a network are given.
    #[error("{0} has no free address; delete instances, or make another network")]
    NoAddress(IpNet),
    /// Not one for an instance.
    #[error("{address} is no address for an instance in {subnet}")]
    NotInside {
        /// What was asked for.
        address: std::net::IpAddr,
        /// Where it would have to be.
        subnet: IpNet,
    },
}

/// Checks a subnet that somebody chose.
pub fn check4(net: Ipv4Net) -> Result<Ipv4Net, AddressError> {
    let first = net.network();
    let odd = first.is_loopback()
        || first.is_multicast()
        || first.is_link_local()
        || first.octets().first() == Some(&0)
        || first.octets().first().is_some_and(|first| *first >= 240);
    if odd || !V4_PREFIXES.contains(&net.prefix_len()) || net.addr() != first {
        return Err(AddressError::Subnet4(net));
    }
    Ok(net)
}

/// Checks a subnet that somebody chose.
pub fn check6(net: Ipv6Net) -> Result<Ipv6Net, AddressError> {
    let first = net.network();
    let odd = first.is_multicast()
        || first.is_unicast_link_local()
        || first.segments().first() == Some(&0)
        || net.addr() != first;
    if odd || net.prefix_len() != V6_PREFIX {
        return Err(AddressError::Subnet6(net));
    }
    Ok(net)
}

/// Whether two subnets have an address in common.
pub fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Chooses a /24 of 10.0.0.0/8 that overlaps none of those `taken`, beginning
/// somewhere that depends on `seed`.
pub fn choose4(taken: &[IpNet], seed: u32) -> Result<Ipv4Net, AddressError> {
    // The first and last of them are what people take first themselves.
    const SUBNETS: u32 = 1 << 16;
    (0..SUBNETS)
        .map(|step| {
            let [_, _, high, low] = (seed.wrapping_add(step) % SUBNETS).to_be_bytes();
            Ipv4Net::new_assert(Ipv4Addr::new(10, high, low, 0), 24)
        })
        .filter(|net| net.network().octets() != [10, 0, 0, 0])
        .find(|net| !taken.iter().any(|taken| overlap(*taken, IpNet::V4(*net))))
        .ok_or(AddressError::NoSubnet4)
}

/// Makes a unique local /64 of random bits (RFC 4193, 3.2), if it overlaps
/// none of those `taken`.
pub fn choose6(taken: &[IpNet], random: [u8; 5]) -> Result<Ipv6Net, AddressError> {
    let [a, b, c, d, e] = random;
    let address = Ipv6Addr::new(
        0xFD00 | u16::from(a),
        u16::from_be_bytes([b, c]),
        u16::from_be_bytes([d, e]),
        0,
        0,
        0,
        0,
        0,
    );
    let net = Ipv6Net::new_assert(address, V6_PREFIX);
    if taken.iter().any(|taken| overlap(*taken, IpNet::V6(net))) {
        return Err(AddressError::NoSubnet6);
    }
    Ok(net)
}

/// The host's address in a subnet: the first one.
pub fn gateway4(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1))
}

/// The same, of version 6.
pub fn gateway6(net: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(net.network().to_bits().saturating_add(1))
}

/// Whether an instance can have an address: one in the subnet that is neither
/// the host's nor everybody's.
pub fn fits4(net: Ipv4Net, address: Ipv4Addr) -> Result<(), AddressError> {
    let fits = net.contains(&address)
        && address != net.network()
        && address != net.broadcast()
        && address != gateway4(net);
    fits.then_some(()).ok_or(AddressError::NotInside {
        address: address.into(),
        subnet: net.into(),
    })
}

/// The same, of version 6.
pub fn fits6(net: Ipv6Net, address: Ipv6Addr) -> Result<(), AddressError> {
    let fits = net.contains(&address) && address != net.network() && address != gateway6(net);
    fits.then_some(()).ok_or(AddressError::NotInside {
        address: address.into(),
        subnet: net.into(),
    })
}

/// The lowest address that an instance can have and that is not in `taken`.
pub fn free4(net: Ipv4Net, taken: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr, AddressError> {
    net.hosts()
        .find(|address| fits4(net, *address).is_ok() && !taken(*address))
        .ok_or(AddressError::NoAddress(net.into()))
}

/// The same, of version 6; `like` is the instance's other address, whose last
/// part this one gets if it can.
pub fn free6(
    net: Ipv6Net,
    like: Option<(Ipv4Net, Ipv4Addr)>,
    taken: impl Fn(Ipv6Addr) -> bool,
) -> Result<Ipv6Addr, AddressError> {
    let at = |host: u128| Ipv6Addr::from_bits(net.network().to_bits() | host);
    let free = |address: &Ipv6Addr| fits6(net, *address).is_ok() && !taken(*address);
    let same = like.map(|(net, address)| {
        at(u128::from(
            address.to_bits().wrapping_sub(net.network().to_bits()),
        ))
    });
    same.filter(free)
        .or_else(|| (2..V6_HOSTS).map(|host| at(host.into())).find(free))
        .ok_or(AddressError::NoAddress(net.into()))
}

/// The link-local address that a NIC makes itself of its MAC (RFC 4291,
/// appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::new(
        0xFE80,
        0,
        0,
        0,
        u16::from_be_bytes([a ^ 2, b]),
        u16::from_be_bytes([c, 0xFF]),
        u16::from_be_bytes([0xFE, d]),
        u16::from_be_bytes([e, f]),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subnets_that_somebody_chose() {
        for good in ["10.1.2.0/24", "192.168.0.0/16", "203.0.113.8/29"] {
            let net = good.parse().unwrap();
            assert_eq!(check4(net), Ok(net));
        }
        for bad in [
            "10.0.0.0/8",
            "10.1.2.0/30",
            "10.1.2.1/24",
            "127.0.1.0/24",
            "169.254.0.0/16",
            "224.0.0.0/24",
            "0.1.0.0/24",
            "255.1.0.0/24",
        ] {
            assert!(check4(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["fd00:1::/64", "2001:db8:1:2::/64"] {
            let net = good.parse().unwrap();
            assert_eq!(check6(net), Ok(net));
        }
        for bad in ["fd00::/48", "fe80::/64", "ff02::/64", "::/64", "fd00::1/64"] {
            assert!(check6(bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_full_host_has_no_subnet() {
        let all = [IpNet::V4("10.0.0.0/8".parse().unwrap())];
        assert_eq!(choose4(&all, 7), Err(AddressError::NoSubnet4));
        let all = [IpNet::V6("fd00::/8".parse().unwrap())];
        assert_eq!(choose6(&all, [1; 5]), Err(AddressError::NoSubnet6));
    }

    #[test]
    fn addresses_run_out() {
        let net: Ipv4Net = "10.0.0.0/29".parse().unwrap();
        let mut given = Vec::new();
        while let Ok(address) = free4(net, |address| given.contains(&address)) {
            given.push(address);
        }
        assert_eq!(given.len(), 5);
        assert_eq!(given[0], Ipv4Addr::new(10, 0, 0, 2));
        let six: Ipv6Net = "fd00::/64".parse().unwrap();
        let like = Some((net, given[3]));
        let address = free6(six, like, |_| false).unwrap();
        assert_eq!(address, "fd00::5".parse::<Ipv6Addr>().unwrap());
        let other = free6(six, like, |taken| taken == address).unwrap();
        assert_eq!(other, "fd00::2".parse::<Ipv6Addr>().unwrap());
        assert!(fits4(net, "10.0.0.7".parse().unwrap()).is_err());
        assert!(fits6(six, gateway6(six)).is_err());
    }

    #[test]
    fn link_local_addresses() {
        let address = link_local([0x02, 0xC7, 0x0F, 1, 2, 3]);
        assert_eq!(
            address,
            "fe80::c7:fff:fe01:203".parse::<Ipv6Addr>().unwrap()
        );
    }

    proptest! {
        #[test]
        fn a_chosen_subnet_overlaps_nothing(
            taken in prop::collection::vec((any::<u32>(), 9u8..=32), 0..40),
            seed in any::<u32>(),
        ) {
            let taken: Vec<IpNet> = taken
                .into_iter()
                .map(|(bits, prefix)| {
                    let address = Ipv4Addr::from_bits(bits & 0x00FF_FFFF | 0x0A00_0000);
                    IpNet::V4(Ipv4Net::new_assert(address, prefix).trunc())
                })
                .collect();
            if let Ok(net) = choose4(&taken, seed) {
                prop_assert_eq!(check4(net), Ok(net));
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                for other in &taken {
                    let IpNet::V4(other) = other else { continue };
                    let apart = other.broadcast().to_bits() < first
                        || other.network().to_bits() > last;
                    prop_assert!(apart, "{} and {}", net, other);
                }
            }
        }
    }
}
