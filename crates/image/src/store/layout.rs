//! Where things are in a store.
//!
//! ```text
//! images/
//!   blobs/HEX       contents by their SHA-256; manifests are blobs too
//!   partial/HEX     blobs on their way from a registry; a week long
//!   layers/ID/      layers unpacked: tree/, and about.json
//!   index.json      ids of the images, with their names
//!   staging/        what is being made; nothing in it outlives its maker
//!   lock            shared: someone makes something; exclusive: sweeping
//!   index.lock      shared: the index must not change; exclusive: it does
//! ```

use std::path::{Path, PathBuf};

use crate::Digest;

/// The paths of a store.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of the store in this directory.
    pub fn new(root: &Path) -> Layout {
        Layout {
            root: root.to_owned(),
        }
    }

    /// The directory of all of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// A blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.to_string())
    }

    /// The directory of the blobs that are on their way.
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// The directory of the layers that are unpacked.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Where things are made.
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// The lock against sweeping.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The lock of the index.
    pub fn index_lock(&self) -> PathBuf {
        self.root.join("index.lock")
    }
}
