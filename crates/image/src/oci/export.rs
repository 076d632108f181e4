//! From the store to an archive of the OCI's layout, which `docker load` takes
//! as well.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::manifest::Blob;
use crate::progress::Progress;
use crate::store::{Image, Store};
use crate::{Error, media};

/// Writes an image to an archive. `target` is its name in messages.
pub fn export(
    store: &Store,
    image: &Image,
    to: impl Write,
    target: &Path,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let Some(application) = &image.manifest.application else {
        return Err(Error::Lacks {
            image: image.title(),
            what: "layers of an application",
            remedy: "export it as raw, qcow2 or tar",
        });
    };
    let layers = application.layers.iter().map(|layer| Blob {
        blob: layer.blob,
        length: layer.length,
        media_type: layer.media_type.clone(),
    });
    let mut blobs = vec![application.manifest.clone(), application.config.clone()];
    let paths: Vec<String> = layers.clone().map(|layer| path_of(&layer)).collect();
    blobs.extend(layers);
    blobs.sort_by_key(|blob| blob.blob);
    blobs.dedup_by_key(|blob| blob.blob);
    let mut annotations = serde_json::Map::new();
    if let Some(name) = image.names.first() {
        let key = "io.containerd.image.name";
        annotations.insert(key.to_owned(), name.as_str().into());
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        if !tag.contains('/') {
            let key = "org.opencontainers.image.ref.name";
            annotations.insert(key.to_owned(), tag.into());
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media::INDEX,
        "manifests": [{
            "mediaType": application.manifest.media_type,
            "digest": format!("sha256:{}", application.manifest.blob),
            "size": application.manifest.length,
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": annotations,
        }],
    });
    let saved = json!([{
        "Config": path_of(&application.config),
        "RepoTags": image.names.iter().filter(|name| !name.contains('@')).collect::<Vec<_>>(),
        "Layers": paths,
    }]);
    let written = || -> io::Result<()> {
        let mut archive = Builder::new(to);
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        small(&mut archive, "oci-layout", &layout.to_string())?;
        small(&mut archive, "index.json", &index.to_string())?;
        small(&mut archive, "manifest.json", &saved.to_string())?;
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = header(EntryType::Directory, 0);
            archive.append_data(&mut header, directory, io::empty())?;
        }
        let total = blobs
            .iter()
            .fold(0, |sum: u64, blob| sum.saturating_add(blob.length));
        let mut done = 0u64;
        for blob in &blobs {
            let file = File::open(store.blob(&blob.blob))?;
            if file.metadata()?.len() != blob.length {
                return Err(io::Error::other("a blob has another length than it had"));
            }
            let mut header = header(EntryType::Regular, blob.length);
            archive.append_data(&mut header, path_of(blob), file.take(blob.length))?;
            done = done.saturating_add(blob.length);
            progress.bytes(done, total);
        }
        archive.into_inner()?.flush()
    };
    written().map_err(Error::io("write", target))
}

fn path_of(blob: &Blob) -> String {
    format!("blobs/sha256/{}", blob.blob)
}

fn small(archive: &mut Builder<impl Write>, path: &str, text: &str) -> io::Result<()> {
    let mut header = header(EntryType::Regular, text.len() as u64);
    archive.append_data(&mut header, path, text.as_bytes())
}

/// Of root's, as old as Unix: the same image gives the same archive.
fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory {
        0o755
    } else {
        0o644
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}
