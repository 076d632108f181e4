//! Instances of images: a disk of their own over the image's, and a seed that
//! makes them themselves.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use croft_api::disk::{DiskFormat, DiskOptions};
use croft_disk::{Format, create_overlay};
use croft_host::store::{Boot, Disk, ImageUse, Layer};
use croft_host::{Config, Instances, NewInstance};
use croft_image::build::{Recipe, is_outdated};
use croft_image::seed::{self, Seed, USER_DATA_MAX};
use croft_image::store::Hold;
use croft_image::{DiskFormat as ImageFormat, Error, Store};

use super::Fault;
use crate::args::create::InstanceOptions;
use crate::say;

/// The instance's own disk, in its directory.
pub const DISK: &str = "disk.qcow2";
/// What tells it on its first start who it is.
const SEED: &str = "seed.img";
/// Longest file of keys in bytes.
const KEYS_MAX: u64 = 1 << 20;

/// An image that is there.
#[derive(Debug)]
pub struct Images<'a> {
    store: Store,
    reference: &'a str,
}

impl<'a> Images<'a> {
    /// The image with this name; one that can be built and is not there is.
    pub fn open(instances: &Instances, reference: &'a str) -> Result<Self, Fault> {
        let store = Store::open(&instances.directories().images())?;
        match store.resolve(reference) {
            Err(Error::NotFound { .. }) if Recipe::new(reference).is_ok() => {
                say::line(&format!(
                    "croft: there is no image {reference} yet; building it"
                ));
                crate::image::build_by_name(&store, reference)?;
            }
            found => {
                if is_outdated(&found?.manifest) {
                    say::line(&format!(
                        "croft: image {reference} was built by an older Croft; build it again: \
                         croft image build {reference}"
                    ));
                }
            }
        }
        Ok(Images { store, reference })
    }

    /// Keeps images where they are.
    pub fn hold(&self) -> Result<Hold, Fault> {
        Ok(self.store.hold()?)
    }

    /// Gives an instance that is being made its disk and its seed.
    pub fn equip(
        &self,
        new: &NewInstance,
        config: &mut Config,
        options: &InstanceOptions,
    ) -> Result<(), Fault> {
        let created = config.created;
        let machine = config.machine_mut();
        let machine = machine.ok_or_else(|| Fault::usage("a container has no disk"))?;
        let name = machine.machine.name.clone();
        let image = self.store.resolve(self.reference)?;
        let (path, about) = match image.machine_disk() {
            Err(error) if self.store.use_of(&image).is_ok() => {
                return Err(Fault::usage(format!(
                    "{error}; a container can be made from it: croft run --container {}",
                    self.reference
                )));
            }
            disk => disk?,
        };
        let size = options.disk_size.unwrap_or(about.virtual_size);
        if size < about.virtual_size {
            return Err(Fault::usage(format!(
                "--disk-size is less than the image's {} bytes; give more, or nothing",
                about.virtual_size
            )));
        }
        let (format, below) = match about.format {
            ImageFormat::Raw => (Format::Raw, DiskFormat::Raw),
            ImageFormat::Qcow2 => (Format::Qcow2, DiskFormat::Qcow2),
        };
        let host = |error: std::io::Error| Fault::failed(format!("{name}: its disk: {error}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new.directory().join(DISK))
            .map_err(host)?;
        let synced = file.try_clone().map_err(host)?;
        create_overlay(file, size, &path.to_string_lossy(), format)
            .map_err(|error| Fault::failed(format!("{name}: its disk {error}")))?;
        synced.sync_all().map_err(host)?;
        let seed = Seed {
            // Another one for each instance, of the same name too.
            instance_id: format!("croft-{created:x}-{:x}", std::process::id()),
            hostname: name.replace('_', "-"),
            user: options.user.clone(),
            ssh_keys: keys(&options.ssh_keys)?,
            user_data: user_data(options.cloud_init.as_deref())?,
            network: None,
        };
        seed::write(&new.directory().join(SEED), &seed)?;
        let own = Disk {
            layers: vec![
                Layer {
                    path: DISK.into(),
                    format: Some(DiskFormat::Qcow2),
                },
                Layer {
                    path: path.to_owned(),
                    format: Some(below),
                },
            ],
            index: None,
            options: DiskOptions {
                on_io_error: options.on_io_error.unwrap_or_default(),
                ..DiskOptions::default()
            },
        };
        let seed = Disk {
            layers: vec![Layer {
                path: SEED.into(),
                format: Some(DiskFormat::Raw),
            }],
            index: None,
            options: DiskOptions {
                read_only: true,
                ..DiskOptions::default()
            },
        };
        machine.boot = Boot::Disk;
        // The guest finds its seed by its label.
        machine.disks.insert(0, own);
        machine.disks.push(seed);
        config.user.clone_from(&options.user);
        config.image = Some(ImageUse {
            name: self.reference.to_owned(),
            id: image.id.to_string(),
        });
        Ok(())
    }
}

/// Keys, and those in files. What has a blank is a key.
fn keys(given: &[String]) -> Result<Vec<String>, Fault> {
    let mut keys = Vec::new();
    for given in given {
        if given.contains(' ') {
            keys.push(given.trim().to_owned());
            continue;
        }
        let named = format!("--ssh-key '{}'", given.escape_debug());
        let mut text = String::new();
        File::open(given)
            .and_then(|file| file.take(KEYS_MAX).read_to_string(&mut text))
            .map_err(|error| {
                Fault::usage(format!(
                    "{named}: {error}; give a public key, or a file of such"
                ))
            })?;
        let before = keys.len();
        let lines = text.lines().map(str::trim);
        keys.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
        if keys.len() == before {
            return Err(Fault::usage(format!("{named}: there is no key in it")));
        }
    }
    Ok(keys)
}

fn user_data(path: Option<&Path>) -> Result<Option<Vec<u8>>, Fault> {
    let Some(path) = path else {
        return Ok(None);
    };
    let named = format!("--cloud-init '{}'", path.to_string_lossy().escape_debug());
    let length = fs::metadata(path).map(|about| about.len());
    match length {
        Ok(length) if length > USER_DATA_MAX as u64 => Err(Fault::usage(format!(
            "{named} has {length} bytes; {USER_DATA_MAX} are allowed, which can fetch the rest"
        ))),
        Ok(_) => fs::read(path)
            .map(Some)
            .map_err(|error| Fault::usage(format!("{named}: {error}"))),
        Err(error) => Err(Fault::usage(format!(
            "{named}: {error}; name a file that is there"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_given_or_in_files() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("keys");
        fs::write(&file, "# mine\n\nssh-ed25519 AAAA a@b\nssh-rsa BBBB\n").unwrap();
        let file = file.to_str().unwrap().to_owned();
        let given = ["ssh-ed25519 CCCC".to_owned(), file];
        let found = keys(&given).unwrap();
        assert_eq!(
            found,
            ["ssh-ed25519 CCCC", "ssh-ed25519 AAAA a@b", "ssh-rsa BBBB"]
        );
        let empty = place.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        assert!(keys(&[empty.to_str().unwrap().to_owned()]).is_err());
        assert!(keys(&["missing".to_owned()]).is_err());
    }
}
