//! Managed networks, for real, each test in namespaces of its own.

mod containers;
mod crashes;
mod faults;
mod filters;
mod guest;
mod namespace;
mod user;
mod vlans;
mod whole;

use std::path::Path;
use std::time::{Duration, Instant};

use croft_host::Directories;
use croft_network::{Networks, NewNetwork};

/// The networks in directories that dnsmasq's user can reach.
fn networks() -> Networks {
    let place = Path::new("/run/croft-test");
    let directories = Directories::new(place, place.join("run"));
    directories.create().unwrap();
    Networks::open(&directories)
}

/// The same, with a network `web`.
fn web(change: impl FnOnce(&mut NewNetwork)) -> Networks {
    let networks = networks();
    let mut new = NewNetwork::default();
    change(&mut new);
    networks.create(&"web".parse().unwrap(), &new).unwrap();
    networks
}

/// Soon there is this in these namespaces ([`everything`]): the kernel, and
/// who has been ended, may take their time.
#[track_caller]
fn assert_comes_to(wanted: &str, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while everything() != wanted && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(everything(), wanted, "{what}");
}

/// What there is in these namespaces: rules, interfaces, addresses, processes
/// and settings.
fn everything() -> String {
    namespace::host(
        "nft list ruleset; \
         ip -o link | sed 's/^[0-9]*: //; s/<[^>]*>//; s/state [A-Z]*//' | sort; \
         ip -o addr | sed 's/^[0-9]*: //; s/ tentative//' | sort; \
         for p in /proc/[0-9]*/status; do grep -qs 'State:.Z' $p || grep -s Name: $p; done \
         | grep dnsmasq; \
         cd /proc/sys/net && grep . ipv4/ip_forward ipv6/conf/all/forwarding \
         ipv6/conf/*/accept_ra",
    )
}
