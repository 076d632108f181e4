//! The user network: `passt`, a child of the monitor; for containers `pasta`.
//!
//! A guest's frames go over a socket to passt, which plays their other end:
//! it answers ARP, NDP and DHCP itself and turns connections, datagrams and
//! pings into sockets of the user who runs the machine. That takes no right on
//! the host and no interface.
//!
//! ```text
//!  guest ── virtio-net ── croft-vmm (jailed) ══ socket ══ passt ── sockets ── the world
//!                                                          ▲
//!                        croft-monitor ── starts, watches ─┘
//! ```
//!
//! passt ends when its socket does, and the other end of that is the vmm's
//! alone. It has a controlling terminal besides, the other end of which is the
//! monitor's: should it no longer look at its socket, it is hung up. Whichever
//! process is killed, none is left.
//!
//! A container's frames go to a tap in its network namespace, which stays when
//! pasta does not, with its addresses and routes; all that pasta's end and its
//! next start do to it is its carrier.
//!
//! ```text
//!  programs ── tap eth0 │ pasta ── sockets ── the world
//!  (the container's     │   ▲
//!   namespace)              └ croft-monitor: starts, watches, has its terminal
//! ```
//!
//! pasta has no socket that could end, but a terminal as passt has. (A signal
//! for the death of its parent would not outlive its change of rights.)
//!
//! # Addresses
//!
//! They are the same for every machine on every host, and lead nowhere else:
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | the guest | [`GUEST`]`/24` | [`GUEST6`]`/64`, and one made of its MAC |
//! | its gateway | [`GATEWAY`] | [`GATEWAY6`] |
//! | forwards DNS to the host's first resolver | [`RESOLVER`] | [`RESOLVER6`] |

mod child;
mod command;
mod hello;
mod host;
mod link;
mod pasta;
mod program;
mod publish;
mod retry;
mod spawn;

use std::net::{Ipv4Addr, Ipv6Addr};

use croft_api::net::{MTU_MAX, Mac};

pub use child::{Passt, StartError};
pub use host::Host;
pub use pasta::{ContainerEnd, names};
pub use program::{Missing, Program, find};
pub use publish::{PublishFault, check};
pub use retry::Retry;

/// The guest's address. Nobody's network by default, so that hardly anything
/// that a guest wants to reach is hidden behind it.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 199, 15, 15);
/// The guest's gateway, which is no host: nothing listens there.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 199, 15, 1);
/// What is asked here by DNS, the host's first resolver answers.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 199, 15, 3);
/// Bits of the network's part of [`GUEST`].
pub const PREFIX: u8 = 24;
/// As [`GUEST`]: a unique local address (RFC 4193) of a prefix made by chance.
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xFDC7, 0x0FB1, 0x4E3A, 0, 0, 0, 0, 0x15);
/// As [`GATEWAY`]: of the link, as a router's is (RFC 4861, 4.2).
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0xC7, 0xF01);
/// As [`RESOLVER`].
pub const RESOLVER6: Ipv6Addr = Ipv6Addr::new(0xFDC7, 0x0FB1, 0x4E3A, 0, 0, 0, 0, 3);
/// The gateway's MAC; without one, passt shows the guest the host's.
pub const GATEWAY_MAC: [u8; 6] = [Mac::PREFIX[0], Mac::PREFIX[1], Mac::PREFIX[2], 0, 0, 1];
/// The MTU, unless another one is wanted. Frames never leave the host, so the
/// largest is the fastest.
pub const MTU: u16 = MTU_MAX;

/// Whether a line that passt said, with quotes escaped or not, is worth an
/// operator's time.
pub fn is_news(line: &str) -> bool {
    const NOISE: [&str; 4] = [
        // Where there is no syslog, one such line follows each other line.
        "Failed to send ",
        "Don't run as root",
        "No interfaces with usable IPv6 routes",
        // It has been given some, or there are none.
        "Couldn't get any nameserver address",
    ];
    let line = line.trim().replace('\\', "");
    !line.is_empty() && !NOISE.iter().any(|noise| line.starts_with(noise))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_known_however_it_is_written() {
        for noise in [
            "",
            "Don\\'t run as root. Changing to nobody...",
            "Failed to send 3 bytes to syslog",
        ] {
            assert!(!is_news(noise), "{noise}");
        }
        assert!(is_news("Failed to bind any port for '-t 80:80', exiting"));
    }
}
