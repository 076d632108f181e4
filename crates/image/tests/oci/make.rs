//! Images to test with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use croft_image::Digest;
use serde_json::{Value, json};
use tar::{Builder, Header};

/// How layers are compressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Packed {
    Plain,
    Gzip,
    Zstd,
}

/// An image: blobs, and which of them is the manifest.
#[derive(Clone)]
pub struct Made {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifest: Value,
    pub config: Value,
    pub layers: Vec<Vec<u8>>,
    pub plain: Vec<Vec<u8>>,
}

pub fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// An archive of a layer with these files.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, contents) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(contents.len() as u64);
        // The library's own way refuses what is to be refused here.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn pack(bytes: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::Plain => bytes.to_vec(),
        Packed::Gzip => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(bytes).unwrap();
            to.finish().unwrap()
        }
        Packed::Zstd => zstd::encode_all(bytes, 3).unwrap(),
    }
}

/// Two layers, the second of which changes the first; Docker's media types or
/// the OCI's.
pub fn web(packed: Packed, docker: bool) -> Made {
    let first = layer(&[
        ("bin/serve", b"served"),
        ("etc/motd", b"first"),
        ("etc/gone", b"x"),
        ("etc/os-release", b"ID=croft-test\nVERSION_ID=\"7\"\n"),
    ]);
    let second = layer(&[("etc/motd", b"second"), ("etc/.wh.gone", b"")]);
    of(vec![first, second], packed, docker, "amd64")
}

/// Of these layers.
pub fn of(plain: Vec<Vec<u8>>, packed: Packed, docker: bool, architecture: &str) -> Made {
    let diffs: Vec<String> = plain.iter().map(|l| format!("sha256:{}", hex(l))).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2023-11-14T22:13:20Z",
        "config": {"Entrypoint": ["/bin/serve"], "Env": ["PATH=/bin", "A=b"], "Cmd": null},
        "rootfs": {"type": "layers", "diff_ids": diffs}, "history": [],
    });
    let layers: Vec<Vec<u8>> = plain.iter().map(|layer| pack(layer, packed)).collect();
    let kind = match (docker, packed) {
        (false, Packed::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (false, Packed::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (false, Packed::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (true, Packed::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    };
    let mut made = Made {
        blobs: BTreeMap::new(),
        manifest: Value::Null,
        config,
        layers,
        plain,
    };
    made.describe(kind, docker);
    made
}

impl Made {
    /// Makes manifest and blobs of the rest.
    pub fn describe(&mut self, kind: &str, docker: bool) {
        let config = self.config.to_string().into_bytes();
        let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{}", hex(bytes))});
        let (own, configuration) = match docker {
            true => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            false => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
        };
        let layers: Vec<Value> = self.layers.iter().map(|l| descriptor(kind, l)).collect();
        self.manifest = json!({
            "schemaVersion": 2, "mediaType": own,
            "config": descriptor(configuration, &config), "layers": layers,
        });
        self.blobs.insert(hex(&config), config);
        for layer in self.layers.clone() {
            self.blobs.insert(hex(&layer), layer);
        }
        let bytes = self.bytes();
        self.blobs.insert(hex(&bytes), bytes);
    }

    /// The manifest's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// The manifest's descriptor.
    pub fn descriptor(&self, name: Option<&str>, platform: Option<&str>) -> Value {
        let bytes = self.bytes();
        let mut descriptor = json!({
            "mediaType": self.manifest["mediaType"], "size": bytes.len(),
            "digest": format!("sha256:{}", hex(&bytes)),
        });
        if let Some(name) = name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        if let Some(architecture) = platform {
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        }
        descriptor
    }
}

/// An index of descriptors.
pub fn index(descriptors: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
           "manifests": descriptors})
}

/// A layout in a directory.
pub fn layout(directory: &Path, blobs: &BTreeMap<String, Vec<u8>>, index: &Value) -> PathBuf {
    let place = directory.join("blobs/sha256");
    fs::create_dir_all(&place).unwrap();
    fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    for (name, bytes) in blobs {
        fs::write(place.join(name), bytes).unwrap();
    }
    directory.to_owned()
}

/// The files of a directory as an archive.
pub fn archive(directory: &Path, target: &Path) -> PathBuf {
    let mut builder = Builder::new(File::create(target).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all("", directory).unwrap();
    builder.finish().unwrap();
    target.to_owned()
}

/// What `docker save` wrote before version 25: layers in directories, of which
/// equal ones are links.
pub fn saved(target: &Path, images: &[(&Made, &str)]) -> PathBuf {
    let mut builder = Builder::new(File::create(target).unwrap());
    let mut file = |path: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
    };
    let mut list = Vec::new();
    for (number, (made, tag)) in images.iter().enumerate() {
        let config = made.config.to_string().into_bytes();
        let name = format!("{}.json", hex(&config));
        let mut layers = Vec::new();
        for (place, layer) in made.plain.iter().enumerate() {
            let path = format!("{}/layer.tar", hex(format!("{number}{place}").as_bytes()));
            file(&path, layer);
            layers.push(path);
        }
        file(&name, &config);
        list.push(json!({"Config": name, "RepoTags": [tag], "Layers": layers}));
    }
    file("manifest.json", Value::from(list).to_string().as_bytes());
    builder.finish().unwrap();
    target.to_owned()
}
