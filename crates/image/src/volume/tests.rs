use std::os::unix::fs::{MetadataExt, symlink};

use super::*;

fn nobody(_: &str) -> Vec<String> {
    Vec::new()
}

#[test]
fn a_volume_from_beginning_to_end() {
    let place = tempfile::tempdir().unwrap();
    let volumes = Volumes::open(&place.path().join("volumes")).unwrap();
    let made = volumes.create("data").unwrap();
    assert!(made.data.is_dir() && !made.filled);
    assert!(
        volumes
            .create("data")
            .unwrap_err()
            .to_string()
            .contains("exists")
    );
    assert_eq!(volumes.ensure("data").unwrap(), made);
    volumes.ensure("other").unwrap();
    let names: Vec<String> = volumes
        .list()
        .unwrap()
        .into_iter()
        .map(|volume| volume.unwrap().name)
        .collect();
    assert_eq!(names, ["data", "other"]);
    let busy = volumes.delete("data", |_| vec!["web".to_owned()]);
    assert!(busy.unwrap_err().to_string().contains("in use by web"));
    fs::write(made.data.join("x"), "x").unwrap();
    volumes.delete("data", nobody).unwrap();
    assert!(volumes.get("data").unwrap_err().is_usage());
    for bad in ["", ".x", "a/b", "..", "ü", "-a", "a b", &"a".repeat(129)] {
        assert!(volumes.create(bad).is_err(), "{bad}");
    }
    // What a crash left.
    fs::create_dir(place.path().join("volumes/.half")).unwrap();
    let volumes = Volumes::open(&place.path().join("volumes")).unwrap();
    assert_eq!(
        fs::read_dir(place.path().join("volumes")).unwrap().count(),
        2
    );
    fs::write(place.path().join("volumes/other/about.json"), "{").unwrap();
    assert!(volumes.list().unwrap()[0].is_err());
}

#[test]
fn a_new_volume_gets_what_the_image_has_once() {
    let place = tempfile::tempdir().unwrap();
    let volumes = Volumes::open(&place.path().join("volumes")).unwrap();
    let (low, high) = (place.path().join("low"), place.path().join("high"));
    fs::create_dir_all(low.join("var/data/sub")).unwrap();
    fs::create_dir_all(high.join("var/data")).unwrap();
    fs::write(low.join("var/data/one"), "1").unwrap();
    fs::write(low.join("var/data/sub/two"), "2").unwrap();
    fs::hard_link(low.join("var/data/one"), low.join("var/data/sub/more")).unwrap();
    fs::write(high.join("var/data/one"), "new").unwrap();
    symlink("/etc/passwd", high.join("var/data/link")).unwrap();
    symlink("var/data", low.join("srv")).unwrap();
    fs::set_permissions(high.join("var/data"), fs::Permissions::from_mode(0o1750)).unwrap();
    let lowers = [low, high];
    let volume = volumes.ensure("data").unwrap();
    assert!(volumes.fill("data", &lowers, "/srv").unwrap());
    let read = |path: &str| fs::read_to_string(volume.data.join(path)).unwrap();
    assert_eq!(
        (read("one").as_str(), read("sub/two").as_str()),
        ("new", "2")
    );
    let link = fs::read_link(volume.data.join("link")).unwrap();
    assert_eq!(link, Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(&volume.data).unwrap().mode() & 0o7777, 0o1750);
    // Only once, whatever becomes of what is in it.
    fs::remove_file(volume.data.join("one")).unwrap();
    assert!(!volumes.fill("data", &lowers, "/srv").unwrap());
    assert!(!volume.data.join("one").exists());
    // Nor where there is something, or the image has nothing.
    let volume = volumes.ensure("mine").unwrap();
    fs::write(volume.data.join("own"), "").unwrap();
    assert!(!volumes.fill("mine", &lowers, "/srv").unwrap());
    volumes.ensure("none").unwrap();
    assert!(!volumes.fill("none", &lowers, "/../../etc").unwrap());
    assert!(volumes.get("none").unwrap().filled);
}
