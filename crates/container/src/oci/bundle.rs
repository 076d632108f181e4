//! The bundle: `config.json` and where paths in it begin (runtime-spec,
//! `bundle.md`).

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::capabilities;
use super::error::Error;
use super::store::read_bounded;

/// A bundle that was read.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory, absolute, without links.
    pub path: PathBuf,
    /// Its `config.json`, as it is but for unknown capabilities.
    pub text: Vec<u8>,
    /// The same, understood.
    pub spec: Spec,
    /// The capabilities that were passed over, for the log.
    pub unknown: Vec<String>,
}

impl Bundle {
    /// Reads the bundle in a directory; the current one if none is named.
    pub fn read(path: Option<&Path>) -> Result<Self, Error> {
        let given = path.unwrap_or(Path::new("."));
        let path = fs::canonicalize(given)
            .map_err(|error| Error::file("find the bundle", given, error))?;
        let config = path.join("config.json");
        let file = File::open(&config).map_err(|error| Error::file("open", &config, error))?;
        let text = read_bounded(file, &config)?;
        let wrong = |why: String| Error::Content {
            path: config.clone(),
            why,
        };
        let read = capabilities::read(&text, capabilities::OF_BUNDLE)
            .map_err(|error| wrong(error.to_string()))?;
        let (spec, unknown): (Spec, _) = (read.value, read.unknown);
        let changed = match read.text {
            Cow::Borrowed(_) => None,
            Cow::Owned(text) => Some(text),
        };
        let text = changed.unwrap_or(text);
        if !is_known(spec.version()) {
            let version = spec.version();
            return Err(wrong(format!(
                "ociVersion is '{version}'; this program knows versions 1.x.y"
            )));
        }
        Ok(Bundle {
            path,
            text,
            spec,
            unknown,
        })
    }

    /// What its container goes without if it stays in the host's mount
    /// namespace.
    pub fn not_mounted(&self) -> Option<&'static str> {
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
        let own = namespaces
            .unwrap_or_default()
            .iter()
            .any(|one| one.typ() == LinuxNamespaceType::Mount);
        let mounts = self.spec.mounts().as_ref();
        let paths = linux.map(|linux| [linux.masked_paths(), linux.readonly_paths()]);
        if own {
            None
        } else if mounts.is_some_and(|mounts| !mounts.is_empty()) {
            Some("mounts")
        } else {
            let hidden = paths
                .into_iter()
                .flatten()
                .flatten()
                .any(|list| !list.is_empty());
            hidden.then_some("masked or read-only paths")
        }
    }

    /// Its root file system, absolute.
    pub fn rootfs(&self) -> PathBuf {
        let root = self.spec.root().as_ref().map(|root| root.path().as_path());
        self.path.join(root.unwrap_or(Path::new("rootfs")))
    }
}

/// Versions of the specification are semantic ones (runtime-spec, `config.md`,
/// Specification version): all that begin with 1 are understood.
fn is_known(version: &str) -> bool {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u32>> = numbers.split('.').map(|part| part.parse().ok()).collect();
    matches!(parts.as_slice(), [Some(1), Some(_), Some(_)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for known in ["1.0.0", "1.0.2-dev", "1.3.0+more", "1.2.1"] {
            assert!(is_known(known), "{known}");
        }
        for other in [
            "", "1", "1.0", "2.0.0", "0.9.0", "1.0.x", "1.0.0.0", "v1.0.0",
        ] {
            assert!(!is_known(other), "{other}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["{", r#"{"ociVersion":"3.0.0"}"#, r#"{"root":{}}"#] {
            fs::write(directory.path().join("config.json"), text).unwrap();
            let error = Bundle::read(Some(directory.path()))
                .unwrap_err()
                .to_string();
            assert!(error.contains("config.json"), "{error}");
        }
        let none = directory.path().join("none");
        let error = Bundle::read(Some(&none)).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
