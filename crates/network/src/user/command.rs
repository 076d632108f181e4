//! passt's command line. What is said of it here was tried with Debian 12's
//! (2023-03-09).

use std::ffi::OsString;

use croft_api::net::{Protocol, Publish};

use super::{GATEWAY, GATEWAY_MAC, GATEWAY6, GUEST, GUEST6, Host, PREFIX, RESOLVER, RESOLVER6};

/// The socket's number in passt.
pub(super) const SOCKET: i32 = 3;

/// The namespace, as pasta finds it: what it has open is closed by later
/// versions, its standard input is not; and by the number of a process it may
/// not be allowed to look.
const NAMESPACE: &str = "/proc/self/fd/0";

/// The arguments for a machine.
pub(super) fn passt(host: &Host, publish: &[Publish], mtu: u16) -> Vec<OsString> {
    let mut words = vec!["--fd".to_owned(), SOCKET.to_string()];
    words.extend(both(host, publish, mtu));
    words.into_iter().map(OsString::from).collect()
}

/// The arguments for a container, whose interface `name` is there already.
/// `root`: it keeps the rights that it has.
pub(super) fn pasta(
    host: &Host,
    publish: &[Publish],
    mtu: u16,
    name: &str,
    root: bool,
) -> Vec<OsString> {
    let mut words = Vec::new();
    if root {
        // Nobody may enter the namespace but root.
        words.extend(["--runas", "0:0"]);
    }
    words.extend(["--netns-only", "--netns", NAMESPACE]);
    // It is not on any disk where its deletion could be seen.
    words.push("--no-netns-quit");
    words.extend(["--ns-ifname", name]);
    // By default what listens at the host's loopback addresses is there in
    // the container too.
    words.extend(["--tcp-ns", "none", "--udp-ns", "none"]);
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    words.extend(both(host, publish, mtu));
    words.into_iter().map(OsString::from).collect()
}

/// What both have.
fn both(host: &Host, publish: &[Publish], mtu: u16) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    // An interface to take after is asked for even where every address is
    // given; sockets are not bound to it. Any will do for IPv4, so that a host
    // without an uplink has a network too; for IPv6 it must have an address of
    // its link.
    option(
        "--interface",
        host.ipv6.clone().unwrap_or_else(|| "lo".to_owned()),
    );
    let [a, b, c, d, e, f] = GATEWAY_MAC;
    option(
        "--mac-addr",
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
    );
    option("--address", GUEST.to_string());
    option("--netmask", PREFIX.to_string());
    option("--gateway", GATEWAY.to_string());
    option("--dns-forward", RESOLVER.to_string());
    if host.ipv6.is_some() {
        option("--address", GUEST6.to_string());
        option("--gateway", GATEWAY6.to_string());
        option("--dns-forward", RESOLVER6.to_string());
    }
    // With none of these passt reads resolv.conf itself, and forwards to what
    // it finds there, also in the host.
    for resolver in &host.resolvers {
        option("--dns", resolver.to_string());
    }
    option("--mtu", mtu.to_string());
    for (name, protocol) in [
        ("--tcp-ports", Protocol::Tcp),
        ("--udp-ports", Protocol::Udp),
    ] {
        let ports = publish.iter().filter(|port| port.protocol == protocol);
        let ports: Vec<String> = ports.map(specification).collect();
        if ports.is_empty() {
            // Else ports of TCP are also UDP's, by the manual.
            option(name, "none".to_owned());
        }
        for port in ports {
            option(name, port);
        }
    }
    if host.ipv6.is_none() {
        words.push("--ipv4-only".to_owned());
    }
    let flags = ["--foreground", "--quiet", "--no-map-gw"];
    words.extend(flags.map(str::to_owned));
    words
}

/// `[ADDRESS/]HOST:GUEST`.
fn specification(port: &Publish) -> String {
    let address = port.address.map(|address| format!("{address}/"));
    let address = address.unwrap_or_default();
    format!("{address}{}:{}", port.host, port.guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(host: &Host, publish: &[&str]) -> String {
        let publish: Vec<Publish> = publish.iter().map(|text| text.parse().unwrap()).collect();
        let words = passt(host, &publish, 1500);
        let words: Vec<String> = words
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        format!(" {} ", words.join(" "))
    }

    #[test]
    fn a_host_without_a_network() {
        let line = line(&Host::default(), &[]);
        for part in [
            " --fd 3 ",
            " --interface lo ",
            " --mac-addr 02:c7:0f:00:00:01 ",
            " --address 10.199.15.15 ",
            " --gateway 10.199.15.1 ",
            " --dns-forward 10.199.15.3 ",
            " --mtu 1500 ",
            " --tcp-ports none --udp-ports none ",
            " --ipv4-only ",
            " --no-map-gw ",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(
            !line.contains("fdc7") && !line.contains(" --dns "),
            "{line}"
        );
    }

    #[test]
    fn both_versions_of_ip() {
        let host = Host {
            ipv6: Some("eth0".to_owned()),
            resolvers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        };
        let line = line(&host, &[]);
        for part in [
            " --interface eth0 ",
            " --address fdc7:fb1:4e3a::15 ",
            " --gateway fe80::c7:f01 ",
            " --dns-forward fdc7:fb1:4e3a::3 ",
            " --dns 192.0.2.1 --dns 2001:db8::1 ",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("ipv4-only"), "{line}");
    }

    #[test]
    fn a_container() {
        let line = |root| {
            let words = pasta(&Host::default(), &[], 1500, "eth0", root);
            let words: Vec<String> = words
                .into_iter()
                .map(|word| word.into_string().unwrap())
                .collect();
            format!(" {} ", words.join(" "))
        };
        for part in [
            " --netns-only --netns /proc/self/fd/0 ",
            " --ns-ifname eth0 ",
            // Nothing leads anywhere that was not asked for.
            " --tcp-ns none --udp-ns none ",
            " --tcp-ports none --udp-ports none ",
            " --no-map-gw ",
        ] {
            assert!(line(false).contains(part), "{part} in {}", line(false));
        }
        assert!(!line(false).contains("--fd") && !line(false).contains("--runas"));
        assert!(line(true).starts_with(" --runas 0:0 "));
    }

    #[test]
    fn published_ports() {
        let line = line(
            &Host::default(),
            &["8080:80", "127.0.0.1:2222:22", "[::1]:53:5353/udp"],
        );
        assert!(
            line.contains(
                " --tcp-ports 8080:80 --tcp-ports 127.0.0.1/2222:22 --udp-ports ::1/53:5353 "
            ),
            "{line}"
        );
        assert!(!line.contains("none"), "{line}");
    }
}
