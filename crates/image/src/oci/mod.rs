//! Images of the OCI's, as directories and archives of its layout
//! (image-spec, `image-layout.md`), and as `docker save` writes them.
//!
//! ```text
//! layout, archive ──Place──► index ──platform──► manifest ─► configuration, layers
//! registry ─────────────────────────────────────────┘              │
//!                                                  blobs, verified ◄┘
//! ```
//!
//! All of it is untrusted: lengths are bounded, digests are computed of what
//! was stored and not of what was read before, and names in archives and
//! layouts are looked up, never followed.

mod archive;
mod docker;
mod export;
pub mod manifest;
mod place;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use export::export;
pub use place::{Place, is_archive};

use crate::layer::Stack;
use crate::manifest::Application;
use crate::progress::Progress;
use crate::store::{Committed, Staging, Store};
use crate::{Error, Manifest, forms, media};
use manifest::{Described, Wanted, Way};

/// Most bytes of os-release(5) that are read.
const RELEASE: u64 = 64 << 10;

/// Finds the image that is wanted in a place, and stores its blobs.
pub fn take(
    store: &Store,
    staging: &Staging,
    place: &mut Place,
    wanted: &Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<Application, Error> {
    let origin = place.origin().to_owned();
    let refused = |why: String| Error::Refused {
        path: origin.clone(),
        why,
    };
    let text = place.small("index.json")?;
    let Some(index) = text else {
        let Some(list) = place.small("manifest.json")? else {
            return Err(refused(
                "it has no index.json, as the OCI's images have, and no manifest.json, as those \
                 of docker save"
                    .to_owned(),
            ));
        };
        return docker::take(store, staging, place, &list, wanted, progress);
    };
    let mut way = Way::from(index, media::INDEX, wanted);
    while let Some(next) = way.ahead().map_err(&refused)? {
        let bytes = place
            .small(&blob_path(&next))?
            .ok_or_else(|| refused(format!("its manifest {next} is missing")))?;
        way.follow(&next, bytes).map_err(&refused)?;
    }
    let (bytes, media_type) = way.end();
    let described = Described::parse(&bytes, &media_type).map_err(&refused)?;
    let config = place
        .small(&blob_path(&described.config))?
        .ok_or_else(|| refused(format!("its configuration {} is missing", described.config)))?;
    let diffs = described.diffs(&config).map_err(&refused)?;
    let layers = described.layers.iter();
    let total = layers.fold(0u64, |sum, layer| sum.saturating_add(layer.length));
    forms::need_space(store.root(), total)?;
    progress.phase("copying the layers");
    let mut done = 0u64;
    for layer in &described.layers {
        if !store.has_blob(&layer.digest, layer.length) {
            let path = blob_path(layer);
            let mut file = place
                .open(&path)?
                .ok_or_else(|| refused(format!("its layer {layer} is missing")))?;
            let mut reader = Told {
                inner: &mut file,
                done,
                total,
                progress,
            };
            staging
                .take(&mut reader, &layer.digest, layer.length)
                .map_err(|error| named(error, &origin))?;
        }
        done = done.saturating_add(layer.length);
    }
    staging.write(&config)?;
    staging.write(&bytes)?;
    Ok(described.application(&bytes, &media_type, diffs))
}

/// Makes an image of an application whose blobs are stored: unpacks its layers,
/// which checks the last digests, and gives it its name.
pub fn commit(
    store: &Store,
    staging: Staging,
    application: Application,
    origin: String,
    name: &str,
    progress: &mut dyn Progress,
    warn: &mut dyn FnMut(&str),
) -> Result<Committed, Error> {
    let config = store.read_small(&application.config.blob)?;
    let mut manifest = Manifest {
        version: crate::manifest::VERSION,
        os: "unknown".to_owned(),
        os_version: String::new(),
        arch: "x86_64".to_owned(),
        created: manifest::created(&config),
        origin,
        recipe: None,
        agent: false,
        cloud_init: false,
        disk: None,
        rootfs: None,
        application: Some(application),
    };
    let (lowers, _) = store.unpack(&staging, &manifest, name, progress, warn)?;
    if let Some((os, version)) = system(&lowers) {
        (manifest.os, manifest.os_version) = (os, version);
    }
    progress.phase("storing");
    staging.commit(&manifest, name)
}

/// What the layers say that they are.
fn system(lowers: &[PathBuf]) -> Option<(String, String)> {
    let stack = Stack::open(lowers).ok()?;
    let found = stack.resolve(Path::new("etc/os-release")).ok()??;
    if found.kind() != rustix::fs::FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    let file = found.open().ok()?;
    file.take(RELEASE).read_to_end(&mut text).ok()?;
    Some(forms::release(&text))
}

/// Says of which file a blob is refused.
fn named(error: Error, origin: &Path) -> Error {
    match error {
        Error::Refused { path, why } => Error::Refused {
            path: origin.to_owned(),
            why: format!("{}: {why}", path.display()),
        },
        other => other,
    }
}

/// Where a layout has a blob.
fn blob_path(descriptor: &manifest::Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest)
}

/// What is read, with word of how far it is.
struct Told<'a, R> {
    inner: R,
    done: u64,
    total: u64,
    progress: &'a mut dyn Progress,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done = self.done.saturating_add(count as u64);
        self.progress.bytes(self.done, self.total);
        Ok(count)
    }
}
