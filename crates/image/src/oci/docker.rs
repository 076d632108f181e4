//! What `docker save` wrote before it wrote layouts: `manifest.json` with the
//! paths of configurations and layers, which have no digests of their own but
//! those in the configuration.

use std::io::{Read, Seek};

use oci_spec::image::{DescriptorBuilder, ImageManifestBuilder, MediaType};
use serde::Deserialize;

use super::manifest::{self, LONGEST, Wanted};
use super::place::Place;
use crate::import::probe::{Compression, Format, probe};
use crate::manifest::{Application, Blob, Layer};
use crate::progress::Progress;
use crate::store::{Staging, Store};
use crate::{Digest, Error, forms, media};

/// An image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Stores the blobs of the image that is wanted, and a manifest for them.
pub fn take(
    store: &Store,
    staging: &Staging,
    place: &mut Place,
    list: &[u8],
    wanted: &Wanted<'_>,
    progress: &mut dyn Progress,
) -> Result<Application, Error> {
    let origin = place.origin().to_owned();
    let refused = |why: String| Error::Refused {
        path: origin.clone(),
        why,
    };
    let saved = pick(list, wanted).map_err(&refused)?;
    let config = place
        .small(&saved.config)?
        .ok_or_else(|| refused("its configuration is missing".to_owned()))?;
    let diffs = manifest::diffs(&config).map_err(&refused)?;
    let paths = saved.layers.unwrap_or_default();
    if paths.len() != diffs.len() {
        return Err(refused(format!(
            "it has {} layers, and its configuration knows of {}",
            paths.len(),
            diffs.len()
        )));
    }
    progress.phase("copying the layers");
    let mut layers = Vec::new();
    for (path, diff) in paths.iter().zip(diffs) {
        let mut file = place
            .open(path)?
            .ok_or_else(|| refused(format!("its layer '{}' is missing", path.escape_debug())))?;
        let length = file.metadata().map_or(0, |about| about.len());
        forms::need_space(store.root(), length)?;
        let compression = match probe(&file).map_err(Error::io("read", &origin))? {
            Some(Format::Tar(compression)) => compression,
            // An empty archive has no mark.
            _ => Compression::None,
        };
        let media_type = match compression {
            Compression::None => media::LAYER.to_owned(),
            Compression::Gzip => format!("{}+gzip", media::LAYER),
            Compression::Zstd => format!("{}+zstd", media::LAYER),
            _ => {
                return Err(refused(
                    "its layers are compressed in an unknown way".to_owned(),
                ));
            }
        };
        file.rewind().map_err(Error::io("read", &origin))?;
        let (blob, length) = staging.take_any(&mut file.take(length))?;
        if compression == Compression::None && blob != diff {
            return Err(refused(format!(
                "its layer '{}' has the digest sha256:{blob}, not the one that its \
                 configuration says",
                path.escape_debug()
            )));
        }
        layers.push(Layer {
            blob,
            length,
            media_type,
            diff,
        });
    }
    let config = Blob {
        blob: staging.write(&config)?,
        length: config.len() as u64,
        media_type: media::CONFIG.to_owned(),
    };
    let bytes = manifest_of(&config, &layers).map_err(&refused)?;
    Ok(Application {
        manifest: Blob {
            blob: staging.write(&bytes)?,
            length: bytes.len() as u64,
            media_type: media::MANIFEST.to_owned(),
        },
        config,
        layers,
    })
}

fn pick(list: &[u8], wanted: &Wanted<'_>) -> Result<Saved, String> {
    debug_assert!(list.len() as u64 <= LONGEST);
    let all: Vec<Saved> =
        serde_json::from_slice(list).map_err(|error| format!("its manifest.json: {error}"))?;
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let known = manifest::listed(all.iter().flat_map(tags));
    let mut fitting: Vec<Saved> = all
        .into_iter()
        .filter(|saved| {
            wanted
                .name
                .is_none_or(|name| tags(saved).iter().any(|tag| manifest::is_name(tag, name)))
        })
        .collect();
    match (fitting.pop(), fitting.is_empty(), wanted.name) {
        (Some(saved), true, _) => Ok(saved),
        (Some(_), false, _) => Err(format!(
            "there are several images in it; name one with --ref; {known}"
        )),
        (None, _, Some(name)) => Err(format!(
            "there is no image '{}' in it; {known}",
            name.escape_debug()
        )),
        (None, _, None) => Err("there is no image in it".to_owned()),
    }
}

/// The OCI's manifest of an image; the same image gives the same bytes.
fn manifest_of(config: &Blob, layers: &[Layer]) -> Result<Vec<u8>, String> {
    let descriptor = |media_type: &str, blob: &Digest, length: u64| {
        let digest: oci_spec::image::Digest = format!("sha256:{blob}").parse()?;
        DescriptorBuilder::default()
            .media_type(MediaType::from(media_type))
            .digest(digest)
            .size(length)
            .build()
    };
    let layers: Result<Vec<_>, _> = layers
        .iter()
        .map(|layer| descriptor(&layer.media_type, &layer.blob, layer.length))
        .collect();
    let manifest = layers.and_then(|layers| {
        ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(&config.media_type, &config.blob, config.length)?)
            .layers(layers)
            .build()
    });
    manifest
        .map_err(|error| error.to_string())
        .and_then(|manifest| serde_json::to_vec(&manifest).map_err(|error| error.to_string()))
}
