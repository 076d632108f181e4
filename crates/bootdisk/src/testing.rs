//! File systems for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use croft_disk::{Disk, RawDisk};

use crate::error::BootError;
use crate::filesystem::FileSystem;

/// Files by their paths.
pub struct Tree(BTreeMap<String, Vec<u8>>);

impl Tree {
    /// Of these.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let mut tree = Tree(BTreeMap::new());
        for (path, text) in files {
            tree.add(path, text);
        }
        tree
    }

    /// Adds one.
    pub fn add(&mut self, path: &str, text: &str) {
        self.0.insert(path.to_owned(), text.as_bytes().to_vec());
    }
}

impl FileSystem for Tree {
    fn exists(&self, path: &str) -> Result<bool, BootError> {
        let below = format!("{path}/");
        let mut paths = self.0.keys();
        Ok(paths.any(|there| there == path || there.starts_with(&below)))
    }

    fn read(&self, path: &str, _: u64) -> Result<Option<Vec<u8>>, BootError> {
        Ok(self.0.get(path).cloned())
    }

    fn list(&self, path: &str) -> Result<Vec<String>, BootError> {
        let below = format!("{}/", path.trim_end_matches('/'));
        let inside = self.0.keys().filter_map(|there| there.strip_prefix(&below));
        let names: BTreeSet<&str> = inside
            .map(|rest| rest.split_once('/').map_or(rest, |(name, _)| name))
            .collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }
}

/// A disk of these bytes.
pub fn disk(bytes: &[u8]) -> Arc<dyn Disk> {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(RawDisk::new(file, true).unwrap())
}
