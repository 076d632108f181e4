//! Which instances use a thing, as their configurations say.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

/// The names of the instances whose configuration says so. One whose
/// configuration cannot be read may: it counts.
pub fn of(instances: &Path, uses: impl Fn(&Value) -> bool) -> Vec<String> {
    let entries = fs::read_dir(instances).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| counts(&entry.path().join("config.json"), &uses))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn counts(config: &Path, uses: impl Fn(&Value) -> bool) -> bool {
    let bytes = match fs::read(config) {
        Ok(bytes) => bytes,
        // No instance, or one that is just going.
        Err(error) => {
            return !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        }
    };
    serde_json::from_slice(&bytes).map_or(true, |config| uses(&config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_counts() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("web", r#"{"x": 1}"#), ("other", "{}"), ("broken", "{")] {
            let place = directory.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("config.json"), text).unwrap();
        }
        fs::create_dir(directory.path().join("half-made")).unwrap();
        fs::write(directory.path().join("a-file"), "").unwrap();
        let uses = |config: &Value| config.get("x").is_some();
        assert_eq!(of(directory.path(), uses), ["broken", "web"]);
        assert!(of(Path::new("/nonexistent"), uses).is_empty());
    }
}
