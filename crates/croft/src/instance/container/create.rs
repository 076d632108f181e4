//! `croft create --container` and `croft run --container`.

use croft_api::container::{ContainerRole, ContainerSpec, IdRange};
use croft_host::store::{CONFIG_VERSION, IdsError, Kind, NewInstance, own_id};
use croft_host::{Config, InstanceName, Instances, StoreError, now};
use rustix::stdio::stdin;
use rustix::termios::isatty;

use super::equip::{self, Image};
use super::foreground::{self, Foreground};
use crate::args::container::{ContainerOptions, CreateOptions, RunOptions};
use crate::exit::Exit;
use crate::instance::create::{TRIES, base_name};
use crate::instance::guest::NOT_STARTED;
use crate::instance::nics::{ByDefault, nics};
use crate::instance::{Fault, finish, open};
use crate::{print, say};

/// Makes a container.
pub fn create(options: &CreateOptions) -> Exit {
    let made = open().and_then(|instances| {
        let (name, _) = make(&instances, &options.container)?;
        Ok(print(format!("{name}\n").as_bytes()))
    });
    finish(made)
}

/// Makes a container, starts it, and stays with it unless it is to be in the
/// background. Whatever is wrong with Croft and not with the program is 125.
pub fn run(options: &RunOptions) -> Exit {
    match finish(open().and_then(|instances| run_in(&instances, options))) {
        Exit::Failed | Exit::Usage => Exit::Command(NOT_STARTED),
        exit => exit,
    }
}

fn run_in(instances: &Instances, options: &RunOptions) -> Result<Exit, Fault> {
    let wanted = &options.container;
    if wanted.tty && wanted.interactive && !options.detach && !isatty(stdin()) {
        return Err(Fault::usage(
            "standard input is no terminal; leave out --tty",
        ));
    }
    let (name, role) = make(instances, wanted)?;
    let system = role == ContainerRole::System;
    let log = |text: &str| say::line(&format!("croft: {name}: {text}"));
    let done = if options.detach {
        let started = instances.start(&name, log);
        started.map(|_| print(format!("{name}\n").as_bytes()))
    } else {
        let foreground = Foreground {
            tty: wanted.tty || system,
            stdin: wanted.interactive || system,
        };
        return match foreground::run(instances, &name, foreground) {
            Err(fault) => {
                forget(instances, &name);
                Err(fault)
            }
            done => done,
        };
    };
    match done {
        Ok(exit) => Ok(exit),
        Err(error) => {
            forget(instances, &name);
            foreground::refused(&name, error)
        }
    }
}

/// It was made for this run, and nothing of it ran.
fn forget(instances: &Instances, name: &InstanceName) {
    let status = instances.status(name);
    if status.is_ok_and(|status| !status.phase.is_live() && status.engine.is_none()) {
        let _ = instances.delete(name);
    }
}

/// Makes a container; its name, and what is run in it.
fn make(
    instances: &Instances,
    options: &ContainerOptions,
) -> Result<(InstanceName, ContainerRole), Fault> {
    if let Some(refusal) = options.machine.refusal() {
        return Err(Fault::usage(refusal));
    }
    let nics = nics(&options.net, ByDefault::Container).map_err(Fault::usage)?;
    let image = Image::open(instances, &options.image)?;
    let container = equip::container(options, &image)?;
    let _volumes = equip::volumes(instances, &container)?;
    let role = container.role;
    let mut tries = 0;
    loop {
        tries += 1;
        let name = name(options, tries)?;
        let new = match instances.begin(&name) {
            // Another one, if the choice was ours.
            Err(StoreError::Exists(_)) if options.name.is_none() && tries < TRIES => continue,
            new => new?,
        };
        let ids = ids(&new, role)?;
        equip::own_volumes(&container, new.directory())?;
        let config = Config {
            version: CONFIG_VERSION,
            created: now(),
            kind: Kind::Container(Box::new(ContainerSpec {
                name: name.to_string(),
                ids: Some(ids),
                ..container.clone()
            })),
            nics: nics.clone(),
            image: Some(image.usage()),
            user: None,
            restart: options.restart.into(),
            ephemeral: options.rm,
            autostart: options.autostart,
        };
        match new.finish(&config) {
            Err(StoreError::Exists(_)) if options.name.is_none() && tries < TRIES => {}
            done => return Ok(done.map(|()| (name, role))?),
        }
    }
}

/// Ids for a container. Where the host gives a user none, a program can still
/// do with the user's own.
fn ids(new: &NewInstance, role: ContainerRole) -> Result<IdRange, Fault> {
    match new.allocate_ids() {
        Err(error @ IdsError::NotGiven { .. }) if role == ContainerRole::Application => {
            say::line(&format!(
                "croft: its root is this user, and it has no other users: {error}"
            ));
            Ok(own_id())
        }
        ids => ids.map_err(|error| Fault::failed(error.to_string())),
    }
}

fn name(options: &ContainerOptions, tries: u32) -> Result<InstanceName, Fault> {
    let base = base_name(&options.image);
    let text = match (&options.name, tries) {
        (Some(name), _) => name.clone(),
        (None, 1) => base,
        (None, number) => format!("{base}-{number}"),
    };
    text.parse()
        .map_err(|error| Fault::usage(format!("--name '{text}': {error}")))
}
