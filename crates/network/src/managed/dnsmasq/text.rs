//! What it reads.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use super::{HOSTS, LEASES, NAMES, PID};
use crate::managed::config::{Mode, NetworkConfig};
use crate::managed::name::NetworkName;
use crate::managed::store::Lease;

/// For how long a guest may keep its address without asking again. It always
/// gets the same one.
const LEASE_TIME: &str = "1h";
/// Seconds between router advertisements that nobody asked for (RFC 4861,
/// 6.2.1: MaxRtrAdvInterval, 4 to 1800).
const ADVERTISE: u32 = 60;
/// For how long guests believe one, in seconds (AdvDefaultLifetime, at most
/// 9000).
const BELIEVE: u32 = 1800;

/// Its configuration.
pub fn configuration(
    name: &NetworkName,
    config: &NetworkConfig,
    directory: &Path,
    user: &str,
) -> String {
    let bridge = name.bridge();
    let domain = &config.domain;
    let at = |file: &str| directory.join(file).display().to_string();
    let mut lines = vec![
        // Nothing of the host's own, and nowhere but on the bridge.
        "no-hosts".to_owned(),
        "bind-dynamic".to_owned(),
        "except-interface=lo".to_owned(),
        format!("interface={bridge}"),
        format!("user={user}"),
        format!("pid-file={}", at(PID)),
        // Names: ours are answered here and nowhere else, and those of
        // private addresses and without a domain are not asked for upstream.
        format!("domain={domain}"),
        format!("local=/{domain}/"),
        "domain-needed".to_owned(),
        "bogus-priv".to_owned(),
        "dns-loop-detect".to_owned(),
        format!("addn-hosts={}", at(NAMES)),
        format!("dhcp-hostsfile={}", at(HOSTS)),
        format!("dhcp-leasefile={}", at(LEASES)),
        // No guest chooses its name: it would be that of whoever it likes.
        "dhcp-ignore-names".to_owned(),
        "dhcp-authoritative".to_owned(),
        "quiet-dhcp".to_owned(),
        "quiet-dhcp6".to_owned(),
        "quiet-ra".to_owned(),
        "log-facility=/dev/null".to_owned(),
    ];
    let closed = config.mode == Mode::Closed;
    if closed {
        lines.push("no-resolv".to_owned());
    }
    if let Some(net) = config.ipv4 {
        // Whoever is not in the file of hosts gets nothing.
        let (first, mask) = (net.network(), net.netmask());
        lines.push(format!("dhcp-range={first},static,{mask},{LEASE_TIME}"));
        lines.push(format!("dhcp-option=option:mtu,{}", config.mtu));
        lines.push(format!("dhcp-option=option:domain-search,{domain}"));
        if closed {
            lines.push("dhcp-option=option:router".to_owned());
        }
    }
    if let Some(net) = config.ipv6 {
        let first = net.network();
        let prefix = net.prefix_len();
        lines.push(format!("dhcp-range={first},static,{prefix},{LEASE_TIME}"));
        lines.push("enable-ra".to_owned());
        lines.push(format!("dhcp-option=option6:domain-search,{domain}"));
        let believe = if closed { 0 } else { BELIEVE };
        lines.push(format!(
            "ra-param={bridge},mtu:{},{ADVERTISE},{believe}",
            config.mtu
        ));
    }
    lines.join("\n") + "\n"
}

/// Who gets which address.
pub fn hosts(leases: &[Lease]) -> String {
    let mut text = String::new();
    for lease in leases {
        let _ = write!(text, "{}", lease.mac);
        if let Some(address) = lease.ipv4 {
            let _ = write!(text, ",{address}");
        }
        if let Some(address) = lease.ipv6 {
            let _ = write!(text, ",[{address}]");
        }
        if is_label(&lease.instance) {
            let _ = write!(text, ",{}", lease.instance);
        }
        text.push('\n');
    }
    text
}

/// Which names have which address.
pub fn names(config: &NetworkConfig, leases: &[Lease]) -> String {
    let domain = &config.domain;
    let mut text = String::new();
    let mut add = |address: IpAddr, name: &str| {
        let _ = writeln!(text, "{address} {name}.{domain} {name}");
    };
    // This host.
    for address in super::gateways(config) {
        add(address, "gateway");
    }
    for lease in leases {
        let addresses = [lease.ipv4.map(IpAddr::V4), lease.ipv6.map(IpAddr::V6)];
        for address in addresses.into_iter().flatten() {
            add(address, &lease.instance);
        }
    }
    text
}

/// Whether a name can be a host's in DHCP (RFC 1123, 2.1). Others have their
/// names in DNS alone.
fn is_label(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    name.chars().all(plain) && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::config::tests::config;

    fn lease(instance: &str, number: u8) -> Lease {
        Lease {
            instance: instance.to_owned(),
            nic: "net0".to_owned(),
            mac: croft_api::net::Mac::new([2, 0xC7, 0x0F, 0, 0, number]).unwrap(),
            ipv4: Some([10, 1, 2, number].into()),
            ipv6: Some(format!("fd01:2:3::{number}").parse().unwrap()),
        }
    }

    #[test]
    fn hosts_and_names() {
        let leases = [lease("web1", 5), lease("db_1.test", 6)];
        assert_eq!(
            hosts(&leases),
            "02:c7:0f:00:00:05,10.1.2.5,[fd01:2:3::5],web1\n\
             02:c7:0f:00:00:06,10.1.2.6,[fd01:2:3::6]\n"
        );
        let names = names(&config(), &leases);
        for line in [
            "10.1.2.1 gateway.croft gateway",
            "fd01:2:3::1 gateway.croft gateway",
            "10.1.2.5 web1.croft web1",
            "fd01:2:3::6 db_1.test.croft db_1.test",
        ] {
            assert!(names.lines().any(|there| there == line), "{names}");
        }
    }

    #[test]
    fn the_configuration_follows_from_the_network() {
        let text = |change: fn(&mut NetworkConfig)| {
            let mut config = config();
            change(&mut config);
            let name = "web".parse().unwrap();
            configuration(&name, &config, Path::new("/n"), "dnsmasq")
        };
        let has = |text: &str, line: &str| text.lines().any(|there| there == line);
        let whole = text(|config| config.mtu = 1400);
        for line in [
            "interface=cr-web",
            "except-interface=lo",
            "user=dnsmasq",
            "domain=croft",
            "local=/croft/",
            "dhcp-ignore-names",
            "dhcp-hostsfile=/n/hosts",
            "dhcp-range=10.1.2.0,static,255.255.255.0,1h",
            "dhcp-range=fd01:2:3::,static,64,1h",
            "dhcp-option=option:mtu,1400",
            "ra-param=cr-web,mtu:1400,60,1800",
        ] {
            assert!(has(&whole, line), "{line}: {whole}");
        }
        assert!(!has(&whole, "no-resolv"));
        let closed = text(|config| config.mode = Mode::Closed);
        for line in [
            "no-resolv",
            "dhcp-option=option:router",
            "ra-param=cr-web,mtu:1500,60,0",
        ] {
            assert!(has(&closed, line), "{line}: {closed}");
        }
        let four = text(|config| config.ipv6 = None);
        assert!(!four.contains("fd01") && !has(&four, "enable-ra"));
        let six = text(|config| config.ipv4 = None);
        assert!(!six.contains("10.1.2") && has(&six, "enable-ra"));
    }
}
