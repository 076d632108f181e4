//! Importing what others have made: disks, and archives of root file systems.
//!
//! Files are untrusted. A disk is copied as it is, after a look at its header;
//! formats other than raw and qcow2 are converted by qemu-img. An archive is
//! unpacked as [`crate::tree`] says.

mod disk;
pub mod probe;
pub mod qcow2;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use probe::{Compression, Format};

use crate::oci::manifest::Wanted;
use crate::oci::{self, Place};
use crate::progress::Progress;
use crate::store::{Committed, Staging, Store};
use crate::tree::{Limits, Tree};
use crate::{Error, Manifest, forms};

/// What to import.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What it is; none: what it says it is.
    pub format: Option<Format>,
    /// The files under a qcow2 file, downwards.
    pub backing: Vec<PathBuf>,
    /// The name that the image gets.
    pub name: String,
    /// Which image is meant of an archive or layout with several.
    pub wanted: Option<String>,
}

/// Imports a file as an image.
pub fn import(
    store: &Store,
    source: &Source,
    progress: &mut dyn Progress,
    warn: &mut dyn FnMut(&str),
) -> Result<Committed, Error> {
    crate::name::check(&source.name)?;
    let path = &source.path;
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let refused = |why: &str| Error::Refused {
        path: path.clone(),
        why: why.to_owned(),
    };
    let about = file.metadata().map_err(Error::io("look at", path))?;
    if about.is_dir() {
        let place = Place::directory(path)?.ok_or_else(|| {
            refused(
                "it is a directory without oci-layout; of a root file system make a tar archive",
            )
        })?;
        return application(store, store.stage()?, source, place, progress, warn);
    }
    let format = match source.format {
        Some(format) => format,
        None => probe::probe(&file)
            .map_err(Error::io("read", path))?
            .ok_or_else(|| {
                refused(
                    "it is no disk and no archive that is known; a disk without partitions or \
                     file system is taken with --format raw",
                )
            })?,
    };
    let staging = store.stage()?;
    if let Format::Tar(compression) = format
        && is_archive(path, compression)?
    {
        progress.phase("reading the archive");
        let place = Place::archive(path, file, compression, &staging, &mut |done| {
            progress.bytes(done, 0);
        })?;
        return application(store, staging, source, place, progress, warn);
    }
    if source.wanted.is_some() {
        return Err(refused("there is only one image in it; leave out --ref"));
    }
    let mut manifest = match format {
        Format::Tar(compression) => {
            if !source.backing.is_empty() {
                return Err(refused("it is an archive; leave out --backing"));
            }
            archive(path, file, compression, &staging, progress)?
        }
        _ => forms::describe_disk(disk::take(
            path,
            &mut file,
            format,
            &source.backing,
            &staging,
            progress,
        )?),
    };
    manifest.origin = origin(path);
    staging.commit(&manifest, &source.name)
}

fn origin(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    format!("imported from {name}")
}

/// Imports an image of the OCI's, or one of `docker save`.
fn application(
    store: &Store,
    staging: Staging,
    source: &Source,
    mut place: Place,
    progress: &mut dyn Progress,
    warn: &mut dyn FnMut(&str),
) -> Result<Committed, Error> {
    if !source.backing.is_empty() {
        return Err(Error::Refused {
            path: source.path.clone(),
            why: "it is no qcow2 file; leave out --backing".to_owned(),
        });
    }
    let wanted = Wanted {
        name: source.wanted.as_deref(),
    };
    let application = oci::take(store, &staging, &mut place, &wanted, progress)?;
    let origin = origin(&source.path);
    oci::commit(
        store,
        staging,
        application,
        origin,
        &source.name,
        progress,
        warn,
    )
}

/// Whether an archive is one of an image.
fn is_archive(path: &Path, compression: Compression) -> Result<bool, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let file = BufReader::with_capacity(1 << 16, file);
    let reader = decoder(file, compression).map_err(Error::io("read", path))?;
    Ok(oci::is_archive(reader))
}

/// Imports an archive: a disk comes of it if it has a kernel.
fn archive(
    path: &Path,
    file: File,
    compression: Compression,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Manifest, Error> {
    let mut tree = Tree::create(&staging.path("tree"))?;
    let total = file.metadata().map_or(0, |about| about.len());
    progress.phase("unpacking");
    let file = BufReader::with_capacity(1 << 16, file);
    let reader = decoder(file, compression).map_err(Error::io("read", path))?;
    // How far the archive's end is cannot be told of a compressed one.
    let total = if compression == Compression::None {
        total
    } else {
        0
    };
    tree.unpack(reader, path, Limits::default(), &mut |done| {
        progress.bytes(done, total);
    })?;
    let mut manifest = forms::describe(&tree);
    if has_kernel(&tree) {
        manifest.disk = Some(forms::disk(&tree, staging, progress)?);
    }
    manifest.rootfs = Some(forms::rootfs(&tree, staging, progress)?);
    Ok(manifest)
}

/// Whether a machine could boot from it.
fn has_kernel(tree: &Tree) -> bool {
    let named = |name: &String| name.starts_with("vmlinuz") || name.starts_with("vmlinux");
    tree.names("boot").iter().any(named) || tree.has("vmlinuz")
}

/// Reads an archive, decompressed.
pub(crate) fn decoder<'a>(
    file: impl BufRead + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        Compression::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            // A window of 128 MiB; what needs more was made to hurt.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
    })
}

/// Writes an archive's contents, decompressed, somewhere.
pub(crate) fn decompress_zstd(from: File, to: &mut dyn Write) -> io::Result<u64> {
    let from = BufReader::with_capacity(1 << 16, from);
    io::copy(&mut decoder(from, Compression::Zstd)?, to)
}
