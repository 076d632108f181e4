//! The guest's interfaces and addresses.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use croft_api::agent::Interface;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

use super::task::Refusal;

/// Most interfaces, and most addresses of one, that are told.
const MOST: usize = 256;

/// All but the loopback.
pub fn list() -> Result<Vec<Interface>, Refusal> {
    let all =
        getifaddrs().map_err(|error| Refusal::other(format!("the guest's addresses: {error}")))?;
    let mut interfaces: BTreeMap<String, Interface> = BTreeMap::new();
    for address in all {
        if address.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let name = address.interface_name.clone();
        if interfaces.len() >= MOST && !interfaces.contains_key(&name) {
            continue;
        }
        let interface = interfaces.entry(name).or_insert_with_key(|name| Interface {
            name: name.clone(),
            mac: mac(name),
            addresses: Vec::new(),
        });
        if let Some(text) = text(&address)
            && interface.addresses.len() < MOST
        {
            interface.addresses.push(text);
        }
    }
    Ok(interfaces.into_values().collect())
}

fn mac(interface: &str) -> String {
    let path = Path::new("/sys/class/net").join(interface).join("address");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// The address with the length of its network's prefix.
fn text(address: &InterfaceAddress) -> Option<String> {
    let (storage, mask) = (address.address.as_ref()?, address.netmask.as_ref());
    if let Some(v4) = storage.as_sockaddr_in() {
        let mask = mask.and_then(|mask| mask.as_sockaddr_in());
        let bits = mask.map_or(32, |mask| u32::from(mask.ip()).count_ones());
        return Some(format!("{}/{bits}", Ipv4Addr::from(u32::from(v4.ip()))));
    }
    let v6 = storage.as_sockaddr_in6()?;
    let mask = mask.and_then(|mask| mask.as_sockaddr_in6());
    let bits = mask.map_or(128, |mask| u128::from(mask.ip()).count_ones());
    Some(format!("{}/{bits}", Ipv6Addr::from(u128::from(v6.ip()))))
}
