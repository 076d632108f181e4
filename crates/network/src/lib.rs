//! What the NICs of instances are joined to.
//!
//! * [`user`]: the user network, which needs no rights: a `passt` beside the
//!   monitor turns a guest's packets into sockets of the user.

pub mod user;
