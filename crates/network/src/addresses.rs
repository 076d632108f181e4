//! The addresses in another network namespace, as `/proc/PID/net` shows them
//! (proc_pid_net(5)): nobody has to move there, and any user may look.
//!
//! The namespace is a container's, which can have as many addresses as it
//! likes: of what is there only the beginning is read.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most bytes of a file that are read; an address takes some 100 of them.
const LONGEST: u64 = 256 << 10;

/// The addresses of the network namespace that a process is in, those of its
/// loopback interface among them.
pub fn addresses_of(pid: u32) -> io::Result<Vec<IpAddr>> {
    let four = ipv4(&read(pid, "fib_trie")?);
    // Without IPv6 there is no such file.
    let six = read(pid, "if_inet6").unwrap_or_default();
    Ok(four.into_iter().chain(ipv6(&six)).collect())
}

fn read(pid: u32, name: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/net/{name}"))?
        .take(LONGEST)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Those of the routing table: below each address are the routes to it, and to
/// one of the namespace's own leads a `host LOCAL`.
///
/// ```text
///      |-- 10.1.2.5
///         /32 host LOCAL
/// ```
fn ipv4(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.map(IpAddr::V4)
            // The file has it once for each table.
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// An address on a line: 32 digits, the interface's number, the length of the
/// prefix, scope, flags, the interface's name.
fn ipv6(text: &str) -> Vec<IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        let number = u128::from_str_radix(digits, 16).ok()?;
        (digits.len() == 32).then(|| Ipv6Addr::from_bits(number).into())
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_namespace_has_its_loopback() {
        let Ok(found) = addresses_of(std::process::id()) else {
            println!("skipped: /proc/net has no fib_trie here");
            return;
        };
        // It is up wherever tests run, but for a namespace of their own.
        if found.is_empty() {
            println!("skipped: the loopback interface is down");
            return;
        }
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
    }

    #[test]
    fn own_addresses_are_told_from_routes() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                    |-- 10.1.2.0\n        /24 link UNICAST\n     |-- 10.1.2.5\n        /32 host \
                    LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\nLocal:\n     |-- \
                    10.1.2.5\n        /32 host LOCAL\n     |-- 127.0.0.0\n        /8 host \
                    LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let found: Vec<String> = ipv4(trie).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.2.5", "127.0.0.1"]);
        let six = "fd010000000000000000000000000005 02 40 00 80     eth0\n\
                   fe80000000000000000000fffe000005 02 40 20 80     eth0\nshort 1 2\n";
        let found: Vec<String> = ipv6(six).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["fd01::5", "fe80::ff:fe00:5"]);
        assert!(ipv4("|-- x\n/32 host LOCAL\n").is_empty());
    }
}
