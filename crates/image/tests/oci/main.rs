//! Images of the OCI's: from layouts, archives and registries, and into
//! archives.

mod fake;
mod helpers;
mod import;
mod make;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};

use croft_image::import::Source;
use croft_image::progress::Silent;
use croft_image::store::{Committed, Store};
use croft_image::{ContainerImage, Error, Image};

/// A store of a test's.
struct Fixture {
    place: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("images")).unwrap();
        Fixture { place, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn import(&self, path: &Path, wanted: Option<&str>) -> Result<Committed, Error> {
        let source = Source {
            path: path.to_owned(),
            format: None,
            backing: Vec::new(),
            name: "web".to_owned(),
            wanted: wanted.map(str::to_owned),
        };
        croft_image::import::import(&self.store, &source, &mut Silent, &mut |_| ())
    }

    fn refuse(&self, path: &Path, wanted: Option<&str>, word: &str) {
        let error = self.import(path, wanted).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
        self.empty();
    }

    /// Nothing is left of what was refused.
    fn empty(&self) {
        assert!(self.store.list().unwrap().is_empty());
        let store = Store::open(self.store.root()).unwrap();
        for directory in ["staging", "blobs", "layers"] {
            let left = fs::read_dir(store.root().join(directory)).unwrap();
            assert_eq!(left.count(), 0, "{directory}");
        }
    }

    fn container(&self, image: &Image) -> ContainerImage {
        self.store
            .container(image, &mut Silent, &mut |_| ())
            .unwrap()
    }

    /// The image is the one that `make::web` makes.
    fn check(&self, image: &Image) {
        self.store.verify(&image.title(), |_| ()).unwrap();
        let container = self.container(image);
        assert_eq!(container.lowers.len(), 2);
        assert_eq!(container.config.entrypoint, ["/bin/serve"]);
        assert_eq!(container.config.env, ["PATH=/bin", "A=b"]);
        let stack = croft_image::layer::Stack::open(&container.lowers).unwrap();
        let read = |path: &str| {
            let found = stack.resolve(Path::new(path)).unwrap()?;
            std::io::read_to_string(found.open().unwrap()).ok()
        };
        assert_eq!(read("bin/serve").as_deref(), Some("served"));
        assert_eq!(read("etc/motd").as_deref(), Some("second"));
        assert_eq!(read("etc/gone"), None);
        let manifest = &image.manifest;
        assert_eq!(
            (manifest.os.as_str(), manifest.os_version.as_str()),
            ("croft-test", "7")
        );
        assert_eq!(manifest.created, 1_700_000_000);
    }
}
