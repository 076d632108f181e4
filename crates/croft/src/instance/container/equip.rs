//! What a container is, of its image and of what somebody wants.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use croft_api::container::{
    ContainerLimits, ContainerRole, ContainerSpec, PIDS, Volume, VolumeSource,
};
use croft_host::Instances;
use croft_host::store::{self, ImageUse};
use croft_image::build::Recipe;
use croft_image::store::Hold;
use croft_image::volume::{VolumeHold, Volumes, fill};
use croft_image::{ContainerImage, Error, Role, Store};

use crate::args::container::{ContainerOptions, LimitOptions, ProgramOptions};
use crate::args::container_values::{parse_env, parse_signal};
use crate::image::bar::Bar;
use crate::image::pull_by_name;
use crate::instance::Fault;
use crate::say;

/// An image that is there, with its layers unpacked.
#[derive(Debug)]
pub struct Image {
    reference: String,
    id: String,
    image: ContainerImage,
    /// Until it is written that the instance uses it, it could be deleted.
    _hold: Hold,
}

impl Image {
    /// The image with this name; one that can be built and is not there is.
    pub fn open(instances: &Instances, reference: &str) -> Result<Self, Fault> {
        let store = Store::open(&instances.directories().images())?;
        // Whoever puts an image into the store waits for holds to be gone.
        obtain(instances, &store, reference)?;
        let hold = store.hold()?;
        let found = store.resolve(reference)?;
        let mut bar = Bar::new();
        let mut warn = |text: &str| say::line(&format!("croft: {text}"));
        let image = store.container(&found, &mut bar, &mut warn)?;
        Ok(Image {
            reference: reference.to_owned(),
            id: found.id.to_string(),
            image,
            _hold: hold,
        })
    }

    /// What an instance says of it.
    pub fn usage(&self) -> ImageUse {
        ImageUse {
            name: self.reference.clone(),
            id: self.id.clone(),
        }
    }
}

/// Sees to it that there is an image with this name.
fn obtain(instances: &Instances, store: &Store, reference: &str) -> Result<(), Fault> {
    match store.resolve(reference) {
        Err(Error::NotFound { .. }) if Recipe::new(reference).is_ok() => {
            say::line(&format!(
                "croft: there is no image {reference} yet; building it"
            ));
            Ok(crate::image::build_by_name(store, reference)?)
        }
        Err(Error::NotFound { .. }) => {
            say::line(&format!(
                "croft: there is no image {reference} here; asking its registry"
            ));
            Ok(pull_by_name(store, instances.directories(), reference)?)
        }
        found => Ok(found.map(drop)?),
    }
}

/// Makes the volumes that a container names and that are not there, with what
/// the image has in their places. Until it is written that the instance uses
/// them, they could be deleted.
pub fn volumes(
    instances: &Instances,
    container: &ContainerSpec,
) -> Result<Option<VolumeHold>, Fault> {
    let named = container
        .volumes
        .iter()
        .filter_map(|volume| match &volume.source {
            VolumeSource::Named(name) => Some((name, &volume.destination)),
            VolumeSource::Path(_) | VolumeSource::Own(_) => None,
        });
    let named: Vec<_> = named.collect();
    if named.is_empty() {
        return Ok(None);
    }
    let volumes = Volumes::open(&instances.directories().volumes())?;
    for (name, destination) in &named {
        volumes.ensure(name)?;
        volumes.fill(name, &container.lowers, destination)?;
    }
    let hold = volumes.hold()?;
    for (name, _) in &named {
        volumes.get(name)?;
    }
    Ok(Some(hold))
}

/// Makes the volumes in an instance's directory that are its own, with what the
/// image has in their places.
pub fn own_volumes(container: &ContainerSpec, directory: &Path) -> Result<(), Fault> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Fault::failed(format!("cannot make '{path}': {error}"))
    };
    for volume in &container.volumes {
        let VolumeSource::Own(name) = &volume.source else {
            continue;
        };
        let path = store::own_volume(directory, name);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        if let Some(all) = path.parent() {
            builder.create(all).map_err(failed(all))?;
        }
        builder.mode(0o755).create(&path).map_err(failed(&path))?;
        // Docker's default, whatever the umask has left of it.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed(&path))?;
        fill(&path, &container.lowers, &volume.destination)?;
    }
    Ok(())
}

/// The configuration of a container of an image, but its name and ids.
pub fn container(options: &ContainerOptions, image: &Image) -> Result<ContainerSpec, Fault> {
    let from = &image.image;
    let config = &from.config;
    let program = &options.program;
    let entrypoint = program.entrypoint.as_ref().map(|one| match one.as_str() {
        "" => Vec::new(),
        one => vec![one.to_owned()],
    });
    let command = config.command(entrypoint.as_deref(), &options.command);
    if command.is_empty() {
        return Err(Fault::usage(format!(
            "image {} does not say what is to be run; give a command behind its name",
            image.reference
        )));
    }
    // Another command than a system's init is a program as any other, which does
    // not know of the init's signals.
    let system = from.role == Role::System;
    let boots = system && command.first() == config.command(None, &[]).first();
    let image_signal = config.stop_signal.as_ref().filter(|_| boots || !system);
    let stop_signal = match (program.stop_signal, image_signal) {
        (Some(signal), _) => Some(signal),
        (None, Some(name)) => Some(parse_signal(name).map_err(|_| {
            Fault::failed(format!(
                "image {}: its stop signal '{}' is none; give one by --stop-signal",
                image.reference,
                name.escape_debug()
            ))
        })?),
        (None, None) => None,
    };
    let mut volumes = options.files.volumes.clone();
    for volume in &mut volumes {
        if let VolumeSource::Path(path) = &mut volume.source {
            *path = absolute(path)?;
        }
    }
    if options.files.read_only {
        // What the image says is written to is its own.
        for (number, path) in config.volumes.iter().enumerate() {
            if !volumes.iter().any(|volume| volume.destination == *path) {
                volumes.push(Volume {
                    source: VolumeSource::Own(number.to_string()),
                    destination: path.clone(),
                    read_only: false,
                });
            }
        }
    }
    Ok(ContainerSpec {
        name: String::new(),
        role: if boots {
            ContainerRole::System
        } else {
            ContainerRole::Application
        },
        lowers: from.lowers.clone(),
        read_only: options.files.read_only,
        ids: None,
        command,
        env: environment(&config.env, program)?,
        cwd: program
            .workdir
            .clone()
            .unwrap_or_else(|| config.working_dir.clone()),
        user: program.user.clone().unwrap_or_else(|| config.user.clone()),
        tty: options.tty || boots,
        stdin: options.interactive || boots,
        hostname: program.hostname.clone().unwrap_or_default(),
        volumes,
        tmpfs: options.files.tmpfs.clone(),
        devices: options.files.devices.clone(),
        limits: limits(
            &options.limits,
            ContainerLimits {
                pids: Some(PIDS),
                ..ContainerLimits::default()
            },
        ),
        rlimits: options
            .rights
            .ulimit
            .iter()
            .cloned()
            .collect::<BTreeMap<_, _>>(),
        cap_add: options.rights.cap_add.clone(),
        cap_drop: options.rights.cap_drop.clone(),
        sysctls: options.rights.sysctl.iter().cloned().collect(),
        seccomp: options.rights.seccomp.clone(),
        no_new_privileges: options.rights.no_new_privileges,
        stop_signal,
    })
}

/// What was limited before, and what is given.
pub fn limits(given: &LimitOptions, before: ContainerLimits) -> ContainerLimits {
    ContainerLimits {
        cpus: given.cpus.or(before.cpus),
        cpu_weight: given.cpu_weight.or(before.cpu_weight),
        cpuset: given.cpuset.clone().or(before.cpuset),
        memory: given.memory.or(before.memory),
        memory_high: given.memory_high.or(before.memory_high),
        swap: given.swap.or(before.swap),
        pids: given.pids.or(before.pids),
        io_weight: given.io_weight.or(before.io_weight),
        io: before.io,
    }
}

/// The image's variables, those of files, and those that are given; the last
/// of a name counts.
fn environment(image: &[String], program: &ProgramOptions) -> Result<Vec<String>, Fault> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |variable: String| {
        let name = |one: &str| one.split('=').next().unwrap_or_default().to_owned();
        let own = name(&variable);
        env.retain(|one| name(one) != own);
        // One without a value is not set here, and so not there.
        if variable.contains('=') {
            env.push(variable);
        }
    };
    image.iter().cloned().for_each(&mut set);
    for file in &program.env_file {
        let named = format!("--env-file '{}'", file.display());
        let text =
            fs::read_to_string(file).map_err(|error| Fault::usage(format!("{named}: {error}")))?;
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let variable = parse_env(line);
            set(variable.map_err(|error| Fault::usage(format!("{named}: {error}")))?);
        }
    }
    program.env.iter().cloned().for_each(&mut set);
    Ok(env)
}

/// It is found from wherever the container is started.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Fault> {
    let named = path.to_string_lossy();
    let named = named.escape_debug();
    let absolute =
        std::path::absolute(path).map_err(|error| Fault::usage(format!("'{named}': {error}")))?;
    match absolute.metadata() {
        Ok(_) => Ok(absolute),
        Err(error) => Err(Fault::usage(format!(
            "--volume '{named}': {error}; name what is there"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_variable_of_a_name_counts() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("env");
        fs::write(&file, "# mine\nB=file\nC=file\n").unwrap();
        let program = ProgramOptions {
            env: vec!["C=given".to_owned(), "NOT_SET_ANYWHERE".to_owned()],
            env_file: vec![file],
            workdir: None,
            user: None,
            entrypoint: None,
            hostname: None,
            stop_signal: None,
        };
        let image = ["A=image".to_owned(), "B=image".to_owned()];
        assert_eq!(
            environment(&image, &program).unwrap(),
            ["A=image", "B=file", "C=given"]
        );
    }

    #[test]
    fn what_is_not_given_stays() {
        let before = ContainerLimits {
            memory: Some(1),
            pids: Some(2),
            ..ContainerLimits::default()
        };
        let given = LimitOptions {
            memory: Some(3),
            ..LimitOptions::default()
        };
        let after = limits(&given, before);
        assert_eq!(
            (after.memory, after.pids, after.cpus),
            (Some(3), Some(2), None)
        );
    }
}
