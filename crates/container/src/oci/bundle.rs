//! The bundle: `config.json` and where paths in it begin (runtime-spec,
//! `bundle.md`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::error::Error;
use super::store::read_bounded;

/// A bundle that was read.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory, absolute, without links.
    pub path: PathBuf,
    /// Its `config.json`, as it is.
    pub text: Vec<u8>,
    /// The same, understood.
    pub spec: Spec,
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
        let spec = serde_json::from_slice(&text).map_err(|error| Error::Content {
            path: config,
            why: error.to_string(),
        })?;
        Ok(Bundle { path, text, spec })
    }

    /// Its root file system, absolute.
    pub fn rootfs(&self) -> PathBuf {
        let root = self.spec.root().as_ref().map(|root| root.path().as_path());
        self.path.join(root.unwrap_or(Path::new("rootfs")))
    }
}
