//! The NoCloud seed: a small disk that tells a server on its first boot who it
//! is.
//!
//! It is a FAT file system labelled `CIDATA` with the files that cloud-init
//! reads (its documentation, "NoCloud"), and a file `croft` with the same in
//! lines of `key=value`, for the first-boot service of images that Croft has
//! built, which have no cloud-init.
//!
//! | file | from |
//! |---|---|
//! | `meta-data` | instance id, host name, keys of the default user |
//! | `vendor-data` | user and keys, as a cloud-config that user data overrides |
//! | `user-data` | the user's own file, byte for byte |
//! | `network-config` | the network's own, if there is one |
//! | `croft` | instance id, host name, user, keys |
//!
//! A container has no disks; it has the same files in [`DIRECTORY`].

use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Value, json};

use crate::Error;

/// Where a container that is a system has the files of its seed.
pub const DIRECTORY: &str = "/var/lib/croft/seed";
/// Longest user data in bytes.
pub const USER_DATA_MAX: usize = 1 << 20;
/// Most keys.
const KEYS_MAX: usize = 100;
/// Longest key in bytes, with its comment.
const KEY_MAX: usize = 16 << 10;
/// Bytes of the disk beside the files in it.
const OVERHEAD: usize = 1 << 20;

/// What a server is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Identifies the server; another one is a first boot again to cloud-init.
    pub instance_id: String,
    /// Its name.
    pub hostname: String,
    /// A user to make, who may become root; none: keys are the default user's,
    /// which in images of Croft's is root.
    pub user: Option<String>,
    /// Public keys in the format of authorized_keys, without options.
    pub ssh_keys: Vec<String>,
    /// A file for cloud-init, or a script that begins with `#!`.
    pub user_data: Option<Vec<u8>>,
    /// A network configuration, version 1 or 2, for cloud-init.
    pub network: Option<String>,
}

impl Seed {
    /// Checks what goes into the guest's files.
    pub fn check(&self) -> Result<(), Error> {
        check_label("the instance id", &self.instance_id)?;
        check_label("the host name", &self.hostname)?;
        if let Some(user) = &self.user {
            check_user(user)?;
        }
        if self.ssh_keys.len() > KEYS_MAX {
            return Err(Error::Unfit(format!("more than {KEYS_MAX} ssh keys")));
        }
        self.ssh_keys.iter().try_for_each(|key| check_key(key))?;
        let length = self.user_data.as_ref().map_or(0, Vec::len);
        if length > USER_DATA_MAX {
            return Err(Error::Unfit(format!(
                "user data of {length} bytes; {USER_DATA_MAX} are allowed, which can fetch the \
                 rest"
            )));
        }
        let network = self.network.as_ref().map_or(0, String::len);
        if network > USER_DATA_MAX {
            return Err(Error::Unfit(format!(
                "a network configuration of {network} bytes"
            )));
        }
        Ok(())
    }

    /// The files of the disk.
    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        // JSON is YAML, and quotes everything that must be.
        let mut meta = json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
        });
        let mut vendor = json!({});
        match &self.user {
            Some(user) => {
                vendor = json!({"users": [{
                    "name": user,
                    "groups": "sudo",
                    "shell": "/bin/bash",
                    "sudo": "ALL=(ALL:ALL) NOPASSWD: ALL",
                    "lock_passwd": true,
                    "ssh_authorized_keys": self.ssh_keys,
                }]});
            }
            None if !self.ssh_keys.is_empty() => {
                if let Some(meta) = meta.as_object_mut() {
                    meta.insert("public-keys".to_owned(), json!(self.ssh_keys));
                }
            }
            None => {}
        }
        let mut lines = format!(
            "instance-id={}\nhostname={}\n",
            self.instance_id, self.hostname
        );
        if let Some(user) = &self.user {
            lines.push_str(&format!("user={user}\n"));
        }
        for key in &self.ssh_keys {
            lines.push_str(&format!("ssh-key={}\n", key.trim()));
        }
        let config = |value: &Value| format!("#cloud-config\n{value}\n").into_bytes();
        let user_data = self.user_data.clone();
        let mut files = vec![
            ("meta-data", format!("{meta}\n").into_bytes()),
            ("vendor-data", config(&vendor)),
            // Without one, cloud-init does not take the disk for a seed.
            (
                "user-data",
                user_data.unwrap_or_else(|| b"#cloud-config\n".to_vec()),
            ),
            ("croft", lines.into_bytes()),
        ];
        if let Some(network) = &self.network {
            files.push(("network-config", network.clone().into_bytes()));
        }
        files
    }

    /// The disk, byte for byte.
    fn disk(&self) -> io::Result<Vec<u8>> {
        let files = self.files();
        let contents: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let length = contents.saturating_add(OVERHEAD).next_multiple_of(1 << 16);
        let mut disk = Cursor::new(vec![0; length]);
        let options = FormatVolumeOptions::new()
            .volume_label(*b"CIDATA     ")
            // The label is what it is found by.
            .volume_id(0);
        fatfs::format_volume(&mut disk, options)?;
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, bytes) in files {
            let mut file = volume.root_dir().create_file(name)?;
            file.write_all(&bytes)?;
            file.flush()?;
        }
        volume.unmount()?;
        Ok(disk.into_inner())
    }
}

/// Writes a seed's disk, for its owner alone, in place of one that is there.
pub fn write(path: &Path, seed: &Seed) -> Result<(), Error> {
    seed.check()?;
    let bytes = seed.disk().map_err(Error::io("make", path))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = Path::new(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temporary)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(temporary, path));
    written.map_err(Error::io("write", path))
}

/// Writes a seed's files into a directory, which is made, for what is
/// [`DIRECTORY`] in a container.
pub fn write_files(directory: &Path, seed: &Seed) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    seed.check()?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(Error::io("make directory", directory))?;
    for (name, bytes) in seed.files() {
        let path = directory.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        file.and_then(|mut file| file.write_all(&bytes))
            .map_err(Error::io("write", &path))?;
    }
    Ok(())
}

/// Letters, digits and hyphens, as host names are (RFC 1123, 2.1), with dots
/// and underscores, which names of instances may have.
fn check_label(what: &str, text: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && text.len() <= 64 && text.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Unfit(format!(
        "{what} '{}': use up to 64 letters, digits, '-', '.' and '_', a letter or digit first",
        text.escape_debug()
    )))
}

/// What useradd takes on Debian (adduser.conf(5), NAME_REGEX).
fn check_user(user: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let starts = user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && user.len() <= 32 && user.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Unfit(format!(
        "'{}' is no user's name; use up to 32 small letters, digits, '-' and '_', a letter first",
        user.escape_debug()
    )))
}

/// A public key as ssh-keygen writes it: type, base64, comment.
fn check_key(key: &str) -> Result<(), Error> {
    let wrong = |why: &str| Err(Error::Unfit(format!("an ssh key {why}")));
    if key.contains("PRIVATE KEY") {
        return wrong("is a private one; give the file that ends in .pub");
    }
    let key = key.trim();
    if key.len() > KEY_MAX {
        return wrong("is longer than 16 KiB");
    }
    if key.chars().any(char::is_control) {
        return wrong("has more than one line; give each key by itself");
    }
    let mut words = key.split(' ');
    let kind = words.next().unwrap_or_default();
    let body = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    if !known.iter().any(|start| kind.starts_with(start))
        || body.len() < 16
        || !body.chars().all(base64)
    {
        return wrong("is none; give the contents of a file like ~/.ssh/id_ed25519.pub");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGludmFsaWRidXRsb25nZW5vdWdoZm9yYXRlc3Q= me@\"home\"";

    fn seed() -> Seed {
        Seed {
            instance_id: "web-1.x".to_owned(),
            hostname: "web".to_owned(),
            user: Some("admin".to_owned()),
            ssh_keys: vec![KEY.to_owned()],
            user_data: Some(vec![b'x'; USER_DATA_MAX]),
            network: Some("version: 2\n".to_owned()),
        }
    }

    fn read(path: &Path, name: &str) -> Vec<u8> {
        let disk = fs::File::open(path).unwrap();
        let volume = FileSystem::new(disk, FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        let mut bytes = Vec::new();
        let mut file = volume.root_dir().open_file(name).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_seed_has_what_cloud_init_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        write(&path, &seed()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path, "user-data").len(), USER_DATA_MAX);
        assert_eq!(read(&path, "network-config"), b"version: 2\n");
        let meta: Value = serde_json::from_slice(&read(&path, "meta-data")).unwrap();
        assert_eq!(meta["instance-id"], "web-1.x");
        assert!(meta.get("public-keys").is_none());
        let vendor = String::from_utf8(read(&path, "vendor-data")).unwrap();
        let vendor = vendor.strip_prefix("#cloud-config\n").unwrap();
        let vendor: Value = serde_json::from_str(vendor).unwrap();
        assert_eq!(vendor["users"][0]["ssh_authorized_keys"][0], KEY);
        let lines = String::from_utf8(read(&path, "croft")).unwrap();
        assert_eq!(
            lines,
            format!("instance-id=web-1.x\nhostname=web\nuser=admin\nssh-key={KEY}\n")
        );
        // Again, with less.
        let seed = Seed {
            user: None,
            user_data: None,
            ..seed()
        };
        write(&path, &seed).unwrap();
        assert_eq!(read(&path, "user-data"), b"#cloud-config\n");
        let meta: Value = serde_json::from_slice(&read(&path, "meta-data")).unwrap();
        assert_eq!(meta["public-keys"][0], KEY);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_name_or_key_is_refused() {
        let change = |change: &dyn Fn(&mut Seed)| {
            let mut seed = seed();
            change(&mut seed);
            seed.check()
        };
        change(&|_| ()).unwrap();
        for bad in ["", "-x", "a b", "a\nuser=root", "ü", &"x".repeat(65)] {
            assert!(
                change(&|seed| seed.hostname = bad.to_owned()).is_err(),
                "{bad}"
            );
            assert!(
                change(&|seed| seed.instance_id = bad.to_owned()).is_err(),
                "{bad}"
            );
        }
        for bad in ["", "Admin", "a b", "a:b", "-x", "a\nb", "../x"] {
            assert!(
                change(&|seed| seed.user = Some(bad.to_owned())).is_err(),
                "{bad}"
            );
        }
        let double = format!("{KEY}\n{KEY}");
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 short",
            "command=\"x\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            &double,
        ] {
            assert!(
                change(&|seed| seed.ssh_keys = vec![bad.to_owned()]).is_err(),
                "{bad}"
            );
        }
        let long = vec![b'x'; USER_DATA_MAX + 1];
        assert!(change(&|seed| seed.user_data = Some(long.clone())).is_err());
    }
}
