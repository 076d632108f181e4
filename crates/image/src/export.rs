//! Exporting images to files.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::forms::copy_sparse;
use crate::import::decompress_zstd;
use crate::progress::Progress;
use crate::store::{Image, Store};
use crate::{DiskFormat, Error, oci, program};

/// What an image can be exported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The disk, byte for byte.
    Raw,
    /// The disk, in QEMU's format.
    Qcow2,
    /// The root file system, as an archive.
    Tar,
    /// The same, compressed by zstd.
    TarZstd,
    /// Layers and configuration, as an archive of the OCI's layout.
    Oci,
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Form, String> {
        match text {
            "raw" => Ok(Form::Raw),
            "qcow2" => Ok(Form::Qcow2),
            "tar" => Ok(Form::Tar),
            "tar.zst" => Ok(Form::TarZstd),
            "oci" => Ok(Form::Oci),
            _ => Err("give raw, qcow2, tar, tar.zst or oci".to_owned()),
        }
    }
}

impl Form {
    /// What the end of a file's name says.
    pub fn of(path: &Path) -> Option<Form> {
        let name = path.file_name()?.to_str()?;
        [
            (".qcow2", Form::Qcow2),
            (".raw", Form::Raw),
            (".img", Form::Raw),
            (".oci.tar", Form::Oci),
            (".tar", Form::Tar),
            (".tar.zst", Form::TarZstd),
        ]
        .into_iter()
        .find_map(|(end, form)| name.ends_with(end).then_some(form))
    }
}

/// Writes an image to a file that is not there yet. It is there when it is
/// complete.
pub fn export(
    store: &Store,
    image: &Image,
    target: &Path,
    form: Form,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(Error::Unfit(format!(
            "'{}' exists already; remove it or name another file",
            target.display()
        )));
    }
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".croft-export.")
        .tempfile_in(directory)
        .map_err(Error::io("make a file in", directory))?;
    progress.phase("exporting");
    match form {
        Form::Raw | Form::Qcow2 => disk(image, temporary.path(), form, progress)?,
        Form::Tar | Form::TarZstd => rootfs(image, temporary.path(), form, progress)?,
        Form::Oci => {
            let path = temporary.path();
            let file = File::create(path).map_err(Error::io("make", path))?;
            oci::export(store, image, BufWriter::new(file), target, progress)?;
        }
    }
    let file = File::open(temporary.path()).map_err(Error::io("open", temporary.path()))?;
    file.sync_all().map_err(Error::io("write", target))?;
    temporary
        .persist_noclobber(target)
        .map_err(|error| Error::io("make", target)(error.error))?;
    // Where a directory cannot be synchronised there is nothing more to do.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

fn disk(
    image: &Image,
    target: &Path,
    form: Form,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let (path, disk) = image.machine_disk()?;
    let same = matches!(
        (disk.format, form),
        (DiskFormat::Raw, Form::Raw) | (DiskFormat::Qcow2, Form::Qcow2)
    );
    if same {
        let mut from = File::open(path).map_err(Error::io("open", path))?;
        let mut to = File::create(target).map_err(Error::io("make", target))?;
        copy_sparse(&mut from, &mut to, progress).map_err(Error::io("write", target))?;
        return Ok(());
    }
    let qemu_img = program::need("qemu-img", "qemu-utils")?;
    let format = match form {
        Form::Raw => "raw",
        _ => "qcow2",
    };
    // A disk of the store has no backing file, whatever its header has become.
    let mut source = serde_json::json!({
        "driver": disk.format.to_string(),
        "file": {"driver": "file", "filename": utf8(path)?},
    });
    if disk.format == DiskFormat::Qcow2
        && let Some(fields) = source.as_object_mut()
    {
        fields.insert("backing".to_owned(), serde_json::Value::Null);
    }
    let mut command = program::command(qemu_img.as_os_str());
    command
        .args(["convert", "-O", format])
        .arg(format!("json:{source}"))
        .arg(target);
    program::run("qemu-img", command, |_| ())
}

fn utf8(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    if path.to_str().is_none() {
        return Err(Error::Unfit(format!(
            "'{}' is not UTF-8, which qemu-img wants; set CROFT_DATA_DIR to a directory whose \
             name is",
            path.display()
        )));
    }
    Ok(path)
}

fn rootfs(
    image: &Image,
    target: &Path,
    form: Form,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let Some(path) = &image.rootfs else {
        return Err(Error::Lacks {
            image: image.title(),
            what: "root file system in an archive",
            remedy: if image.manifest.application.is_some() {
                "export it as oci"
            } else {
                "export it as raw or qcow2"
            },
        });
    };
    let mut from = File::open(path).map_err(Error::io("open", path))?;
    let mut to = File::create(target).map_err(Error::io("make", target))?;
    let written = if form == Form::Tar {
        let mut to = BufWriter::new(to);
        decompress_zstd(from, &mut to).and_then(|_| to.flush())
    } else {
        copy_sparse(&mut from, &mut to, progress).map(|_| ())
    };
    written.map_err(Error::io("write", target))
}
