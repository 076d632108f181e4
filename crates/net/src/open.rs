//! Making taps: for the process that may.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open, stat};
use thiserror::Error;

use crate::HEADER_LEN;
use crate::guard::guard;
use crate::sys::{self, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ};

/// Where taps are made.
const DEVICE: &str = "/dev/net/tun";
/// Most queues of a tap (`MAX_TAP_QUEUES`, linux/drivers/net/tun.c).
const QUEUES_MAX: usize = 256;

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// The device.
    #[error("cannot open {DEVICE}: {0}; load the module 'tun', or run as a user who may")]
    Open(#[source] io::Error),
    /// The name.
    #[error(
        "'{0}' cannot be an interface's name; it has 1 to 15 bytes, without '/', ':' and spaces"
    )]
    Name(String),
    /// Their number.
    #[error("a tap has 1 to {QUEUES_MAX} queues, not {0}")]
    Queues(usize),
    /// The interface.
    #[error("cannot make interface '{name}': {source}")]
    Interface {
        /// Its name.
        name: String,
        /// What the host answered.
        source: io::Error,
    },
}

impl TapError {
    /// The host's own error, if it is one.
    pub fn host(&self) -> Option<&io::Error> {
        match self {
            TapError::Open(error) | TapError::Interface { source: error, .. } => Some(error),
            TapError::Name(_) | TapError::Queues(_) => None,
        }
    }
}

/// Opens `queues` queues of tap `name`, for [`Tap`](crate::Tap). The
/// interface is made if there is none of that name, and vanishes with the
/// last descriptor; `%d` in the name becomes a number that is free. Returns
/// the name that it has. It is down, and in no bridge.
pub fn open_tap(name: &str, queues: usize) -> Result<(String, Vec<OwnedFd>), TapError> {
    if queues == 0 || queues > QUEUES_MAX {
        return Err(TapError::Queues(queues));
    }
    let mut name = name_bytes(name)?;
    let many = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | many;
    let mut opened = Vec::with_capacity(queues);
    for _ in 0..queues {
        let how = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let queue = open(DEVICE, how, Mode::empty()).map_err(|e| TapError::Open(e.into()))?;
        let failed = |source| TapError::Interface {
            name: text(name),
            source,
        };
        let made = sys::set_interface(queue.as_fd(), name, flags).map_err(failed)?;
        sys::set_header_len(queue.as_fd(), HEADER_LEN as libc::c_int).map_err(failed)?;
        // Nothing is left to the guest before it says what it takes.
        sys::set_offload(queue.as_fd(), 0).map_err(failed)?;
        // The further ones are of the same interface.
        name = made;
        opened.push(queue);
    }
    Ok((text(name), opened))
}

/// Makes a tap that stays until it is deleted, or its network namespace is:
/// for another program that takes its frames, without the header that
/// [`Tap`](crate::Tap) has, and those to loopback addresses left out; whether
/// they are, which takes rights. It is down, and without a carrier as long as
/// nobody has it open. One that is there already is made so.
pub fn make_tap(name: &str) -> Result<bool, TapError> {
    let name = name_bytes(name)?;
    let how = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = open(DEVICE, how, Mode::empty()).map_err(|e| TapError::Open(e.into()))?;
    sys::set_interface(tap.as_fd(), name, IFF_TAP | IFF_NO_PI)
        .and_then(|_| sys::set_persistent(tap.as_fd()))
        .map_err(|source| TapError::Interface {
            name: text(name),
            source,
        })?;
    Ok(guard(tap.as_fd()).is_ok())
}

/// Whether every user of this host can open taps, which takes rights over
/// their network namespace besides.
pub fn taps_are_for_all() -> bool {
    stat(DEVICE)
        .is_ok_and(|about| Mode::from_raw_mode(about.st_mode).contains(Mode::ROTH | Mode::WOTH))
}

fn name_bytes(name: &str) -> Result<[u8; IFNAMSIZ], TapError> {
    let wrong = |byte: u8| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace();
    let mut bytes = [0; IFNAMSIZ];
    if name.is_empty()
        || name.len() >= IFNAMSIZ
        || matches!(name, "." | "..")
        || name.bytes().any(wrong)
    {
        return Err(TapError::Name(name.to_owned()));
    }
    for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    Ok(bytes)
}

fn text(name: [u8; IFNAMSIZ]) -> String {
    let end = name.iter().position(|byte| *byte == 0);
    let name = name.get(..end.unwrap_or(IFNAMSIZ)).unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for name in ["", "sixteen-bytes-16", "a/b", "a:b", "a b", "..", "a\0b"] {
            assert!(
                matches!(open_tap(name, 1), Err(TapError::Name(_))),
                "{name}"
            );
        }
        for queues in [0, 257] {
            assert!(matches!(open_tap("t", queues), Err(TapError::Queues(_))));
        }
        assert_eq!(
            text(name_bytes("fifteen-bytes-1").unwrap()),
            "fifteen-bytes-1"
        );
    }
}
