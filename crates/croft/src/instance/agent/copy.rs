//! `croft cp`.

use std::ffi::OsStr;
use std::path::Path;

use croft_api::agent::{Get, Put};
use croft_host::InstanceName;

use super::connect;
use crate::args::agent::{CopyOptions, Place};
use crate::exit::Exit;
use crate::instance::{Fault, finish, open};
use crate::say;

/// Copies into an instance, or out of it.
pub fn copy(options: &CopyOptions) -> Exit {
    finish(match (&options.source, &options.destination) {
        (Place::Host(from), Place::Guest(name, to)) => {
            put(options, from, name, to).map_err(|fault| fault.of(name))
        }
        (Place::Guest(name, from), Place::Host(to)) => {
            get(name, from, to).map_err(|fault| fault.of(name))
        }
        _ => Err(Fault::usage(
            "one of the two must be in an instance (NAME:/path), the other one on this host",
        )),
    })
}

fn put(
    options: &CopyOptions,
    from: &OsStr,
    name: &InstanceName,
    to: &OsStr,
) -> Result<Exit, Fault> {
    const ROOT: (u32, u32) = (0, 0);
    let put = Put {
        path: to.to_owned(),
        owner: match options.archive {
            true => None,
            false => Some(options.owner.unwrap_or(ROOT)),
        },
    };
    let client = connect(&open()?, name)?;
    client.put(Path::new(from), put)?;
    Ok(Exit::PowerOff)
}

fn get(name: &InstanceName, from: &OsStr, to: &OsStr) -> Result<Exit, Fault> {
    let client = connect(&open()?, name)?;
    let get = Get {
        path: from.to_owned(),
    };
    let arrival = client.get(get, Path::new(to))?;
    for skipped in &arrival.skipped {
        say::line(&format!("croft: left out: {skipped}"));
    }
    match arrival.skips {
        0 => Ok(Exit::PowerOff),
        skips => Err(Fault::failed(format!("{skips} entries were left out"))),
    }
}
