//! The NICs of a new instance.

use std::fs::File;

use croft_api::net::{Mac, NICS_MAX, NicKind, NicSpec, Publish, UserNet};
use croft_network::user::{self, Host, Passt};

use crate::args::net::{Net, NetOptions, NewNic};
use crate::say;

/// Where taps come from.
const TAPS: &str = "/dev/net/tun";
const ONE_USER: &str = "--net user: once; the addresses of a second one would be the same";

/// What an instance has for which nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByDefault {
    /// A user network, where machines can have one.
    User,
    /// A user network, where containers can have one.
    Container,
    /// Nothing.
    None,
}

/// The NICs that are asked for.
pub fn nics(options: &NetOptions, default: ByDefault) -> Result<Vec<NicSpec>, String> {
    let user = || vec![NewNic::new(NicKind::User(UserNet::default()))];
    let wanted = if !options.nets.is_empty() {
        given(&options.nets)?
    } else if !options.publish.is_empty() {
        user()
    } else {
        let works = match default {
            ByDefault::User => Some(try_user()),
            ByDefault::Container => Some(try_container()),
            ByDefault::None => None,
        };
        match works {
            Some(Ok(())) => user(),
            Some(Err(why)) => {
                say::line(&format!("croft: no network: {why}"));
                Vec::new()
            }
            None => Vec::new(),
        }
    };
    if wanted.len() > NICS_MAX {
        return Err(format!("--net: a machine has at most {NICS_MAX} NICs"));
    }
    let mut nics: Vec<NicSpec> = Vec::with_capacity(wanted.len());
    for (index, nic) in wanted.into_iter().enumerate() {
        let mac = match nic.mac {
            Some(mac) if nics.iter().any(|other| other.mac == mac) => {
                return Err(format!("--net: {mac} is given twice"));
            }
            Some(mac) => mac,
            None => random(&nics)?,
        };
        nics.push(spec(format!("net{index}"), mac, nic));
    }
    publish(&mut nics, &options.publish)?;
    Ok(nics)
}

/// Where the NICs of a machine that is there lead to, if that is said of them.
pub fn nets(options: &NetOptions) -> Result<Option<Vec<NicKind>>, String> {
    if options.nets.is_empty() && options.publish.is_empty() {
        return Ok(None);
    }
    if options.nets.is_empty() {
        return Err("--publish: say by --net where each NIC leads to".to_owned());
    }
    let plain = |nic: &NewNic| *nic == NewNic::new(nic.kind.clone());
    if !given(&options.nets)?.iter().all(plain) {
        return Err("--net: addresses, limits and the like stay as they were".to_owned());
    }
    let nics = nics(options, ByDefault::None)?;
    Ok(Some(nics.into_iter().map(|nic| nic.kind).collect()))
}

/// One more, beside `others` and whatever has these names.
pub fn another(nic: NewNic, others: &[NicSpec], names: &[String]) -> Result<NicSpec, String> {
    let is_user = |kind: &NicKind| matches!(kind, NicKind::User(_));
    if is_user(&nic.kind) && others.iter().any(|other| is_user(&other.kind)) {
        return Err(ONE_USER.to_owned());
    }
    let taken = |name: &String| names.contains(name) || others.iter().any(|nic| nic.name == *name);
    let mut all = (0..NICS_MAX).map(|index| format!("net{index}"));
    let name = all.find(|name| !taken(name));
    let name = name.ok_or(format!(
        "a machine has at most {NICS_MAX} NICs; detach one first"
    ))?;
    let mac = match nic.mac {
        Some(mac) if others.iter().any(|other| other.mac == mac) => {
            return Err(format!("{mac} is the address of another NIC of it"));
        }
        Some(mac) => mac,
        None => random(others)?,
    };
    Ok(spec(name, mac, nic))
}

fn spec(name: String, mac: Mac, nic: NewNic) -> NicSpec {
    NicSpec {
        name,
        mac,
        mtu: nic.mtu,
        queues: nic.queues,
        limits: nic.limits,
        link: nic.link,
        kind: nic.kind,
    }
}

/// Those of `--net`.
fn given(nets: &[Net]) -> Result<Vec<NewNic>, String> {
    let nics = nets.iter().filter_map(|net| match net {
        Net::None => None,
        Net::Nic(nic) => Some((**nic).clone()),
    });
    let nics: Vec<NewNic> = nics.collect();
    if !nics.is_empty() && nics.len() < nets.len() {
        return Err("--net none stands alone".to_owned());
    }
    let users = nics
        .iter()
        .filter(|nic| matches!(nic.kind, NicKind::User(_)));
    if users.count() > 1 {
        return Err(ONE_USER.to_owned());
    }
    Ok(nics)
}

/// An address that no other NIC of the machine has.
fn random(others: &[NicSpec]) -> Result<Mac, String> {
    loop {
        let mac = Mac::random().map_err(|error| format!("no address for a NIC: {error}"))?;
        if others.iter().all(|other| other.mac != mac) {
            return Ok(mac);
        }
    }
}

/// Gives the ports to the first NIC that can have them.
fn publish(nics: &mut [NicSpec], ports: &[Publish]) -> Result<(), String> {
    if ports.is_empty() {
        return Ok(());
    }
    let first = nics.iter_mut().find_map(|nic| match &mut nic.kind {
        NicKind::User(net) => Some(&mut net.publish),
        NicKind::Network(net) => Some(&mut net.publish),
        NicKind::Bridge(_) => None,
    });
    let first =
        first.ok_or("--publish is for NICs of --net user or in a network; there is none")?;
    first.extend_from_slice(ports);
    Ok(())
}

/// Whether there can be a user network: runs passt for a moment. Else what is
/// missing and what to do.
fn try_user() -> Result<(), String> {
    let program = user::find(user::Program::Passt).map_err(|error| error.to_string())?;
    let mac = Mac::random().map_err(|error| error.to_string())?;
    Passt::start(&program, &Host::look(), &[], user::MTU, mac)
        .map(drop)
        .map_err(|error| format!("{error}; 'croft doctor' may tell why"))
}

/// Whether a container can have a user network: pasta is there, and can open
/// taps. Its start is no dearer than a trial of it would be.
fn try_container() -> Result<(), String> {
    user::find(user::Program::Pasta).map_err(|error| error.to_string())?;
    let opened = File::options().read(true).write(true).open(TAPS);
    opened
        .map(drop)
        .map_err(|error| format!("{TAPS}: {error}; 'croft doctor' says what to do"))
}

/// The ports that lead to an instance.
pub fn published(nics: &[NicSpec]) -> impl Iterator<Item = &Publish> {
    nics.iter().flat_map(|nic| match &nic.kind {
        NicKind::User(net) => &net.publish[..],
        NicKind::Network(net) => &net.publish,
        NicKind::Bridge(_) => &[],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::net::parse_net;

    fn options(nets: &[&str], publish: &[&str]) -> NetOptions {
        NetOptions {
            nets: nets.iter().map(|net| parse_net(net).unwrap()).collect(),
            publish: publish.iter().map(|port| port.parse().unwrap()).collect(),
        }
    }

    fn made(nets: &[&str], publish_: &[&str]) -> Vec<NicSpec> {
        nics(&options(nets, publish_), ByDefault::None).unwrap()
    }

    fn fault(nets: &[&str], publish_: &[&str]) -> String {
        let result = nics(&options(nets, publish_), ByDefault::None);
        result.unwrap_err()
    }

    #[test]
    fn nics_are_named_in_their_order() {
        assert!(made(&[], &[]).is_empty());
        assert!(made(&["none"], &[]).is_empty());
        let both = made(&["bridge=br0", "user,link=down"], &["8080:80", "53:53/udp"]);
        assert_eq!(both[0].name, "net0");
        assert_ne!(both[0].mac, both[1].mac);
        let mac = both[1].mac;
        assert_eq!(both[1].describe(), format!("user, {mac}, link down"));
        let ports: Vec<String> = published(&both).map(ToString::to_string).collect();
        assert_eq!(ports, ["8080:80", "53:53/udp"]);
    }

    #[test]
    fn of_a_machine_that_is_there_only_the_networks_change() {
        let said = |those: &[&str], publish: &[&str]| nets(&options(those, publish));
        assert_eq!(said(&[], &[]), Ok(None));
        let kinds = said(&["user", "lan,ipv4=10.0.0.5"], &["80:80"])
            .unwrap()
            .unwrap();
        assert!(matches!(&kinds[0], NicKind::User(net) if net.publish.len() == 1));
        assert!(matches!(&kinds[1], NicKind::Network(net) if net.network == "lan"));
        for (those, publish) in [
            (&[][..], &["80:80"][..]),
            (&["lan,mac=02:00:00:00:00:01"], &[]),
            (&["lan,limit-in=1M"], &[]),
            (&["lan,link=down"], &[]),
        ] {
            assert!(said(those, publish).is_err(), "{those:?} {publish:?}");
        }
    }

    #[test]
    fn a_published_port_makes_a_user_network() {
        let one = made(&[], &["2222:22"]);
        assert!(matches!(&one[0].kind, NicKind::User(net) if net.publish.len() == 1));
    }

    #[test]
    fn what_cannot_be_is_explained() {
        assert!(fault(&["none", "user"], &[]).contains("alone"));
        assert!(fault(&["user", "user"], &[]).contains("once"));
        assert!(fault(&["bridge=br0"], &["1:1"]).contains("--publish"));
        assert!(fault(&["none"], &["1:1"]).contains("--publish"));
        assert!(fault(&["lan"; 8], &[]).contains("at most 7"));
        let twice = ["lan,mac=02:00:00:00:00:01", "lan,mac=02:00:00:00:00:01"];
        assert!(fault(&twice, &[]).contains("twice"));
    }
}
