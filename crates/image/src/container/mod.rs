//! What containers get of an image: directories for their root, and what the
//! image says is to be run in it.
//!
//! ```text
//! blobs ──unpack, once──► layers/ID/tree ─┐
//!                         layers/ID/tree ─┴─► ContainerImage ─► lower directories of an overlay
//! configuration ─────────────────────────────►
//! ```

mod config;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Digest;

pub use config::{ContainerConfig, Healthcheck, Port};

/// What an image is to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerImage {
    /// What is run in it.
    pub role: Role,
    /// Directories with the layers of its root, the lowest first: overlayfs'
    /// `lowerdir` wants them the other way round. Never written to; they stay
    /// as long as the store has the image.
    pub lowers: Vec<PathBuf>,
    /// Whose the files in them are.
    pub owners: Owners,
    /// What the image says of its use.
    pub config: ContainerConfig,
}

/// What is run in a container of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One program, as its configuration says.
    Application,
    /// `/sbin/init`, which brings up a whole system.
    System,
}

/// Whose the files in unpacked layers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owners {
    /// A file of the image's user N belongs to the host's user N: root has
    /// unpacked it. A container with ids of its own mounts it id-mapped.
    Host,
    /// It belongs to what the maps say: a user with subordinate ids has
    /// unpacked it, in a user namespace with these maps. A container with the
    /// same maps sees the image's owners.
    Mapped {
        /// Of user ids.
        uids: Vec<IdMap>,
        /// Of group ids.
        gids: Vec<IdMap>,
    },
    /// All of it belongs to the user who has unpacked it.
    Flat,
}

impl Owners {
    /// Of what this process unpacks.
    pub(crate) fn here() -> Owners {
        if rustix::process::geteuid().is_root() {
            Owners::Host
        } else {
            crate::rootless::maps().unwrap_or(Owners::Flat)
        }
    }

    /// What the directory of a layer with these owners is called: by the
    /// layer's id, and by what else tells it apart.
    pub(crate) fn named(&self, layer: &Digest) -> String {
        match self {
            Owners::Host => layer.to_string(),
            Owners::Flat => format!("{layer}.flat"),
            Owners::Mapped { uids, gids } => {
                let maps = format!("{uids:?}{gids:?}");
                format!("{layer}.{}", Digest::of(maps.as_bytes()).short())
            }
        }
    }
}

/// Ids of a user namespace, as a line of `/proc/PID/uid_map` has them
/// (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first id inside.
    pub inside: u32,
    /// What it is outside.
    pub outside: u32,
    /// How many follow each other.
    pub count: u32,
}
