//! The image store.
//!
//! ```text
//! name ──index──► id = digest of a manifest ──► blobs: disk, root file system
//! ```
//!
//! Blobs are named by their contents and never change. An image is there as
//! soon as the index names it, which is the last step of making one, and a
//! rename; it is gone as soon as the index does not, which is the first step
//! of deleting it. So a kill at any point leaves a whole image or none, and
//! what else it leaves is removed when the store is next opened (`sweep.rs`).
//! [`layout`] says what lies where; its locks keep processes apart.

pub(crate) mod durable;
mod index;
mod layers;
pub mod layout;
mod lock;
mod staging;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use index::Index;
use layout::Layout;
pub(crate) use lock::Lock;

pub use staging::{Committed, Staging};
pub use sweep::{Swept, remove as remove_tree};

use crate::{Digest, Error, Manifest, manifest};

/// A store in a directory.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    swept: Swept,
}

/// An image of a store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its manifest.
    pub id: Digest,
    /// Its names; an image that lost its last one to another has none.
    pub names: Vec<String>,
    /// What is known of it.
    pub manifest: Manifest,
    /// The path of its disk; never written to.
    pub disk: Option<PathBuf>,
    /// The path of its root file system's archive; never written to.
    pub rootfs: Option<PathBuf>,
}

impl Image {
    /// Its first name, or else twelve digits of its id.
    pub fn title(&self) -> String {
        self.names
            .first()
            .cloned()
            .unwrap_or_else(|| self.id.short())
    }

    /// Its disk and what it is, for those who cannot do without one.
    pub fn machine_disk(&self) -> Result<(&Path, &manifest::Disk), Error> {
        match (&self.disk, &self.manifest.disk) {
            (Some(path), Some(disk)) => Ok((path, disk)),
            _ => Err(Error::Lacks {
                image: self.title(),
                what: "disk",
                remedy: "only containers can be made from it",
            }),
        }
    }
}

/// Keeps images from being deleted or renamed while an instance that is to use
/// one is written down.
#[derive(Debug)]
pub struct Hold {
    _lock: Lock,
}

/// What [`Store::delete`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Deleted {
    /// The image is gone.
    Image(Digest),
    /// The image had other names, and keeps them.
    Name(Digest),
}

/// What is wrong with an image, by [`Store::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
}

impl Store {
    /// Opens the store in a directory, which is made if it is not there, and
    /// removes what crashes left in it.
    pub fn open(root: &Path) -> Result<Store, Error> {
        let layout = Layout::new(root);
        let directories = [
            layout.blobs(),
            layout.layers(),
            layout.partial(),
            layout.staging(),
        ];
        for directory in directories {
            durable::make_directory(&directory)?;
        }
        // An index of another version must not be swept by.
        Index::read(&layout)?;
        let swept = sweep::sweep(&layout)?;
        Ok(Store { layout, swept })
    }

    /// What opening it removed.
    pub fn swept(&self) -> Swept {
        self.swept
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The image that has a name, or an id or beginning of an id of at least
    /// eight digits.
    pub fn resolve(&self, reference: &str) -> Result<Image, Error> {
        let index = Index::read(&self.layout)?;
        let id = index.find(reference)?;
        load(&self.layout, id, index.names(&id).unwrap_or_default())
    }

    /// All images, by their titles. One that cannot be read is an error in its
    /// place.
    pub fn list(&self) -> Result<Vec<Result<Image, Error>>, Error> {
        let index = Index::read(&self.layout)?;
        let mut images: Vec<_> = index
            .images()
            .map(|(id, names)| load(&self.layout, *id, names))
            .collect();
        images.sort_by_key(|image| {
            let image = image.as_ref().ok();
            (
                image.is_none_or(|image| image.names.is_empty()),
                image.map(Image::title),
            )
        });
        Ok(images)
    }

    /// Whether a blob is there already.
    pub fn has_blob(&self, digest: &Digest, length: u64) -> bool {
        fs::metadata(self.layout.blob(digest)).is_ok_and(|about| about.len() == length)
    }

    /// Where a blob is.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.layout.blob(digest)
    }

    /// Where a blob is that is on its way.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.layout.partial().join(digest.to_string())
    }

    /// The contents of a small blob, looked at whether they are still the same.
    pub(crate) fn read_small(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.layout.blob(digest);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        if Digest::of(&bytes) == *digest {
            return Ok(bytes);
        }
        Err(Error::Damaged {
            image: digest.short(),
            why: format!("'{}' was changed", path.display()),
        })
    }

    /// Begins a new image.
    pub fn stage(&self) -> Result<Staging, Error> {
        Staging::new(&self.layout)
    }

    /// Keeps images where they are until the hold is dropped.
    pub fn hold(&self) -> Result<Hold, Error> {
        Lock::shared(&self.layout.index_lock()).map(|lock| Hold { _lock: lock })
    }

    /// Gives an image the name `to`, in place of the name `from`; or one more
    /// name, if `from` is an id.
    pub fn rename(&self, from: &str, to: &str) -> Result<Image, Error> {
        let _lock = Lock::exclusive(&self.layout.index_lock())?;
        let mut index = Index::read(&self.layout)?;
        let id = index.rename(from, to)?;
        index.write(&self.layout)?;
        load(&self.layout, id, index.names(&id).unwrap_or_default())
    }

    /// Gives an image one more name.
    pub fn tag(&self, from: &str, to: &str) -> Result<Image, Error> {
        let _lock = Lock::exclusive(&self.layout.index_lock())?;
        let mut index = Index::read(&self.layout)?;
        let id = index.tag(from, to)?;
        index.write(&self.layout)?;
        load(&self.layout, id, index.names(&id).unwrap_or_default())
    }

    /// Takes a name away; an image without a further one is removed, unless
    /// `users` names instances that use it. `users` is called while nobody can
    /// [`hold`](Store::hold) the store.
    pub fn delete(
        &self,
        reference: &str,
        users: impl FnOnce(&Digest) -> Vec<String>,
    ) -> Result<Deleted, Error> {
        let lock = Lock::exclusive(&self.layout.index_lock())?;
        let mut index = Index::read(&self.layout)?;
        let id = index.find(reference)?;
        if !index.remove(reference, &id) {
            index.write(&self.layout)?;
            return Ok(Deleted::Name(id));
        }
        let instances = users(&id);
        if !instances.is_empty() {
            return Err(Error::InUse {
                image: reference.to_owned(),
                instances,
            });
        }
        index.write(&self.layout)?;
        drop(lock);
        sweep::sweep(&self.layout)?;
        Ok(Deleted::Image(id))
    }

    /// Removes the images that have no name, except those that `used` says are
    /// used. Their ids.
    pub fn prune(&self, used: impl Fn(&Digest) -> bool) -> Result<Vec<Digest>, Error> {
        let lock = Lock::exclusive(&self.layout.index_lock())?;
        let mut index = Index::read(&self.layout)?;
        let unused: Vec<Digest> = index
            .images()
            .filter(|(id, names)| names.is_empty() && !used(id))
            .map(|(id, _)| *id)
            .collect();
        for id in &unused {
            index.remove("", id);
        }
        if !unused.is_empty() {
            index.write(&self.layout)?;
        }
        drop(lock);
        sweep::sweep(&self.layout)?;
        sweep::partial(&self.layout, Duration::ZERO)?;
        Ok(unused)
    }

    /// Reads all of an image and compares it with the digests. `progress` is
    /// told each blob's length before it is read.
    pub fn verify(
        &self,
        reference: &str,
        mut progress: impl FnMut(u64),
    ) -> Result<Verified, Error> {
        let image = self.resolve(reference)?;
        let mut bytes = 0u64;
        for (what, blob, length) in image.manifest.blobs() {
            progress(length);
            let path = self.layout.blob(&blob);
            let damaged = |why: String| Error::Damaged {
                image: image.title(),
                why: format!("its {what} '{}' {why}", path.display()),
            };
            let mut file = File::open(&path).map_err(|error| damaged(format!(": {error}")))?;
            let (digest, found) = Digest::of_file(&mut file)
                .map_err(|error| damaged(format!("cannot be read: {error}")))?;
            if found != length {
                return Err(damaged(format!("is {found} bytes long, not {length}")));
            }
            if digest != blob {
                return Err(damaged("has other contents than were stored".to_owned()));
            }
            bytes = bytes.saturating_add(length);
        }
        Ok(Verified { bytes })
    }
}

/// Reads an image's manifest and checks it.
fn load(layout: &Layout, id: Digest, names: &[String]) -> Result<Image, Error> {
    let damaged = |why: String| Error::Damaged {
        image: names.first().cloned().unwrap_or_else(|| id.short()),
        why,
    };
    let bytes = fs::read(layout.blob(&id))
        .map_err(|error| damaged(format!("its manifest cannot be read: {error}")))?;
    if Digest::of(&bytes) != id {
        return Err(damaged("its manifest was changed".to_owned()));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("its manifest: {error}")))?;
    if manifest.version != manifest::VERSION {
        return Err(damaged(format!(
            "its manifest is of version {}, this Croft knows {}",
            manifest.version,
            manifest::VERSION
        )));
    }
    Ok(Image {
        id,
        names: names.to_vec(),
        disk: manifest.disk.as_ref().map(|disk| layout.blob(&disk.blob)),
        rootfs: manifest
            .rootfs
            .as_ref()
            .map(|rootfs| layout.blob(&rootfs.blob)),
        manifest,
    })
}
