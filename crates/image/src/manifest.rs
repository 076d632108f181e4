//! What is known of an image.
//!
//! A manifest is itself a blob, and its digest is the image's id: an id says
//! everything about an image but its names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The version of [`Manifest`] that this Croft writes and reads.
pub const VERSION: u32 = 1;

/// An image's description, in its blob as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Operating system as `ID` in os-release(5) has it: `debian`; `unknown`
    /// where nobody said.
    pub os: String,
    /// Its version as `VERSION_ID` has it: `12`; empty where there is none.
    pub os_version: String,
    /// Processor architecture as `uname -m` has it: `x86_64`.
    pub arch: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Where it came from, in words: `built from debian:12`.
    pub origin: String,
    /// Which [`REVISION`](crate::build::REVISION) of the recipe it was built by,
    /// if it was built; nothing in those of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<u32>,
    /// Whether Croft's guest agent is in it.
    pub agent: bool,
    /// Whether cloud-init is in it, as far as anybody knows: of a disk that was
    /// imported it is assumed.
    pub cloud_init: bool,
    /// The machine form: a whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The form for system containers: a root file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// The form for application containers: layers and their configuration, as
    /// the OCI's image-spec has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,
}

impl Manifest {
    /// The blobs that the image has, with what each is and its length in
    /// bytes.
    pub fn blobs(&self) -> Vec<(&'static str, Digest, u64)> {
        let mut blobs = Vec::new();
        if let Some(disk) = &self.disk {
            blobs.push(("disk", disk.blob, disk.length));
        }
        if let Some(rootfs) = &self.rootfs {
            blobs.push(("root file system", rootfs.blob, rootfs.length));
        }
        if let Some(application) = &self.application {
            let manifest = &application.manifest;
            blobs.push(("OCI manifest", manifest.blob, manifest.length));
            let config = &application.config;
            blobs.push(("configuration", config.blob, config.length));
            let layers = application.layers.iter();
            blobs.extend(layers.map(|layer| ("layer", layer.blob, layer.length)));
        }
        blobs
    }
}

/// A disk image among the blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// What it is.
    pub format: DiskFormat,
    /// Length in bytes of the disk that a guest sees.
    pub virtual_size: u64,
}

/// How a disk is kept in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte, with holes.
    Raw,
    /// QEMU's format, version 2 or 3, without a backing file.
    Qcow2,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        })
    }
}

/// A root file system among the blobs: a tar archive, compressed by zstd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// The blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Length in bytes of the archive when unpacked.
    pub unpacked: u64,
}

/// An image of the OCI's, or of Docker's, which is almost the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Its manifest as it came: its digest is what registries know it by.
    pub manifest: Blob,
    /// Its configuration.
    pub config: Blob,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A blob that others have made and named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// The blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// What it says that it is.
    pub media_type: String,
}

/// A layer: an archive of what it changes of those below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// What it says that it is.
    pub media_type: String,
    /// The digest of the archive when it is not compressed.
    pub diff: Digest,
}
