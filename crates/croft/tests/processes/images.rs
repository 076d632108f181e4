//! A tiny image: one static program under many names, in the form of an OCI
//! layout.

use std::fs;
use std::path::{Path, PathBuf};

use croft_image::Digest;
use serde_json::{Value, json};

use crate::stage::Stage;

/// Names of the program.
const NAMES: [&str; 24] = [
    "sh", "true", "false", "cat", "echo", "sleep", "ls", "id", "env", "seq", "stty", "mkdir", "ps",
    "hostname", "pwd", "tr", "head", "dd", "touch", "kill", "nproc", "mount", "stat", "rm",
];
/// The image's name.
pub const IMAGE: &str = "tiny";

/// The program, if this machine has it.
pub fn busybox() -> Option<PathBuf> {
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/busybox");
    cached.is_file().then_some(cached)
}

impl Stage {
    /// Whether containers can be tested here; says why not. The image is there
    /// then.
    pub fn with_image(&self) -> bool {
        let Some(busybox) = busybox() else {
            println!("skipped: busybox is missing; scripts/fetch-busybox has one");
            return false;
        };
        if !rustix::process::geteuid().is_root() {
            println!("skipped: these tests look at control groups and ids, as root");
            return false;
        }
        let layout = self.path("data/layout");
        write(&layout, &busybox, &json!({}));
        let file = layout.to_string_lossy();
        let (code, said) = self.ask(&["image", "import", &file, IMAGE]);
        assert_eq!(code, Some(0), "{said}");
        // What is wrong with the host is no fault of what is tested.
        let (code, said) =
            self.ask(&["run", "--container", "--rm", "--net", "none", IMAGE, "true"]);
        if code != Some(0) && said.contains("not permitted") {
            println!("skipped: no containers here: {said}");
            return false;
        }
        assert_eq!(code, Some(0), "{said}");
        true
    }

    /// One more image, whose configuration has this beside its program.
    pub fn import(&self, name: &str, config: &Value) {
        let layout = self.path(&format!("data/layout-{name}"));
        write(&layout, &busybox().unwrap(), config);
        let (code, said) = self.ask(&["image", "import", &layout.to_string_lossy(), name]);
        assert_eq!(code, Some(0), "{said}");
    }
}

/// Writes a layout (image-spec, `image-layout.md`).
fn write(layout: &Path, busybox: &Path, more: &Value) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |media: &str, bytes: &[u8]| -> Value {
        let digest = Digest::of(bytes).to_string();
        let hex = digest.strip_prefix("sha256:").unwrap_or(&digest);
        fs::write(blobs.join(hex), bytes).unwrap();
        json!({"mediaType": media, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layer = layer(&fs::read(busybox).unwrap());
    let diff = blob("application/vnd.oci.image.layer.v1.tar", &layer);
    let mut config = json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"], "WorkingDir": "/"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    let about = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff["digest"]]},
    });
    let about = serde_json::to_vec(&about).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", &about),
        "layers": [diff],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [blob("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(layout.join("oci-layout"), version.to_string()).unwrap();
}

fn layer(program: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("dev", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("root", 0o700),
        ("srv", 0o755),
        ("tmp", 0o1777),
    ] {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        archive.append_data(&mut header, path, &[][..]).unwrap();
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    let group = b"root:x:0:\nwww:x:34:\nstaff:x:50:web\n";
    for (path, mode, bytes) in [
        ("bin/busybox", 0o755, program),
        ("etc/passwd", 0o644, &passwd[..]),
        ("etc/group", 0o644, &group[..]),
        ("etc/plain", 0o644, b"not a program\n"),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len());
        archive.append_data(&mut header, path, bytes).unwrap();
    }
    for name in NAMES {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        let path = format!("bin/{name}");
        archive.append_link(&mut header, path, "busybox").unwrap();
    }
    archive.into_inner().unwrap()
}
