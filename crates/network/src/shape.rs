//! How much an interface sends: a token bucket of the kernel's (tc-tbf(8)),
//! before which frames wait, as before a slow wire.

use std::io;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rustix::io::Errno;

use crate::link::Netlink;

/// What `TCA_OPTIONS` and those in it are called (rtnetlink.h, pkt_sched.h).
const OPTIONS: u16 = 2;
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: a frame is as long as it is (pkt_sched.h).
const ETHERNET: u8 = 1;
/// The queue that an interface has of its own.
const ROOT: TcHandle = TcHandle::ROOT;
/// How ours is called there.
const HANDLE: TcHandle = TcHandle {
    major: 0xC0,
    minor: 0,
};
/// So much as passes in a 50th of a second passes at once; at least a few
/// frames, and no more than the kernel can count down in time.
const BURST_PART: u64 = 50;
const BURST_MIN: u64 = 16 << 10;
const BURST_MAX: u64 = 1 << 20;
/// So much as passes in a tenth of a second waits, at least a segment of TCP's
/// as it passes between interfaces of this host, before it is cut.
const QUEUE_PART: u64 = 10;
const QUEUE_MIN: u64 = 256 << 10;
const QUEUE_MAX: u64 = 16 << 20;

impl Netlink {
    /// Has an interface send at most so many bytes in a second, or as many as
    /// it can. The error is `ENOENT` where the kernel has no token bucket.
    pub fn shape(&mut self, index: u32, rate: Option<u64>) -> io::Result<()> {
        let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = TcMessage::with_index(index);
        message.header.parent = ROOT;
        let Some(rate) = rate else {
            let request = RouteNetlinkMessage::DelQueueDiscipline(message);
            return match self.order(request, 0) {
                // It has none.
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::NOENT | Errno::INVAL)
                    ) =>
                {
                    Ok(())
                }
                done => done,
            };
        };
        message.header.handle = HANDLE;
        message.attributes = vec![
            TcAttribute::Kind("tbf".to_owned()),
            TcAttribute::Other(DefaultNla::new(OPTIONS, options(rate))),
        ];
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.order(request, NLM_F_CREATE | NLM_F_REPLACE)
    }
}

/// The options of a token bucket of so many bytes in a second.
fn options(rate: u64) -> Vec<u8> {
    let part = |of: u64, least: u64, most: u64| {
        let part = (rate / of).clamp(least, most);
        u32::try_from(part).unwrap_or(u32::MAX)
    };
    let burst = part(BURST_PART, BURST_MIN, BURST_MAX);
    let queue = part(QUEUE_PART, QUEUE_MIN, QUEUE_MAX);
    let all = [
        DefaultNla::new(PARMS, parameters(rate, queue)),
        DefaultNla::new(RATE64, rate.to_ne_bytes().to_vec()),
        DefaultNla::new(BURST, burst.to_ne_bytes().to_vec()),
    ];
    let mut bytes = vec![0; all.as_slice().buffer_len()];
    all.as_slice().emit(&mut bytes);
    bytes
}

/// `struct tc_tbf_qopt` (pkt_sched.h): rate, peak rate, queue, burst and frame;
/// the last two are told otherwise.
fn parameters(rate: u64, queue: u32) -> Vec<u8> {
    let mut bytes = ratespec(rate);
    bytes.extend(ratespec(0));
    bytes.extend(queue.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// `struct tc_ratespec`: what is behind the link's kind is for tables that the
/// kernel does without.
fn ratespec(rate: u64) -> Vec<u8> {
    let mut bytes = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    // More is said apart (`TCA_TBF_RATE64`).
    let rate = u32::try_from(rate).unwrap_or(u32::MAX);
    bytes.extend(rate.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_as_long_as_the_kernel_wants_them() {
        let bytes = options(10 << 30);
        // Headers of four bytes, and what is in them.
        assert_eq!(bytes.len(), (4 + 36) + (4 + 8) + (4 + 4));
        assert_eq!(bytes[..4], [40, 0, PARMS as u8, 0]);
        // More than fits into the first.
        assert_eq!(bytes[4 + 8..4 + 12], u32::MAX.to_ne_bytes());
        assert_eq!(bytes[40 + 4..40 + 12], (10u64 << 30).to_ne_bytes());
        // A slow one still takes a frame at once.
        let slow = options(1);
        assert_eq!(slow[56..60], (16u32 << 10).to_ne_bytes());
    }
}
