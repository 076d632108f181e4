//! The first message in each direction.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::WireError;

/// A protocol as one program speaks it. Both ends must speak the same
/// version: the three programs are installed together, and a mixture is an
/// installation gone wrong that is better named than worked around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its version; moves with every change to its messages.
    pub version: u32,
}

/// States what a program speaks. Its own shape never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`Protocol::name`].
    pub protocol: String,
    /// [`Protocol::version`].
    pub version: u32,
    /// Version of Croft, for people.
    pub croft: String,
}

impl Hello {
    /// What this build says.
    pub fn new(protocol: Protocol) -> Self {
        Hello {
            protocol: protocol.name.to_owned(),
            version: protocol.version,
            croft: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Accepts the greeting of `peer`, or says why not.
    pub fn check(&self, protocol: Protocol, peer: &'static str) -> Result<(), WireError> {
        if self.protocol == protocol.name && self.version == protocol.version {
            return Ok(());
        }
        Err(WireError::Version {
            peer,
            theirs: self.to_string(),
            ours: Hello::new(protocol).to_string(),
        })
    }
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A peer chooses these texts: keep what is printed short and plain.
        let plain = |text: &str| -> String {
            text.chars()
                .filter(|c| c.is_ascii_graphic())
                .take(32)
                .collect()
        };
        write!(
            f,
            "{} version {} (Croft {})",
            plain(&self.protocol),
            self.version,
            plain(&self.croft)
        )
    }
}
