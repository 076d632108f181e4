//! Layers, unpacked once each, for containers.
//!
//! ```text
//! layer of an image ──not there──► staging ──whole, on the disk──► layers/ID
//!        └──────────────there already──────────────────────────────────┘
//! ```
//!
//! A layer's id is that of the image-spec's chain (`config.md`, "Layer
//! ChainID"): the digest of what it is and of all below it, because what a
//! layer does not say of the directories on its way is as it is below.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::{Image, Staging, Store, durable};
use crate::container::{ContainerConfig, ContainerImage, Owners, Role};
use crate::import::probe::Compression;
use crate::layer::{self, Left, Rights, Source, Stack};
use crate::progress::Progress;
use crate::tree::Limits;
use crate::{Digest, Error, Manifest, media, rootless};

/// The version of a layer's `about.json` that this Croft writes.
const VERSION: u32 = 1;

/// What is known of an unpacked layer, in its `about.json`.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    owners: Owners,
    left: Left,
}

/// The layers of an image with their ids, the lowest first.
pub fn chain(manifest: &Manifest) -> Vec<(Digest, Source)> {
    if let Some(application) = &manifest.application {
        let mut below: Option<Digest> = None;
        return application
            .layers
            .iter()
            .map(|layer| {
                let id = match below {
                    Some(below) => {
                        Digest::of(format!("sha256:{below} sha256:{}", layer.diff).as_bytes())
                    }
                    None => layer.diff,
                };
                below = Some(id);
                let source = Source {
                    compression: media::compression(&layer.media_type).unwrap_or(Compression::None),
                    blob: layer.blob,
                    diff: Some(layer.diff),
                };
                (id, source)
            })
            .collect();
    }
    let rootfs = manifest.rootfs.iter().map(|rootfs| {
        let source = Source {
            compression: Compression::Zstd,
            blob: rootfs.blob,
            diff: None,
        };
        (rootfs.blob, source)
    });
    rootfs.collect()
}

impl Store {
    /// What a container needs of an image. Layers that are not unpacked yet
    /// are, which takes as long as it takes; `warn` hears what this user cannot
    /// have of them. An image that somebody [holds](Store::hold) can be asked
    /// for this too.
    pub fn container(
        &self,
        image: &Image,
        progress: &mut dyn Progress,
        warn: &mut dyn FnMut(&str),
    ) -> Result<ContainerImage, Error> {
        let (role, config) = self.use_of(image)?;
        let title = image.title();
        let owners = Owners::here();
        let lowers = match self.unpacked(&image.manifest, &owners) {
            Some(lowers) => lowers,
            None => {
                let staging = self.stage()?;
                let made = self.unpack(&staging, &image.manifest, &title, progress, warn)?;
                made.0
            }
        };
        Ok(ContainerImage {
            role,
            lowers,
            owners,
            config,
        })
    }

    /// The trees of an image, if all are there.
    fn unpacked(&self, manifest: &Manifest, owners: &Owners) -> Option<Vec<PathBuf>> {
        let place = |id: &Digest| self.layout.layers().join(owners.named(id)).join(TREE);
        let trees: Vec<PathBuf> = chain(manifest).iter().map(|(id, _)| place(id)).collect();
        trees.iter().all(|tree| tree.is_dir()).then_some(trees)
    }

    /// Unpacks the layers of an image that are not there, and has the trees of
    /// all, the lowest first. `title` is what messages call it.
    pub(crate) fn unpack(
        &self,
        staging: &Staging,
        manifest: &Manifest,
        title: &str,
        progress: &mut dyn Progress,
        warn: &mut dyn FnMut(&str),
    ) -> Result<(Vec<PathBuf>, Owners), Error> {
        let owners = Owners::here();
        let mut lowers: Vec<PathBuf> = Vec::new();
        let mut left = Left::default();
        let mut any = false;
        let layers = chain(manifest);
        let count = layers.len();
        let work = Work {
            layout: &self.layout,
            staging,
            owners: &owners,
            title,
        };
        for (number, (id, source)) in layers.iter().enumerate() {
            let place = self.layout.layers().join(owners.named(id));
            if !place.join(TREE).is_dir() {
                let number = number.saturating_add(1);
                progress.phase(&format!("unpacking layer {number} of {count}"));
                let what = work.unpack(source, &place, &lowers, progress)?;
                left.devices = left.devices.saturating_add(what.devices);
                left.attributes = left.attributes.saturating_add(what.attributes);
                any = true;
            }
            lowers.push(place.join(TREE));
        }
        if left != Left::default() {
            warn(&format!(
                "image {title}: {} devices and {} extended attributes of its files were left \
                 out, which only root can make",
                left.devices, left.attributes
            ));
        }
        if any && owners == Owners::Flat {
            warn(&format!(
                "image {title}: all its files belong to this user, who has no subordinate ids; \
                 as root, once: apt-get install uidmap && usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 USER"
            ));
        }
        Ok((lowers, owners))
    }

    /// What is to be run in a container of an image, and how; nothing is
    /// unpacked.
    pub fn use_of(&self, image: &Image) -> Result<(Role, ContainerConfig), Error> {
        let Some(application) = &image.manifest.application else {
            return match image.manifest.rootfs {
                Some(_) => Ok((Role::System, ContainerConfig::system())),
                None => Err(Error::Lacks {
                    image: image.title(),
                    what: "root file system for containers",
                    remedy: "only machines can be made from it",
                }),
            };
        };
        let damaged = |why: String| Error::Damaged {
            image: image.title(),
            why: format!("its configuration {why}"),
        };
        let path = self.layout.blob(&application.config.blob);
        let bytes = fs::read(&path).map_err(|error| damaged(format!("cannot be read: {error}")))?;
        if Digest::of(&bytes) != application.config.blob {
            return Err(damaged("was changed".to_owned()));
        }
        let config = ContainerConfig::parse(&bytes).map_err(damaged)?;
        Ok((Role::Application, config))
    }
}

/// The directory of a layer's files in the layer's own.
const TREE: &str = "tree";
/// What is known of a layer.
const ABOUT: &str = "about.json";

struct Work<'a> {
    layout: &'a Layout,
    staging: &'a Staging,
    owners: &'a Owners,
    title: &'a str,
}

impl Work<'_> {
    /// Unpacks a layer to where it belongs. It is there whole, or not at all.
    fn unpack(
        &self,
        source: &Source,
        place: &Path,
        lowers: &[PathBuf],
        progress: &mut dyn Progress,
    ) -> Result<Left, Error> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let made = self.staging.path(&format!("layer.{name}"));
        let tree = made.join(TREE);
        durable::make_directory(&tree)?;
        let blob = self.layout.blob(&source.blob);
        let total = fs::metadata(&blob).map_or(0, |about| about.len());
        let mut told = 0u64;
        let mut tell = |done: u64| {
            if done.saturating_sub(told) >= STEP {
                told = done;
                progress.bytes(done, total);
            }
        };
        let left =
            unpack_here(&blob, source, &tree, lowers, self.owners, &mut tell).map_err(|error| {
                match error {
                    Error::Refused { why, .. } => Error::Damaged {
                        image: self.title.to_owned(),
                        why: format!("a layer of it ('{}') is refused: {why}", blob.display()),
                    },
                    other => other,
                }
            })?;
        let about = About {
            version: VERSION,
            owners: self.owners.clone(),
            left,
        };
        let path = made.join(ABOUT);
        let bytes = serde_json::to_vec(&about).map_err(|error| Error::Store {
            path: path.clone(),
            why: error.to_string(),
        })?;
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        // All of its files at once.
        let directory = File::open(&made).map_err(Error::io("open", &made))?;
        rustix::fs::syncfs(&directory).map_err(Error::io("write", &made))?;
        match durable::rename(&made, place) {
            // Another process was faster.
            Err(_) if place.join(TREE).is_dir() => Ok(left),
            Err(error) => Err(error),
            Ok(()) => Ok(left),
        }
    }
}

/// Bytes between two words about progress.
const STEP: u64 = 4 << 20;

fn unpack_here(
    blob: &Path,
    source: &Source,
    tree: &Path,
    lowers: &[PathBuf],
    owners: &Owners,
    progress: &mut dyn FnMut(u64),
) -> Result<Left, Error> {
    if matches!(owners, Owners::Mapped { .. }) {
        return rootless::unpack(owners, blob, source, tree, lowers);
    }
    let below = Stack::open(lowers).map_err(Error::io("open the layers below", tree))?;
    let rights = Rights {
        owners: *owners != Owners::Flat,
    };
    layer::unpack(
        blob,
        source,
        tree,
        &below,
        rights,
        Limits::default(),
        progress,
    )
}
