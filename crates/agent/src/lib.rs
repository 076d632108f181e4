//! The agent in a machine's guest, and the host's side of talking to it.
//!
//! ```text
//! croft exec, cp, …  ─ client ─┐                 ┌─ guest ─ croft-agent
//!                              connection, tree ─┘
//!          host                    vsock                 guest
//! ```
//!
//! [`client`] is for the host, [`guest`] for the program that runs in the
//! guest; both speak `croft_api::agent` over a [`connection`], and send and
//! receive files as [`tree`] says. Each takes the other for hostile: the host
//! since guests are, the guest since a fault on the host should not become one
//! in all its guests.

pub mod client;
pub mod connection;
mod error;
pub mod guest;
pub mod tree;

pub use error::AgentError;
