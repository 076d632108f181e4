//! Layouts, archives and what `docker save` writes.

use std::fs;
use std::os::unix::fs::symlink;

use croft_image::Image;
use croft_image::container::Role;
use croft_image::export::{self, Form};
use croft_image::progress::Silent;
use croft_image::store::{Deleted, Store};
use serde_json::{Value, json};

use super::Fixture;
use super::make::{self, Made, Packed, hex};

#[test]
fn layouts_of_every_kind_are_imported() {
    for (packed, docker) in [
        (Packed::Plain, false),
        (Packed::Gzip, false),
        (Packed::Zstd, false),
        (Packed::Plain, true),
        (Packed::Gzip, true),
    ] {
        let fixture = Fixture::new();
        let made = make::web(packed, docker);
        let index = make::index(&[made.descriptor(Some("latest"), None)]);
        let directory = make::layout(&fixture.path("layout"), &made.blobs, &index);
        let image = fixture.import(&directory, None).unwrap().image;
        fixture.check(&image);
        let application = image.manifest.application.as_ref().unwrap();
        assert_eq!(application.manifest.blob.to_string(), hex(&made.bytes()));
        // The same again is the same image, as an archive too.
        let archive = make::archive(&directory, &fixture.path("layout.tar"));
        let same = |again: Image| {
            let former = image.manifest.application.as_ref();
            assert_eq!(again.manifest.application.as_ref(), former);
        };
        same(fixture.import(&archive, None).unwrap().image);
        let zipped = fixture.path("layout.tgz");
        fs::write(
            &zipped,
            make::pack(&fs::read(&archive).unwrap(), Packed::Gzip),
        )
        .unwrap();
        same(fixture.import(&zipped, Some("latest")).unwrap().image);
    }
}

#[test]
fn what_was_exported_is_the_same_image_again() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let index = make::index(&[made.descriptor(None, Some("amd64"))]);
    let directory = make::layout(&fixture.path("layout"), &made.blobs, &index);
    let image = fixture.import(&directory, None).unwrap().image;
    let target = fixture.path("web.oci.tar");
    assert_eq!(Form::of(&target), Some(Form::Oci));
    export::export(&fixture.store, &image, &target, Form::Oci, &mut Silent).unwrap();
    let other = Fixture::new();
    let again = other.import(&target, None).unwrap().image;
    other.check(&again);
    let digest =
        |image: &croft_image::Image| image.manifest.application.as_ref().unwrap().manifest.blob;
    assert_eq!(digest(&again), digest(&image));
    let disk = export::export(
        &fixture.store,
        &image,
        &fixture.path("x"),
        Form::Raw,
        &mut Silent,
    );
    assert!(disk.unwrap_err().to_string().contains("has no disk"));
    let tar = export::export(
        &fixture.store,
        &image,
        &fixture.path("x"),
        Form::Tar,
        &mut Silent,
    );
    assert!(tar.unwrap_err().to_string().contains("export it as oci"));
}

#[test]
fn an_index_is_searched_for_this_platform() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let arm = make::of(
        vec![make::layer(&[("arm", b"")])],
        Packed::Gzip,
        false,
        "arm64",
    );
    let attested = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
        "digest": format!("sha256:{}", hex(b"{}")),
        "platform": {"os": "unknown", "architecture": "unknown"},
    });
    let inner = make::index(&[
        attested,
        arm.descriptor(None, Some("arm64")),
        made.descriptor(None, Some("amd64")),
    ]);
    let inner = inner.to_string().into_bytes();
    let mut blobs = made.blobs.clone();
    blobs.extend(arm.blobs.clone());
    blobs.insert(hex(&inner), inner.clone());
    let outer = make::index(&[json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "size": inner.len(),
        "digest": format!("sha256:{}", hex(&inner)),
    })]);
    let directory = make::layout(&fixture.path("layout"), &blobs, &outer);
    let image = fixture.import(&directory, None).unwrap().image;
    fixture.check(&image);

    let fixture = Fixture::new();
    let only = make::index(&[arm.descriptor(None, Some("arm64"))]);
    let directory = make::layout(&fixture.path("arm"), &blobs, &only);
    fixture.refuse(
        &directory,
        None,
        "no image for linux/amd64; there is linux/arm64",
    );
    // It does not say so in the index, but in its configuration.
    let silent = make::index(&[arm.descriptor(None, None)]);
    let directory = make::layout(&fixture.path("silent"), &blobs, &silent);
    fixture.refuse(&directory, None, "linux/arm64");
}

#[test]
fn of_several_images_one_is_named() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let other = make::of(
        vec![make::layer(&[("x", b"")])],
        Packed::Gzip,
        false,
        "amd64",
    );
    let mut blobs = made.blobs.clone();
    blobs.extend(other.blobs.clone());
    let index = make::index(&[
        made.descriptor(Some("docker.io/team/web:2"), None),
        other.descriptor(Some("other"), None),
    ]);
    let directory = make::layout(&fixture.path("layout"), &blobs, &index);
    fixture.refuse(&directory, None, "there is docker.io/team/web:2, other");
    fixture.refuse(&directory, Some("web"), "no image 'web'");
    fixture.check(&fixture.import(&directory, Some("web:2")).unwrap().image);

    let fixture = Fixture::new();
    let file = make::saved(
        &fixture.path("saved.tar"),
        &[(&made, "web:1"), (&other, "other:1")],
    );
    fixture.refuse(&file, None, "there is web:1, other:1");
    fixture.refuse(&file, Some("web:2"), "no image 'web:2'");
    fixture.check(&fixture.import(&file, Some("web:1")).unwrap().image);
    let rootfs = fixture.path("rootfs.tar");
    fs::write(&rootfs, make::layer(&[("etc/x", b"")])).unwrap();
    let error = fixture.import(&rootfs, Some("x")).unwrap_err();
    assert!(error.to_string().contains("--ref"), "{error}");
}

#[test]
fn layers_are_unpacked_once_and_go_with_their_last_image() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let index = make::index(&[made.descriptor(None, None)]);
    let directory = make::layout(&fixture.path("layout"), &made.blobs, &index);
    let image = fixture.import(&directory, None).unwrap().image;
    fixture.store.tag("web", "team/web:1").unwrap();
    assert!(fixture.store.tag("web", "team/web:1").is_err());
    let mut plain = made.plain.clone();
    plain.push(make::layer(&[("top", b"")]));
    let higher = make::of(plain, Packed::Gzip, false, "amd64");
    let index = make::index(&[higher.descriptor(None, None)]);
    let directory = make::layout(&fixture.path("higher"), &higher.blobs, &index);
    let second = fixture.import(&directory, None).unwrap().image;
    let (low, high) = (fixture.container(&image), fixture.container(&second));
    assert_eq!(high.lowers[..2], low.lowers[..]);
    let count = |store: &Store| fs::read_dir(store.root().join("layers")).unwrap().count();
    assert_eq!(count(&fixture.store), 3);
    // Somebody holds the store; what a container needs is to be had all the same.
    let hold = fixture.store.hold().unwrap();
    fs::remove_dir_all(high.lowers[2].parent().unwrap()).unwrap();
    assert_eq!(fixture.container(&second), high);
    drop(hold);
    let nobody = |_: &croft_image::Digest| Vec::new();
    let deleted = fixture.store.delete("web", nobody).unwrap();
    assert_eq!(deleted, Deleted::Image(second.id));
    assert_eq!(count(&fixture.store), 2);
    fixture.check(&fixture.store.resolve("team/web:1").unwrap());
    fixture.store.delete("team/web:1", nobody).unwrap();
    fixture.empty();
}

#[test]
fn a_root_file_system_is_a_system() {
    let fixture = Fixture::new();
    let rootfs = fixture.path("rootfs.tar");
    fs::write(&rootfs, make::layer(&[("sbin/init", b"init")])).unwrap();
    let image = fixture.import(&rootfs, None).unwrap().image;
    let container = fixture.container(&image);
    assert_eq!(container.role, Role::System);
    assert_eq!(container.config.command(None, &[]), ["/sbin/init"]);
    assert_eq!(
        fs::read(container.lowers[0].join("sbin/init")).unwrap(),
        b"init"
    );
}

/// Changes a good image and expects that it is refused.
fn refused(change: impl FnOnce(&mut Made), word: &str) {
    let fixture = Fixture::new();
    let mut made = make::web(Packed::Gzip, false);
    change(&mut made);
    let index = make::index(&[made.descriptor(None, None)]);
    let mut blobs = made.blobs.clone();
    blobs.insert(hex(&made.bytes()), made.bytes());
    let directory = make::layout(&fixture.path("layout"), &blobs, &index);
    fixture.refuse(&directory, None, word);
}

#[test]
fn what_is_wrong_is_refused_and_leaves_nothing() {
    let blob = |value: &Value| value.as_str().unwrap()["sha256:".len()..].to_owned();
    refused(
        |made| {
            let layer = blob(&made.manifest["layers"][1]["digest"]);
            made.blobs.get_mut(&layer).unwrap().push(0);
        },
        "more than",
    );
    refused(
        |made| {
            let layer = blob(&made.manifest["layers"][1]["digest"]);
            made.blobs.get_mut(&layer).unwrap()[10] ^= 1;
        },
        "have the digest",
    );
    refused(
        |made| {
            let layer = blob(&made.manifest["layers"][0]["digest"]);
            made.blobs.remove(&layer);
        },
        "is missing",
    );
    refused(
        |made| {
            let config = blob(&made.manifest["config"]["digest"]);
            made.blobs.insert(config, b"{}".to_vec());
        },
        "other contents",
    );
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    refused(
        |made| {
            made.config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", hex(b"x")));
            made.describe(gzip, false);
        },
        "not the one that the image's configuration says",
    );
    refused(
        |made| {
            made.config["rootfs"]["diff_ids"]
                .as_array_mut()
                .unwrap()
                .pop();
            made.describe(gzip, false);
        },
        "knows of 1",
    );
    refused(
        |made| {
            made.layers[1] = make::pack(&make::layer(&[("../x", b"")]), Packed::Gzip);
            made.describe(gzip, false);
        },
        "refused",
    );
    refused(
        |made| made.describe("application/vnd.example", false),
        "not known",
    );
    refused(
        |made| made.manifest["layers"][0]["size"] = json!(u64::MAX),
        "are allowed",
    );
    refused(
        |made| made.manifest["layers"][0]["digest"] = json!("sha512:ab"),
        "manifest",
    );
    refused(
        |made| {
            let digest = format!("sha512:{}", "ab".repeat(64));
            made.manifest["layers"][0]["digest"] = json!(digest);
        },
        "not one of SHA-256",
    );
    refused(|made| made.manifest["layers"] = json!(7), "manifest");
    refused(
        |made| made.manifest["schemaVersion"] = json!(1),
        "another kind",
    );
    refused(
        |made| {
            let layer = made.manifest["layers"][0].clone();
            made.manifest["layers"] = Value::from(vec![layer; 129]);
        },
        "more than 128",
    );
    refused(
        |made| made.manifest["config"]["mediaType"] = json!("application/vnd.in-toto+json"),
        "no image that can be run",
    );
    refused(
        |made| {
            made.config["config"]["Env"] = json!(["=x"]);
            made.describe(gzip, false);
        },
        "no name",
    );
}

#[test]
fn a_file_that_is_twice_in_an_archive_is_its_last_one() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let index = make::index(&[made.descriptor(None, None)]);
    let directory = make::layout(&fixture.path("layout"), &made.blobs, &index);
    let archive = make::archive(&directory, &fixture.path("layout.tar"));
    let mut bytes = Vec::new();
    let mut first = tar::Builder::new(&mut bytes);
    for (path, text) in [("index.json", "{}"), ("index.json", "[]")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        first
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    }
    first.finish().unwrap();
    drop(first);
    // Without the zeros at its end.
    bytes.truncate(4 * 512);
    bytes.extend(fs::read(&archive).unwrap());
    fs::write(&archive, bytes).unwrap();
    let image = fixture.import(&archive, None).unwrap().image;
    fixture.check(&image);
}

#[test]
fn links_in_archives_and_numbers_of_layers_are_bounded() {
    let fixture = Fixture::new();
    let path = fixture.path("long.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    let link = "x/".repeat(100_000);
    archive
        .append_link(&mut header, "oci-layout", link)
        .unwrap();
    archive.finish().unwrap();
    drop(archive);
    fixture.refuse(&path, None, "longer than 4000 bytes");
    let empty = make::layer(&[]);
    let many = make::of(vec![empty; 129], Packed::Plain, false, "amd64");
    let path = make::saved(&fixture.path("many.tar"), &[(&many, "many:1")]);
    fixture.refuse(&path, None, "more than 128 layers");
}

#[test]
fn layouts_that_lead_elsewhere_are_refused() {
    let fixture = Fixture::new();
    let made = make::web(Packed::Gzip, false);
    let index = make::index(&[made.descriptor(None, None)]);
    let directory = make::layout(&fixture.path("layout"), &made.blobs, &index);
    let layer = hex(&made.layers[0]);
    let inside = directory.join("blobs/sha256").join(&layer);
    let outside = fixture.path("outside");
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    assert!(fixture.import(&directory, None).is_err());
    fixture.empty();
    let archive = make::archive(&directory, &fixture.path("layout.tar"));
    fixture.refuse(&archive, None, "leads out of it");
    fs::remove_file(&inside).unwrap();
    fs::create_dir(&inside).unwrap();
    fixture.refuse(&directory, None, "is no file");

    let fixture = Fixture::new();
    fs::create_dir(fixture.path("d")).unwrap();
    fixture.refuse(&fixture.path("d"), None, "without oci-layout");
    // Its own files are named by it, and lead nowhere.
    let evil = fixture.path("evil");
    fs::create_dir(&evil).unwrap();
    fs::write(evil.join("oci-layout"), "{}").unwrap();
    let list = r#"[{"Config": "../../../etc/passwd", "Layers": []}]"#;
    fs::write(evil.join("manifest.json"), list).unwrap();
    fixture.refuse(&evil, None, "'..'");
    // An index that leads to itself.
    let loops = fixture.path("loop");
    let bytes = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
    let mut blobs = std::collections::BTreeMap::new();
    blobs.insert(hex(&bytes), bytes.clone());
    let mut inner = bytes;
    for _ in 0..5 {
        let next = make::index(&[json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "size": inner.len(),
            "digest": format!("sha256:{}", hex(&inner)),
        })]);
        inner = next.to_string().into_bytes();
        blobs.insert(hex(&inner), inner.clone());
    }
    let index: Value = serde_json::from_slice(&inner).unwrap();
    let directory = make::layout(&loops, &blobs, &index);
    fixture.refuse(&directory, None, "more than 4 indexes");
}
