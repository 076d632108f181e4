//! Where a NIC's frames go.
//!
//! ```text
//! virtio-net ──Backend──► Tap      queues of a tap interface of the host's
//!                    └──► Stream   a socket: each frame behind its length
//! ```
//!
//! A [`Backend`] is made of descriptors that are open already. Only
//! [`open_tap`], which a process with the right to do so calls, makes some;
//! [`make_tap`] makes an interface for another program.
//!
//! A guest leaves work to its NIC: checksums, and the cutting of large
//! packets. What a [`Header`] says of it a tap hands on to the host's kernel;
//! for a stream it is done here ([`finish`]). So a guest is offered
//! the same whatever is behind its NIC, and one can take the other's place.
//!
//! Nothing here waits, and nothing grows beyond a few frames.

mod backend;
mod checksum;
mod guard;
mod header;
mod martian;
mod offload;
mod open;
mod packet;
mod stream;
mod sys;
mod tap;

pub use backend::{Backend, Receiver, Sent};
pub use header::{GSO_ECN, GSO_NONE, GSO_TCP_V4, GSO_TCP_V6, GSO_UDP, HEADER_LEN, Header};
pub use offload::{Malformed, complete, finish};
pub use open::{TapError, make_tap, open_tap, taps_are_for_all};
pub use stream::Stream;
pub use tap::{Offloads, Tap};

/// Longest frame: an Ethernet header and the largest MTU, and a little more,
/// for VLAN tags. It is what passt takes, too.
pub const FRAME_MAX: usize = 65535;
/// Bytes of an Ethernet header (IEEE 802.3, without tags).
pub const ETHERNET: usize = 14;

/// The other end is gone for good: the socket's peer has closed it, or the
/// interface was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network's end is gone")]
pub struct Lost;
