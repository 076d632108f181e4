//! What a container is told of names: the text of its `/etc/resolv.conf`
//! (resolv.conf(5)) and `/etc/hosts` (hosts(5)).

use std::fmt::Write;
use std::net::IpAddr;

/// Most resolvers that a libc asks (`MAXNS`, resolv.h).
const RESOLVERS_MAX: usize = 3;

/// What one NIC has to do with names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Who answers for names, by this NIC.
    pub resolvers: Vec<IpAddr>,
    /// The domain of this NIC's network.
    pub domain: Option<String>,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Names {
    /// The text of `/etc/resolv.conf`: the first NIC with resolvers decides.
    /// Without any it names none, so that nobody is asked in vain.
    pub fn resolv_conf(nics: &[Names]) -> String {
        let mut text = "# Written by Croft, anew with each start of this container.\n".to_owned();
        let Some(nic) = nics.iter().find(|nic| !nic.resolvers.is_empty()) else {
            return text;
        };
        if let Some(domain) = &nic.domain {
            let _ = writeln!(text, "search {domain}");
        }
        for resolver in nic.resolvers.iter().take(RESOLVERS_MAX) {
            let _ = writeln!(text, "nameserver {resolver}");
        }
        text
    }

    /// The text of `/etc/hosts` of a container with this name. It has its
    /// addresses by that, whoever else can be asked.
    pub fn hosts(hostname: &str, nics: &[Names]) -> String {
        let mut text = "127.0.0.1 localhost\n\
                        ::1 localhost ip6-localhost ip6-loopback\n\
                        ff02::1 ip6-allnodes\n\
                        ff02::2 ip6-allrouters\n"
            .to_owned();
        let mut any = false;
        for nic in nics {
            for address in &nic.addresses {
                any = true;
                let _ = match &nic.domain {
                    Some(domain) => writeln!(text, "{address} {hostname}.{domain} {hostname}"),
                    None => writeln!(text, "{address} {hostname}"),
                };
            }
        }
        if !any {
            // As Debian does for a host whose address may change.
            let _ = writeln!(text, "127.0.1.1 {hostname}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(resolver: &str, domain: Option<&str>, address: &str) -> Names {
        let addresses = |text: &str| {
            text.split_whitespace()
                .map(|a| a.parse().unwrap())
                .collect()
        };
        Names {
            resolvers: addresses(resolver),
            domain: domain.map(str::to_owned),
            addresses: addresses(address),
        }
    }

    #[test]
    fn the_first_nic_with_resolvers_answers_for_names() {
        let nics = [
            nic("", None, ""),
            nic("10.1.2.1 fd01::1", Some("croft"), "10.1.2.5 fd01::5"),
            nic("192.0.2.1", Some("lab"), "192.0.2.7"),
        ];
        let text = Names::resolv_conf(&nics);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            ["search croft", "nameserver 10.1.2.1", "nameserver fd01::1"]
        );
        let hosts = Names::hosts("web1", &nics);
        for line in [
            "127.0.0.1 localhost",
            "10.1.2.5 web1.croft web1",
            "fd01::5 web1.croft web1",
            "192.0.2.7 web1.lab web1",
        ] {
            assert!(hosts.lines().any(|there| there == line), "{hosts}");
        }
        assert!(!hosts.contains("127.0.1.1"));
    }

    #[test]
    fn without_a_network_a_container_knows_itself() {
        assert!(!Names::resolv_conf(&[]).contains("nameserver"));
        assert!(Names::hosts("alone", &[]).contains("\n127.0.1.1 alone\n"));
    }

    #[test]
    fn no_more_resolvers_than_are_asked() {
        let many = nic("192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4", None, "");
        assert_eq!(Names::resolv_conf(&[many]).matches("nameserver").count(), 3);
    }
}
