//! The rules of all networks, as nft(8) reads them.
//!
//! Two tables, one for packets (family `inet`, file `packets.rs`) and one for
//! the frames that enter by a NIC (family `bridge`, file `frames.rs`). Both
//! are replaced as a whole in one transaction: the kernel has the old rules or
//! the new ones, and nobody else's are touched. All that goes into the text
//! has been checked: names of networks, instances and interfaces have no
//! character that means something to nft, and the rest are numbers.

mod frames;
mod packets;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use croft_api::net::NicLimits;

use super::config::NetworkConfig;
use super::name::NetworkName;
use super::store::{Attachment, Place};

/// What the rules follow from.
#[derive(Clone, Debug)]
pub struct Ruleset<'a> {
    /// The name of the tables.
    pub table: &'a str,
    /// The networks that are started.
    pub networks: &'a [(NetworkName, NetworkConfig)],
    /// The NICs that are attached.
    pub attachments: &'a [Attachment],
    /// The host forwards IPv4 because of us alone.
    pub guard4: bool,
    /// The host forwards IPv6 because of us alone.
    pub guard6: bool,
}

impl Ruleset<'_> {
    /// What nft is given.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.replace(&mut text, "inet", packets::chains);
        self.replace(&mut text, "bridge", frames::chains);
        text
    }

    /// Whether nothing has to be filtered or translated.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.attachments.is_empty()
    }

    /// Whether anything depends on them.
    pub fn is_needed(&self) -> bool {
        let filtered = |attachment: &Attachment| {
            let free = matches!(attachment.place, Place::Bridge { spoofing: true, .. });
            !free || attachment.limits != NicLimits::default()
        };
        !self.networks.is_empty() || self.attachments.iter().any(filtered)
    }

    fn replace(&self, text: &mut String, family: &str, chains: impl FnOnce(&Self, &mut String)) {
        let table = self.table;
        // Deleting a table that is not there would be an error: it is made
        // first.
        let _ = writeln!(text, "add table {family} {table}");
        let _ = writeln!(text, "delete table {family} {table}");
        if self.is_empty() {
            return;
        }
        let _ = writeln!(text, "table {family} {table} {{");
        chains(self, text);
        text.push_str("}\n");
    }
}

/// Writes a chain.
fn chain(text: &mut String, name: &str, lines: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    for line in lines {
        let _ = writeln!(text, "\t\t{line}");
    }
    text.push_str("\t}\n");
}

/// A set of nft's.
fn set<T: std::fmt::Display>(members: impl IntoIterator<Item = T>) -> String {
    let members: Vec<String> = members
        .into_iter()
        .map(|member| member.to_string())
        .collect();
    format!("{{ {} }}", members.join(", "))
}
