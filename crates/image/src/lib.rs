//! Images: what instances are made from.
//!
//! ```text
//! packages ──build──►┐
//! qcow2, raw, vmdk ──►├─import─► staging ──commit──► store ──resolve──► instance
//! rootfs tarball ────►┘                                └──export──► file
//! ```
//!
//! * [`store`]: images by name and by content, whole or not there.
//! * [`container`]: what containers get of an image.
//! * [`oci`], [`registry`]: images that others have made for containers.
//! * [`volume`]: what outlives containers.
//! * [`Manifest`]: what is known of an image.
//!
//! Everything that is read here is somebody else's: names from the command
//! line, files from the net, a store that a crash or another program left.
//! None of it makes this crate panic, or write outside of the store.

pub mod build;
pub mod container;
pub mod digest;
mod error;
pub mod export;
pub mod filesystem;
mod forms;
pub mod import;
pub mod layer;
pub mod manifest;
pub mod media;
pub mod name;
pub mod oci;
mod program;
pub mod progress;
pub mod registry;
pub mod rootless;
pub mod seed;
pub mod store;
pub mod tree;
pub mod volume;

pub use container::{ContainerImage, Role};
pub use digest::Digest;
pub use error::Error;
pub use manifest::{DiskFormat, Manifest};
pub use store::{Image, Store, remove_tree};
