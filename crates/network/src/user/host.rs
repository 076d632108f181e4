//! What of the host's network decides how passt is run.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};

/// Most bytes of a file that is looked at.
const FILE_MAX: u64 = 1 << 20;
/// Resolvers of each version that passt takes (`MAXNS` of resolv.h).
const RESOLVERS_MAX: usize = 3;
/// The route works (`RTF_UP` of linux/route.h).
const ROUTE_UP: u32 = 0x1;
/// It refuses (`RTF_REJECT`).
const ROUTE_REJECT: u32 = 0x200;
/// An address's scope is the link (`IPV6_ADDR_LINKLOCAL` of the kernel).
const SCOPE_LINK: &str = "20";

/// The host's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The interface from which passt takes its own address of the link, where
    /// the host has a default route of IPv6.
    pub ipv6: Option<String>,
    /// Resolvers that a guest can ask too. None if the host has none but in
    /// itself.
    pub resolvers: Vec<IpAddr>,
}

impl Host {
    /// Looks. What cannot be read is not there.
    pub fn look() -> Host {
        let ipv6 = ipv6(&read("/proc/net/ipv6_route"), &read("/proc/net/if_inet6"));
        let mut found = resolvers(&read("/etc/resolv.conf"));
        if found.is_empty() {
            // Where systemd-resolved is the host's resolver, those that it
            // asks are here (systemd-resolved.service(8)).
            found = resolvers(&read("/run/systemd/resolve/resolv.conf"));
        }
        let mut counts = [0usize; 2];
        found.retain(|address| {
            let [v4, v6] = &mut counts;
            let count = if address.is_ipv4() { v4 } else { v6 };
            *count += 1;
            *count <= RESOLVERS_MAX && (address.is_ipv4() || ipv6.is_some())
        });
        Host {
            ipv6,
            resolvers: found,
        }
    }
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is as good as any.
    let _ = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An interface with an address of its link, if there is a default route: that
/// of the route, or else the first. `routes` and `addresses` are as the kernel
/// writes them (net/ipv6/route.c, addrconf.c).
fn ipv6(routes: &str, addresses: &str) -> Option<String> {
    let routes = routes.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, _, _, _, metric, _, _, flags, name] = words[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let metric = u32::from_str_radix(metric, 16).ok()?;
        let default = length == "00" && destination.bytes().all(|digit| digit == b'0');
        let works = flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0 && name != "lo";
        (default && works).then_some((metric, name))
    });
    let (_, best) = routes.min()?;
    let linked = addresses.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            [_, _, _, SCOPE_LINK, _, name] => Some(name),
            _ => None,
        }
    });
    let linked: Vec<&str> = linked.collect();
    let found = linked.iter().find(|name| **name == best);
    found.or(linked.first()).map(|name| (*name).to_owned())
}

/// The resolvers of a resolv.conf(5) that others than the host can ask.
fn resolvers(text: &str) -> Vec<IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is = words.next() == Some("nameserver");
        words.next().filter(|_| is)?.parse().ok()
    });
    let elsewhere = |address: &IpAddr| match address {
        IpAddr::V4(address) => !(address.is_loopback() || address.is_unspecified()),
        IpAddr::V6(address) => leads_elsewhere(address),
    };
    addresses.filter(elsewhere).collect()
}

fn leads_elsewhere(address: &Ipv6Addr) -> bool {
    let inner = address.to_ipv4_mapped().is_some();
    !(inner || address.is_loopback() || address.is_unspecified() || address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000500 00000003 00000000 00000003     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth0
";
    const ADDRESSES: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000002 05 40 20 80     eth1
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
fd000000000000000000000000000002 04 40 00 80     eth0
";

    #[test]
    fn ipv6_is_there_with_a_default_route() {
        assert_eq!(ipv6(ROUTES, ADDRESSES).as_deref(), Some("eth0"));
        let without = ROUTES.replace("eth0", "tun0").replace("eth1", "tun0");
        assert_eq!(ipv6(&without, ADDRESSES).as_deref(), Some("eth1"));
        let refused: String = ROUTES.lines().take(2).map(|l| format!("{l}\n")).collect();
        assert_eq!(ipv6(&refused, ADDRESSES), None);
        assert_eq!(ipv6(ROUTES, ""), None);
        assert_eq!(ipv6("", ADDRESSES), None);
        assert_eq!(ipv6("00 00 nonsense\n\n", "x"), None);
    }

    #[test]
    fn resolvers_in_the_host_are_left_out() {
        let found = |text: &str| -> Vec<String> {
            resolvers(text).iter().map(ToString::to_string).collect()
        };
        let text = "# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver\t192.0.2.1\n\
                    nameserver ::1\nnameserver fe80::1%eth0\nnameserver fe80::1\n\
                    nameserver 2001:db8::1\nnameserver\nsearch nameserver 192.0.2.2\n";
        assert_eq!(found(text), ["192.0.2.1", "2001:db8::1"]);
        assert!(found("nameserver ::ffff:127.0.0.1\nnameserver 0.0.0.0\n").is_empty());
    }
}
