//! Which instances use an image.

use std::fs;
use std::path::Path;

use croft_image::Digest;
use serde_json::Value;

/// The names of the instances that use an image. One whose configuration
/// cannot be read may: it counts.
pub fn of(instances: &Path, image: &Digest) -> Vec<String> {
    let id = image.to_string();
    let entries = fs::read_dir(instances).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| uses(&entry.path().join("config.json"), &id))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn uses(config: &Path, id: &str) -> bool {
    let bytes = match fs::read(config) {
        Ok(bytes) => bytes,
        // No instance, or one that is just going.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        Err(_) => return true,
    };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(config) => config.pointer("/image/id").and_then(Value::as_str) == Some(id),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_counts() {
        let directory = tempfile::tempdir().unwrap();
        let image = Digest::of(b"x");
        for (name, text) in [
            (
                "web",
                format!(r#"{{"image": {{"name": "a", "id": "{image}"}}}}"#),
            ),
            ("other", r#"{"image": {"name": "a", "id": "0"}}"#.to_owned()),
            ("kernel", r#"{"image": null}"#.to_owned()),
            ("broken", "{".to_owned()),
        ] {
            let place = directory.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("config.json"), text).unwrap();
        }
        fs::create_dir(directory.path().join("half-made")).unwrap();
        assert_eq!(of(directory.path(), &image), ["broken", "web"]);
        assert!(of(Path::new("/nonexistent"), &image).is_empty());
    }
}
