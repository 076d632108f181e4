//! What of the host a container is made from, opened or looked at before it is
//! made.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::path::{Path, PathBuf};

use croft_api::ContainerSpec;
use croft_api::container::{ContainerRole, IdRange, Seccomp, VolumeSource};
use croft_container::OverlayRoot;
use croft_host::store;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{major, minor};
use rustix::process::{getegid, geteuid};

use super::spec::{self, Disk, HostDevice, hostname};

/// What is written in a container, in the instance's directory.
const UPPER: &str = "upper";
/// What overlayfs needs beside it.
const WORK: &str = "work";
/// Files that stand in for the image's, and where.
const FILES: [(&str, &str); 3] = [
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
];
/// Longest profile of system calls in bytes.
const PROFILE_MAX: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct Parts {
    /// Its root.
    pub root: OverlayRoot,
    /// Files that stand in for the image's.
    pub files: Vec<(PathBuf, &'static str)>,
    /// The sources of its volumes.
    pub volumes: Vec<PathBuf>,
    /// The devices that it was given.
    pub devices: Vec<HostDevice>,
    /// The disks with limits.
    pub disks: Vec<Disk>,
    /// The profile that was named.
    pub profile: Option<LinuxSeccomp>,
}

impl Parts {
    /// Looks for all of it, and makes what is the instance's own.
    pub fn find(container: &ContainerSpec, directory: &Path) -> Result<Self, String> {
        let root = root(container, directory)?;
        make(container, directory)?;
        let volumes = container.volumes.iter();
        let volumes: Result<Vec<PathBuf>, String> = volumes
            .map(|volume| source(&volume.source, directory))
            .collect();
        let volumes = volumes?;
        let files = files(container, &volumes, directory)?;
        let devices: Result<_, String> = container.devices.iter().map(device).collect();
        Ok(Parts {
            root,
            files,
            volumes,
            devices: devices?,
            disks: disks(container)?,
            profile: profile(&container.seccomp)?,
        })
    }

    /// Writes the files that stand in for the image's.
    pub fn write(&self, destination: &str, text: &str) -> io::Result<()> {
        let mut files = self.files.iter();
        match files.find(|(_, place)| *place == destination) {
            // The same file, as the container has it open by its mount.
            Some((path, _)) => {
                let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
                file.write_all(text.as_bytes())
            }
            None => Ok(()),
        }
    }
}

fn root(container: &ContainerSpec, directory: &Path) -> Result<OverlayRoot, String> {
    let lowers: Vec<PathBuf> = container
        .lowers
        .iter()
        .map(|lower| directory.join(lower))
        .collect();
    if lowers.is_empty() {
        return Err("it has no image's layers; create it again from an image".to_owned());
    }
    for lower in &lowers {
        if !lower.is_dir() {
            return Err(format!(
                "a layer of its image, '{}', is gone; pull the image again",
                lower.display()
            ));
        }
    }
    Ok(OverlayRoot {
        lowers,
        upper: directory.join(UPPER),
        work: directory.join(WORK),
    })
}

/// User and group of this process, if it is not root's.
pub fn maker() -> Option<(u32, u32)> {
    let user = geteuid();
    (!user.is_root()).then(|| (user.as_raw(), getegid().as_raw()))
}

/// Removes the directory of an instance, with files of its container's ids.
pub fn remove(directory: &Path) -> io::Result<()> {
    let removed = || fs::remove_dir_all(directory).map_err(|error| error.to_string());
    let ids = store::read_config(directory)
        .ok()
        .and_then(|config| config.container()?.ids);
    match (maker(), ids) {
        (Some(maker), Some(ids)) => as_its_root(ids, maker, removed).map_err(io::Error::other),
        _ => fs::remove_dir_all(directory),
    }
}

/// Does something as the root of a user's container.
fn as_its_root(
    ids: IdRange,
    maker: (u32, u32),
    act: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let (users, groups) = spec::maps(ids, Some(maker))?;
    croft_container::as_root_of((&users, &groups), act).map_err(|error| error.to_string())
}

/// Makes what is the instance's own and belongs to the container's root.
fn make(container: &ContainerSpec, directory: &Path) -> Result<(), String> {
    match (maker(), container.ids) {
        (Some(maker), Some(ids)) => {
            let mut wanted = vec![directory.join(UPPER), directory.join(WORK)];
            wanted.extend(own_volumes(container).map(|name| store::own_volume(directory, name)));
            if wanted.iter().all(|path| path.exists()) {
                return Ok(());
            }
            // As that root sees it.
            let inside = IdRange { first: 0, ..ids };
            as_its_root(ids, maker, || make_as(container, directory, Some(inside)))
        }
        (_, ids) => make_as(container, directory, ids),
    }
}

/// The same by root, be it only the container's.
fn make_as(
    container: &ContainerSpec,
    directory: &Path,
    ids: Option<IdRange>,
) -> Result<(), String> {
    let upper = directory.join(UPPER);
    let first = !upper.exists();
    own(&upper, 0o755, ids)?;
    if first && container.role == ContainerRole::System {
        name(container, &upper, ids)?;
    }
    own(&directory.join(WORK), 0o700, ids)?;
    for name in own_volumes(container) {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain || name.is_empty() {
            return Err(format!("'{}' is no name of a volume", name.escape_debug()));
        }
        let path = store::own_volume(directory, name);
        if let Some(all) = path.parent() {
            own(all, 0o711, None)?;
        }
        // Its files have the ids that they have in containers, as all volumes'.
        own(&path, 0o755, None)?;
    }
    Ok(())
}

/// The names of a container's own volumes.
fn own_volumes(container: &ContainerSpec) -> impl Iterator<Item = &String> {
    let volumes = container.volumes.iter();
    volumes.filter_map(|volume| match &volume.source {
        VolumeSource::Own(name) => Some(name),
        VolumeSource::Path(_) | VolumeSource::Named(_) => None,
    })
}

/// A system takes its name from a file that it may change, of which the image
/// has one that is every instance's: it gets its own at its first start.
fn name(container: &ContainerSpec, upper: &Path, ids: Option<IdRange>) -> Result<(), String> {
    let etc = own(&upper.join("etc"), 0o755, ids)?;
    let path = etc.join("hostname");
    fs::write(&path, format!("{}\n", hostname(container)))
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
        .and_then(|()| give(&path, ids))
        .map_err(|error| format!("cannot make '{}': {error}", path.display()))
}

/// A directory of the instance's own, which belongs to the container's root.
fn own(path: &Path, mode: u32, ids: Option<IdRange>) -> Result<PathBuf, String> {
    let failed = |error: io::Error| format!("cannot make '{}': {error}", path.display());
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let owner = fs::metadata(path).map_err(failed)?.uid();
            let root = rustix::process::geteuid().as_raw();
            // Its maker was killed before it had given it away.
            if owner != root || ids.is_none_or(|ids| ids.first == root) {
                return Ok(path.to_owned());
            }
        }
        Err(error) => return Err(failed(error)),
    }
    // Whatever the umask has left of it.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    give(path, ids).map_err(failed)?;
    Ok(path.to_owned())
}

/// Gives a file to the container's root, where this process may do so.
fn give(path: &Path, ids: Option<IdRange>) -> io::Result<()> {
    match ids {
        Some(ids) if geteuid().is_root() => chown(path, Some(ids.first), Some(ids.first)),
        _ => Ok(()),
    }
}

/// An application's image knows neither its name nor its network. A system
/// looks after both itself. What a volume has in one of these places is covered
/// too, unless the volume is that file, or has no such file and cannot get one.
fn files(
    container: &ContainerSpec,
    volumes: &[PathBuf],
    directory: &Path,
) -> Result<Vec<(PathBuf, &'static str)>, String> {
    if container.role == ContainerRole::System {
        return Ok(Vec::new());
    }
    let has_no_place = |destination: &str| {
        let around = container.volumes.iter().zip(volumes);
        let around = around.filter_map(|(volume, source)| {
            let rest = Path::new(destination).strip_prefix(&volume.destination);
            rest.ok().map(|rest| (volume, source, rest))
        });
        // What is mounted last in the deepest directory is what is seen.
        let innermost = around.max_by_key(|(volume, ..)| volume.destination.len());
        innermost.is_some_and(|(volume, source, rest)| {
            rest.as_os_str().is_empty() || volume.read_only && !source.join(rest).is_file()
        })
    };
    let files = FILES
        .iter()
        .filter(|(_, destination)| !has_no_place(destination));
    let made = files.map(|(name, destination)| {
        let path = directory.join(name);
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
            .and_then(|()| give(&path, container.ids));
        match made {
            Ok(()) => Ok((path, *destination)),
            Err(error) => Err(format!("cannot make '{}': {error}", path.display())),
        }
    });
    made.collect()
}

fn source(source: &VolumeSource, directory: &Path) -> Result<PathBuf, String> {
    match source {
        VolumeSource::Path(path) => {
            let path = directory.join(path);
            match path.metadata() {
                Ok(_) => Ok(path),
                Err(error) => Err(format!(
                    "volume '{}': {error}; name what is there",
                    path.display()
                )),
            }
        }
        VolumeSource::Own(name) => Ok(store::own_volume(directory, name)),
        VolumeSource::Named(name) => match store::volume(directory, name) {
            Some(path) if path.is_dir() => Ok(path),
            _ => Err(format!(
                "volume '{0}' is gone; 'croft volume create {0}' makes an empty one",
                name.escape_debug()
            )),
        },
    }
}

fn device(device: &croft_api::container::Device) -> Result<HostDevice, String> {
    let path = device.source.display();
    let about = device
        .source
        .metadata()
        .map_err(|error| format!("device '{path}': {error}"))?;
    let kind = about.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Err(format!("'{path}' is no device"));
    }
    Ok(HostDevice {
        path: PathBuf::from(&device.destination),
        block: kind.is_block_device(),
        major: major(about.rdev()),
        minor: minor(about.rdev()),
        access: device.access.clone(),
    })
}

/// The disks of a container's limits.
pub fn disks(container: &ContainerSpec) -> Result<Vec<Disk>, String> {
    let disks = container.limits.io.iter().map(|limit| {
        let path = limit.device.display();
        let about = limit
            .device
            .metadata()
            .map_err(|error| format!("disk '{path}': {error}"))?;
        if !about.file_type().is_block_device() {
            return Err(format!("'{path}' is no disk"));
        }
        Ok(Disk {
            major: major(about.rdev()),
            minor: minor(about.rdev()),
        })
    });
    disks.collect()
}

fn profile(seccomp: &Seccomp) -> Result<Option<LinuxSeccomp>, String> {
    let Seccomp::Profile(path) = seccomp else {
        return Ok(None);
    };
    let named = format!("seccomp profile '{}'", path.display());
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(PROFILE_MAX).read_to_end(&mut text))
        .map_err(|error| format!("{named}: {error}"))?;
    let profile = serde_json::from_slice(&text).map_err(|error| format!("{named}: {error}"))?;
    Ok(Some(profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_has_its_own_name_and_keeps_what_it_makes_of_it() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("lower")).unwrap();
        let mut container = ContainerSpec {
            name: "web_1".to_owned(),
            lowers: vec!["lower".into()],
            role: ContainerRole::System,
            ..ContainerSpec::default()
        };
        let file = place.path().join("upper/etc/hostname");
        make(&container, place.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "web-1\n");
        fs::write(&file, "other\n").unwrap();
        make(&container, place.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "other\n");
        // An application's is mounted.
        fs::remove_dir_all(place.path().join("upper")).unwrap();
        container.role = ContainerRole::Application;
        make(&container, place.path()).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_directory_that_was_not_given_away_is_now() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let ids = Some(IdRange {
            first: 600_000,
            count: 65_536,
        });
        let path = place.path().join(UPPER);
        // As one leaves it that is killed in the middle.
        fs::create_dir(&path).unwrap();
        own(&path, 0o755, ids).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 600_000);
        // The container may have given it to another of its users since.
        chown(&path, Some(600_033), None).unwrap();
        own(&path, 0o755, ids).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 600_033);
    }

    #[test]
    fn a_volumes_name_leads_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("instances/web");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(place.path().join("volumes/db/data")).unwrap();
        let find = |name: &str| source(&VolumeSource::Named(name.to_owned()), &directory);
        assert_eq!(find("db").unwrap(), place.path().join("volumes/db/data"));
        for name in ["", "gone", "..", "../volumes/db", "/", ".db"] {
            assert!(find(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_volume_around_a_file_of_ours_has_it_in_it_if_it_can() {
        let place = tempfile::tempdir().unwrap();
        let volume = |destination: &str, read_only| croft_api::container::Volume {
            source: VolumeSource::Path(place.path().join("etc")),
            destination: destination.to_owned(),
            read_only,
        };
        fs::create_dir(place.path().join("etc")).unwrap();
        fs::write(place.path().join("etc/hosts"), "").unwrap();
        let stand_in = |volumes: Vec<croft_api::container::Volume>| {
            let sources = vec![place.path().join("etc"); volumes.len()];
            let container = ContainerSpec {
                volumes,
                ..ContainerSpec::default()
            };
            let files = files(&container, &sources, place.path()).unwrap();
            let places: Vec<&str> = files.iter().map(|(_, place)| *place).collect();
            places
        };
        let all = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
        assert_eq!(stand_in(vec![]), all);
        assert_eq!(
            stand_in(vec![volume("/etc", false), volume("/et", true)]),
            all
        );
        assert_eq!(stand_in(vec![volume("/etc", true)]), ["/etc/hosts"]);
        assert_eq!(
            stand_in(vec![volume("/etc/hosts", true), volume("/", false)]),
            ["/etc/resolv.conf", "/etc/hostname"]
        );
    }
}
