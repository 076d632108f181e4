//! What the NICs of instances are joined to.
//!
//! * [`Networks`]: managed networks of root's, with addresses, names, a way to
//!   the world and a firewall; and bridges of the host's.
//! * [`user`]: the user network, which needs no rights: a `passt` beside the
//!   monitor turns a guest's packets into sockets of the user.

mod addresses;
mod link;
mod managed;
mod names;
mod namespace;
mod shape;
pub mod user;

pub use addresses::addresses_of;
pub use managed::*;
pub use names::Names;
pub use namespace::{Home, bring_up_loopback};
