//! Which instances use an image.

use std::path::Path;

use croft_image::Digest;
use serde_json::Value;

use crate::users;

/// The names of the instances that use an image. One whose configuration
/// cannot be read may: it counts.
pub fn of(instances: &Path, image: &Digest) -> Vec<String> {
    let id = image.to_string();
    users::of(instances, |config| {
        config.pointer("/image/id").and_then(Value::as_str) == Some(&id)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_known_by_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let image = Digest::of(b"x");
        for (name, text) in [
            (
                "web",
                format!(r#"{{"image": {{"name": "a", "id": "{image}"}}}}"#),
            ),
            ("other", r#"{"image": {"name": "a", "id": "0"}}"#.to_owned()),
            ("kernel", r#"{"image": null}"#.to_owned()),
        ] {
            let place = directory.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("config.json"), text).unwrap();
        }
        assert_eq!(of(directory.path(), &image), ["web"]);
    }
}
