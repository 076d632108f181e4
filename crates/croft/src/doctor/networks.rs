//! The user network, tried.

use std::fs;

use croft_api::net::Mac;
use croft_network::user::{self, Host, Passt};
use rustix::process::{getegid, getgroups};

use super::finding::{Finding, Part};

/// The name of both findings' program.
const NAME: &str = "passt";
/// Who may send echo requests (icmp(7)).
const PING: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Looks at this host.
pub fn findings() -> Vec<Finding> {
    let part = Part::Networking;
    let program = match user::find(user::Program::Passt) {
        Ok(program) => program,
        Err(_) => {
            let text = "for networking without privilege (--net user)";
            return vec![Finding::missing(part, NAME, text, "apt-get install passt")];
        }
    };
    let host = Host::look();
    let tried = Mac::random()
        .map_err(|error| error.to_string())
        .and_then(|mac| {
            let started = Passt::start(&program, &host, &[], user::MTU, mac);
            started.map_err(|error| error.to_string())
        });
    if let Err(error) = tried {
        let remedy = "its messages are in the host's log; a container must let it make namespaces";
        return vec![Finding::missing(part, NAME, error, remedy)];
    }
    let versions = match host.ipv6 {
        Some(_) => "IPv4 and IPv6",
        None => "IPv4; this host has no IPv6",
    };
    let text = format!(
        "{}: networking without privilege, {versions}",
        program.display()
    );
    let mut findings = vec![Finding::ok(part, NAME, text)];
    let range = fs::read_to_string(PING).unwrap_or_default();
    if !may_ping(&range, &groups()) {
        findings.push(Finding::limited(
            part,
            "ping",
            "guests of user networks cannot ping: the host does not let this user",
            "as root: sysctl net.ipv4.ping_group_range='0 2147483647'",
        ));
    }
    findings
}

/// The groups that passt has.
fn groups() -> Vec<u32> {
    if rustix::process::geteuid().is_root() {
        // It becomes nobody.
        return vec![65534];
    }
    let others = getgroups().unwrap_or_default();
    let all = std::iter::once(getegid()).chain(others);
    all.map(|group| group.as_raw()).collect()
}

/// Whether one of the groups is in the range, two numbers.
fn may_ping(range: &str, groups: &[u32]) -> bool {
    let numbers: Vec<u32> = range
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    match numbers[..] {
        [first, last] => groups.iter().any(|group| (first..=last).contains(group)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_ping() {
        assert!(may_ping("0\t2147483647\n", &[1000]));
        assert!(may_ping("100\t200\n", &[7, 200]));
        // As the kernel has it when nobody may.
        assert!(!may_ping("1\t0\n", &[0, 1]));
        assert!(!may_ping("", &[0]));
    }
}
