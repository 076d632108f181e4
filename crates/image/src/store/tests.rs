use std::env;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::durable::KILL_AT;
use super::*;
use crate::DiskFormat;
use crate::manifest::Disk;

/// The directory of the store that a test's child process uses.
const STORE: &str = "CROFT_IMAGE_TEST_STORE";

fn add(store: &Store, name: &str, contents: &[u8]) -> Image {
    let staging = store.stage().unwrap();
    let path = staging.path("disk");
    fs::write(&path, contents).unwrap();
    let (blob, length) = staging.adopt(&path).unwrap();
    let manifest = Manifest {
        version: manifest::VERSION,
        os: "unknown".to_owned(),
        os_version: String::new(),
        arch: "x86_64".to_owned(),
        created: 1,
        origin: "a test".to_owned(),
        recipe: None,
        agent: false,
        cloud_init: false,
        disk: Some(Disk {
            blob,
            length,
            format: DiskFormat::Raw,
            virtual_size: length,
        }),
        rootfs: None,
        application: None,
    };
    staging.commit(&manifest, name).unwrap().image
}

fn blobs(root: &Path) -> usize {
    fs::read_dir(root.join("blobs")).unwrap().count()
}

fn staged(root: &Path) -> usize {
    fs::read_dir(root.join("staging")).unwrap().count()
}

/// The store, opened until nothing is being made in it: a child that another
/// test has begun has all locks of this process until it becomes its program,
/// and nobody sweeps meanwhile.
fn swept(root: &Path) -> Store {
    let end = Instant::now() + Duration::from_secs(600);
    loop {
        let store = Store::open(root).unwrap();
        if store.swept() != Swept::default() || staged(root) == 0 {
            return store;
        }
        assert!(Instant::now() < end, "it is not swept");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until so many blobs are left, which whoever opens the store sweeps
/// where a deletion could not.
fn wait_for_blobs(root: &Path, count: usize) {
    let end = Instant::now() + Duration::from_secs(600);
    while blobs(root) != count {
        assert!(Instant::now() < end, "{} blobs", blobs(root));
        thread::sleep(Duration::from_millis(10));
        Store::open(root).unwrap();
    }
}

fn names(store: &Store) -> Vec<String> {
    let images = store.list().unwrap().into_iter();
    images.flat_map(|image| image.unwrap().names).collect()
}

fn unused(_: &Digest) -> Vec<String> {
    Vec::new()
}

#[test]
fn an_image_from_beginning_to_end() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(&root.path().join("images")).unwrap();
    assert!(
        store
            .resolve("web")
            .unwrap_err()
            .to_string()
            .contains("croft image build")
    );
    let image = add(&store, "web", b"contents");
    assert_eq!(fs::read(image.disk.as_ref().unwrap()).unwrap(), b"contents");
    assert_eq!(store.resolve("web").unwrap().id, image.id);
    let id = image.id.to_string();
    assert_eq!(store.resolve(&id).unwrap().names, ["web"]);
    assert_eq!(store.resolve(&id[..8]).unwrap().names, ["web"]);
    assert!(store.resolve(&id[..7]).is_err());
    assert_eq!(store.verify("web", |_| ()).unwrap().bytes, 8);

    assert!(store.rename("web", "/etc").is_err());
    assert!(store.rename("web", "web").is_err());
    store.rename("web", "team/web").unwrap();
    assert!(store.resolve("web").is_err());
    store.rename(&id, "web").unwrap();
    assert_eq!(store.resolve("web").unwrap().names, ["team/web", "web"]);

    let busy = store.delete(&id, |_| vec!["a".to_owned(), "b".to_owned()]);
    assert!(busy.unwrap_err().to_string().contains("in use by a, b"));
    assert_eq!(
        store.delete("web", unused).unwrap(),
        Deleted::Name(image.id)
    );
    assert_eq!(
        store.delete("team/web", unused).unwrap(),
        Deleted::Image(image.id)
    );
    wait_for_blobs(store.root(), 0);
    assert_eq!(staged(store.root()), 0);
}

#[test]
fn a_name_goes_to_the_newer_image_and_the_older_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let old = add(&store, "web", b"old");
    let new = add(&store, "web", b"new");
    assert_eq!(store.resolve("web").unwrap().id, new.id);
    assert!(store.resolve(&old.id.to_string()).unwrap().names.is_empty());
    assert_eq!(store.prune(|id| *id == old.id).unwrap(), []);
    assert_eq!(store.prune(|_| false).unwrap(), [old.id]);
    wait_for_blobs(root.path(), 2);
    // The same again is the same image.
    assert_eq!(add(&store, "web", b"new").id, new.id);
    assert_eq!(names(&store), ["web"]);
}

#[test]
fn images_share_blobs_and_deleting_one_leaves_the_others() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    add(&store, "a", b"same");
    let staging = store.stage().unwrap();
    fs::write(staging.path("disk"), b"same").unwrap();
    let (blob, _) = staging.adopt(&staging.path("disk")).unwrap();
    let mut manifest = store.resolve("a").unwrap().manifest;
    manifest.origin = "elsewhere".to_owned();
    staging.commit(&manifest, "b").unwrap();
    assert_eq!(blobs(root.path()), 3);
    store.delete("a", unused).unwrap();
    wait_for_blobs(root.path(), 2);
    assert_eq!(
        store.resolve("b").unwrap().manifest.disk.unwrap().blob,
        blob
    );
    store.verify("b", |_| ()).unwrap();
}

#[test]
fn what_is_dropped_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let staging = store.stage().unwrap();
    fs::write(staging.path("disk"), b"x").unwrap();
    staging.adopt(&staging.path("disk")).unwrap();
    // Nobody sweeps under somebody's hands.
    assert_eq!(Store::open(root.path()).unwrap().swept(), Swept::default());
    assert_eq!(blobs(root.path()), 1);
    drop(staging);
    assert_eq!(staged(root.path()), 0);
    // Something that tells when it could be swept.
    File::create(root.path().join("staging/left")).unwrap();
    let store = swept(root.path());
    assert_eq!((store.swept().staging, store.swept().blobs), (1, 1));
}

#[test]
fn damage_is_found_and_named() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let image = add(&store, "web", b"contents");
    add(&store, "other", b"other");
    let disk = image.disk.unwrap();
    for (bytes, word) in [(&b"CONTENTS"[..], "other contents"), (b"con", "3 bytes")] {
        fs::remove_file(&disk).unwrap();
        fs::write(&disk, bytes).unwrap();
        let error = store.verify("web", |_| ()).unwrap_err().to_string();
        assert!(
            error.contains("'web' is damaged") && error.contains(word),
            "{error}"
        );
    }
    fs::remove_file(&disk).unwrap();
    assert!(store.verify("web", |_| ()).is_err());

    // A manifest that is damaged: nothing is swept, the other image works.
    let manifest = Layout::new(root.path()).blob(&image.id);
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, b"{}").unwrap();
    let store = Store::open(root.path()).unwrap();
    assert!(
        store
            .resolve("web")
            .unwrap_err()
            .to_string()
            .contains("damaged")
    );
    assert_eq!(
        store
            .list()
            .unwrap()
            .iter()
            .filter(|image| image.is_ok())
            .count(),
        1
    );
    store.verify("other", |_| ()).unwrap();
    store.delete("web", unused).unwrap();
    assert_eq!(names(&store), ["other"]);
    assert_eq!(blobs(root.path()), 2);
}

#[test]
fn an_index_that_cannot_be_read_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    add(&Store::open(root.path()).unwrap(), "web", b"x");
    let path = root.path().join("index.json");
    for (text, word) in [
        ("{", "backup"),
        (r#"{"version":2,"images":{}}"#, "newer Croft"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Store::open(root.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(blobs(root.path()), 2);
    }
}

#[test]
fn sweeping_removes_what_is_closed_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    drop(Store::open(root.path()).unwrap());
    let deep = root.path().join("staging/new.x/a/b");
    fs::create_dir_all(&deep).unwrap();
    File::create(deep.join("c")).unwrap();
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o0)).unwrap();
    assert_eq!(swept(root.path()).swept().staging, 1);
    assert_eq!(staged(root.path()), 0);
}

/// What the child process of the next test does.
#[test]
fn child() {
    let Some(root) = env::var_os(STORE) else {
        return;
    };
    let store = Store::open(Path::new(&root)).unwrap();
    add(&store, "web", b"new");
    store.rename("web", "team/web").unwrap();
    store.delete("old", unused).unwrap();
}

#[test]
fn a_kill_at_each_step_leaves_whole_images() {
    let mut killed = 0;
    let mut seen = Vec::new();
    for last in 1.. {
        assert!(last < 100, "the child does not come to its end");
        let root = tempfile::tempdir().unwrap();
        add(&Store::open(root.path()).unwrap(), "old", b"old");
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store::tests::child"])
            .env(STORE, root.path())
            .env(KILL_AT, last.to_string())
            .output()
            .unwrap();
        // Something that tells when it could be swept.
        File::create(root.path().join("staging/left")).unwrap();
        let store = swept(root.path());
        let names = names(&store);
        for name in &names {
            store.verify(name, |_| ()).unwrap();
        }
        assert_eq!(staged(root.path()), 0, "step {last}");
        assert_eq!(blobs(root.path()), names.len() * 2, "step {last}");
        if !seen.contains(&names) {
            seen.push(names);
        }
        if child.status.success() {
            break;
        }
        assert_eq!(child.status.signal(), Some(9), "step {last}");
        killed += 1;
    }
    assert!(killed >= 15, "{killed}");
    // Every state between the operations, and none besides.
    let states: Vec<Vec<&str>> = vec![
        vec!["old"],
        vec!["old", "web"],
        vec!["old", "team/web"],
        vec!["team/web"],
    ];
    assert_eq!(seen, states);
}
