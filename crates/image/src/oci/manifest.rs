//! Indexes, manifests and configurations: which image is meant, and what it is
//! made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use oci_spec::image::{Arch, Descriptor as Given, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::container::ContainerConfig;
use crate::manifest::{Application, Blob, Layer};
use crate::{Digest, media};

/// Longest index, manifest or configuration, in bytes: what registries take.
pub const LONGEST: u64 = 4 << 20;
/// Most layers: no image that Docker makes or takes has more than 127. Looking
/// for a file in all of them opens four directories of each at most, where a
/// process has 1024 descriptors.
const LAYERS: usize = 128;
/// Most indexes on the way to a manifest.
const DEPTH: usize = 4;
/// Longest layer in bytes: more than any image in use has.
const LAYER: u64 = 64 << 30;

/// Which image is wanted of several.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Its name in the place that has it; none if there is only one anyway.
    pub name: Option<&'a str>,
}

/// What a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.digest)
    }
}

impl Descriptor {
    fn of(given: &Given, longest: u64) -> Result<Descriptor, String> {
        let digest = given.digest();
        let known = Some(digest.as_ref())
            .and_then(|text| text.strip_prefix("sha256:"))
            .and_then(Digest::parse);
        let shown = digest.as_ref().escape_debug().to_string();
        let Some(digest) = known else {
            return Err(format!("the digest '{shown}' is not one of SHA-256"));
        };
        if given.size() > longest {
            let length = given.size();
            return Err(format!(
                "'{shown}' has {length} bytes; {longest} are allowed"
            ));
        }
        Ok(Descriptor {
            media_type: given.media_type().to_string(),
            digest,
            length: given.size(),
        })
    }
}

/// The way from an index, or a manifest, to the manifest of the image that is
/// wanted, for linux/amd64.
///
/// ```text
/// index ─ahead─► descriptor ─its contents─► follow ─► ... ─ahead─► none: it is the manifest
/// ```
#[derive(Debug)]
pub struct Way<'a> {
    bytes: Vec<u8>,
    media_type: String,
    name: Option<&'a str>,
    left: usize,
}

impl<'a> Way<'a> {
    /// From these bytes, whose digest is known to be right.
    pub fn from(bytes: Vec<u8>, media_type: &str, wanted: &Wanted<'a>) -> Way<'a> {
        Way {
            bytes,
            media_type: media_type.to_owned(),
            name: wanted.name,
            left: DEPTH,
        }
    }

    /// What comes next; none if this is the manifest. Or what is wrong.
    pub fn ahead(&mut self) -> Result<Option<Descriptor>, String> {
        if media::is_manifest(&self.media_type) {
            unambiguous(&self.bytes, &["manifests"])?;
            return Ok(None);
        }
        if !media::is_index(&self.media_type) {
            let kind = self.media_type.escape_debug();
            return Err(format!("it is of the kind '{kind}', which is no image"));
        }
        unambiguous(&self.bytes, &["config", "layers"])?;
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            format!("there are more than {DEPTH} indexes on the way to a manifest")
        })?;
        pick(&self.bytes, &self.media_type, self.name.take()).map(Some)
    }

    /// Goes on with what `ahead` has said, if these are its contents.
    pub fn follow(&mut self, next: &Descriptor, bytes: Vec<u8>) -> Result<(), String> {
        if bytes.len() as u64 != next.length || Digest::of(&bytes) != next.digest {
            return Err(format!("{next} has other contents"));
        }
        self.bytes = bytes;
        self.media_type.clone_from(&next.media_type);
        Ok(())
    }

    /// The manifest, and what it is.
    pub fn end(self) -> (Vec<u8>, String) {
        (self.bytes, self.media_type)
    }
}

/// Refuses what is a manifest to one program and an index to another: both
/// would take the same digest for different images (CVE-2021-41190). Some
/// programs do not mind how names are written.
fn unambiguous(bytes: &[u8], others: &[&str]) -> Result<(), String> {
    let all: BTreeMap<String, IgnoredAny> =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest: {error}"))?;
    let is_other = |name: &&String| others.iter().any(|other| other.eq_ignore_ascii_case(name));
    match all.keys().find(is_other) {
        None => Ok(()),
        Some(name) => Err(format!(
            "it is a manifest and an index in one, as its '{}' says, and so different images to \
             different programs; whoever made it has to say which it is",
            name.escape_debug()
        )),
    }
}

/// The one of an index that is wanted.
fn pick(bytes: &[u8], media_type: &str, name: Option<&str>) -> Result<Descriptor, String> {
    let index: ImageIndex =
        serde_json::from_slice(bytes).map_err(|error| format!("its index: {error}"))?;
    let own = index.media_type().as_ref().map(ToString::to_string);
    if own.is_some_and(|own| own != media_type) {
        return Err("its index is of another kind than was said".to_owned());
    }
    let usable = |given: &&Given| {
        let kind = given.media_type().to_string();
        media::is_manifest(&kind) || media::is_index(&kind)
    };
    let all: Vec<&Given> = index.manifests().iter().filter(usable).collect();
    let named: Vec<&Given> = match name {
        Some(name) => all
            .iter()
            .copied()
            .filter(|given| names(given).any(|own| is_name(own, name)))
            .collect(),
        None => all.clone(),
    };
    if let (Some(name), true) = (name, named.is_empty()) {
        return Err(format!(
            "there is no image '{}' in it; {}",
            name.escape_debug(),
            listed(all.iter().flat_map(|given| names(given)))
        ));
    }
    let fits = |given: &&&Given| match given.platform() {
        None => true,
        Some(platform) => *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64,
    };
    let mut fitting: Vec<&Given> = named.iter().filter(fits).copied().collect();
    // Of variants of the processor the plainest.
    fitting.sort_by_key(|given| {
        let variant = given
            .platform()
            .as_ref()
            .and_then(|own| own.variant().clone());
        variant
            .filter(|variant| variant != "v1")
            .unwrap_or_default()
    });
    let digests: BTreeSet<&str> = fitting
        .iter()
        .map(|given| given.digest().as_ref())
        .collect();
    // Of one image there are several for kinds of one processor; what has
    // names, or no platform, is different images.
    let apart = |given: &&Given| names(given).next().is_some() || given.platform().is_none();
    let several = digests.len() > 1 && fitting.iter().any(apart);
    match fitting.first() {
        None if named.is_empty() => Err("there is no image in it".to_owned()),
        None => Err(format!(
            "it has no image for linux/amd64; {}",
            listed(named.iter().filter_map(|given| {
                let platform = given.platform().as_ref()?;
                Some(format!("{}/{}", platform.os(), platform.architecture()))
            }))
        )),
        Some(_) if several => Err(format!(
            "there are several images in it; name one with --ref; {}",
            listed(fitting.iter().flat_map(|given| names(given)))
        )),
        Some(given) => Descriptor::of(given, LONGEST),
    }
}

/// What an index calls an image.
fn names(given: &Given) -> impl Iterator<Item = &str> {
    const NAMES: [&str; 2] = [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ];
    let annotations = given.annotations().as_ref();
    NAMES
        .iter()
        .filter_map(move |name| annotations?.get(*name).map(String::as_str))
}

/// Whether a name is the one that is asked for, or ends in it.
pub fn is_name(own: &str, asked: &str) -> bool {
    own == asked
        || own
            .strip_suffix(asked)
            .is_some_and(|before| before.ends_with(['/', ':']))
}

/// "there is ..." of a few names.
pub fn listed<T: AsRef<str>>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<String> = names
        .take(8)
        .map(|name| name.as_ref().chars().take(100).collect::<String>())
        .map(|name| name.escape_debug().to_string())
        .collect();
    if names.is_empty() {
        "nothing in it has a name".to_owned()
    } else {
        format!("there is {}", names.join(", "))
    }
}

/// A manifest of an image, as far as it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Described {
    /// Reads a manifest; or what is wrong with it.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Described, String> {
        let manifest: ImageManifest =
            serde_json::from_slice(bytes).map_err(|error| format!("its manifest: {error}"))?;
        let own = manifest.media_type().as_ref().map(ToString::to_string);
        if manifest.schema_version() != 2 || own.is_some_and(|own| own != media_type) {
            return Err("its manifest is of another kind than was said".to_owned());
        }
        let config = Descriptor::of(manifest.config(), LONGEST)?;
        if !media::is_config(&config.media_type) {
            return Err(format!(
                "it is no image that can be run: its configuration is of the kind '{}'",
                config.media_type.escape_debug()
            ));
        }
        if manifest.layers().len() > LAYERS {
            return Err(format!("it has more than {LAYERS} layers"));
        }
        let mut layers = Vec::new();
        for given in manifest.layers() {
            let layer = Descriptor::of(given, LAYER)?;
            if media::compression(&layer.media_type).is_none() {
                return Err(format!(
                    "its layer {layer} is of the kind '{}', which is not known",
                    layer.media_type.escape_debug()
                ));
            }
            layers.push(layer);
        }
        Ok(Described { config, layers })
    }

    /// The digests of the layers when they are not compressed, as the
    /// configuration has them; or what is wrong with it.
    pub fn diffs(&self, config: &[u8]) -> Result<Vec<Digest>, String> {
        if config.len() as u64 != self.config.length || Digest::of(config) != self.config.digest {
            return Err(format!(
                "its configuration {} has other contents",
                self.config
            ));
        }
        let diffs = diffs(config)?;
        if diffs.len() != self.layers.len() {
            return Err(format!(
                "it has {} layers, and its configuration knows of {}",
                self.layers.len(),
                diffs.len()
            ));
        }
        Ok(diffs)
    }

    /// What the store keeps of it.
    pub fn application(&self, bytes: &[u8], media_type: &str, diffs: Vec<Digest>) -> Application {
        Application {
            manifest: Blob {
                blob: Digest::of(bytes),
                length: bytes.len() as u64,
                media_type: media_type.to_owned(),
            },
            config: Blob {
                blob: self.config.digest,
                length: self.config.length,
                media_type: self.config.media_type.clone(),
            },
            layers: self
                .layers
                .iter()
                .zip(diffs)
                .map(|(layer, diff)| Layer {
                    blob: layer.digest,
                    length: layer.length,
                    media_type: layer.media_type.clone(),
                    diff,
                })
                .collect(),
        }
    }
}

/// What a configuration says beside what is to be run.
#[derive(Deserialize)]
struct About {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    created: Option<String>,
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// The digests of the layers that a configuration has, if it is one of an image
/// that can be run here.
pub fn diffs(config: &[u8]) -> Result<Vec<Digest>, String> {
    ContainerConfig::parse(config).map_err(|why| format!("its configuration: {why}"))?;
    let about: About =
        serde_json::from_slice(config).map_err(|error| format!("its configuration: {error}"))?;
    if about.os != "linux" || about.architecture != "amd64" {
        return Err(format!(
            "it is for {}/{}, and this host is linux/amd64",
            about.os.escape_debug(),
            about.architecture.escape_debug()
        ));
    }
    let diffs = about.rootfs.diff_ids.unwrap_or_default();
    if diffs.len() > LAYERS {
        return Err(format!("it has more than {LAYERS} layers"));
    }
    let diffs = diffs.iter().map(|text| {
        let digest = text.strip_prefix("sha256:").and_then(Digest::parse);
        digest.ok_or_else(|| {
            let shown = text.escape_debug();
            format!("its configuration has '{shown}', which is no digest of SHA-256")
        })
    });
    diffs.collect()
}

/// When an image was made, in seconds since 1970; 0 if its configuration does
/// not say it.
pub fn created(config: &[u8]) -> u64 {
    serde_json::from_slice::<About>(config)
        .ok()
        .and_then(|about| about.created?.parse::<jiff::Timestamp>().ok())
        .and_then(|time| u64::try_from(time.as_second()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(text: &str) -> String {
        format!("sha256:{}", Digest::of(text.as_bytes()))
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": media::CONFIG, "digest": digest("c"), "size": 1},
            "layers": [{"mediaType": media::LAYER, "digest": digest("l"), "size": 1}],
        })
    }

    fn index() -> Value {
        json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": media::MANIFEST, "digest": digest("m"), "size": 1}],
        })
    }

    fn ahead(document: &Value, media_type: &str) -> Result<Option<Descriptor>, String> {
        let bytes = document.to_string().into_bytes();
        Way::from(bytes, media_type, &Wanted::default()).ahead()
    }

    #[test]
    fn what_is_a_manifest_and_an_index_is_neither() {
        assert_eq!(ahead(&manifest(), media::MANIFEST), Ok(None));
        assert!(ahead(&index(), media::INDEX).unwrap().is_some());
        for (kind, other, name) in [
            (media::MANIFEST, index(), "manifests"),
            (media::INDEX, manifest(), "layers"),
            (media::DOCKER_LIST, manifest(), "config"),
        ] {
            for name in [name.to_owned(), name.to_uppercase()] {
                let mut document = match media::is_index(kind) {
                    true => index(),
                    false => manifest(),
                };
                document[&name] = other[name.to_lowercase()].clone();
                let why = ahead(&document, kind).unwrap_err();
                assert!(why.contains("in one"), "{kind} {name}: {why}");
            }
        }
    }

    #[test]
    fn an_index_is_what_it_says() {
        let mut index = index();
        index["mediaType"] = media::INDEX.into();
        assert!(ahead(&index, media::INDEX).is_ok());
        assert!(ahead(&index, media::DOCKER_LIST).is_err());
        index["mediaType"] = media::MANIFEST.into();
        assert!(ahead(&index, media::INDEX).is_err());
    }

    #[test]
    fn no_more_layers_than_can_be_looked_into() {
        let mut many = manifest();
        let layer = many["layers"][0].clone();
        many["layers"] = vec![layer; LAYERS].into();
        let parse = |many: &Value| Described::parse(many.to_string().as_bytes(), media::MANIFEST);
        assert!(parse(&many).is_ok());
        let layers = many["layers"].as_array_mut().unwrap();
        layers.push(layers[0].clone());
        assert!(parse(&many).is_err());
    }
}
