//! `croft cp`: by the agent in a machine's guest, and into a container's root
//! from outside.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use croft_agent::AgentError;
use croft_api::agent::{Get, Put};
use croft_host::{InstanceName, Instances};

use super::guest::agent;
use super::{Fault, container, finish, open};
use crate::args::guest::CpOptions;
use crate::exit::Exit;
use crate::say;

/// Copies into a guest or out of one.
pub fn cp(options: &CpOptions) -> Exit {
    finish(open().and_then(|instances| {
        match (place(&options.from), place(&options.to)) {
            (Place::Host(from), Place::Guest(name, to)) => {
                if is_container(&instances, &name)? {
                    let owner = options.owner.unwrap_or((0, 0));
                    let owner = (!options.archive).then_some(owner);
                    container::put(&instances, &name, from, to, owner)?;
                    return Ok(Exit::PowerOff);
                }
                let put = Put {
                    path: to.to_owned(),
                    // What is copied belongs to the guest's root.
                    owner: match options.archive {
                        true => None,
                        false => Some(options.owner.unwrap_or((0, 0))),
                    },
                };
                let put = agent(&instances, &name)?.put(from, put);
                put.map_err(|error| copying(&name, &error))?;
            }
            (Place::Guest(name, from), Place::Host(to)) => {
                let got = if is_container(&instances, &name)? {
                    container::get(&instances, &name, from, to)?
                } else {
                    let get = Get {
                        path: from.to_owned(),
                    };
                    let got = agent(&instances, &name)?.get(get, to);
                    got.map_err(|error| copying(&name, &error))?
                };
                for skipped in &got.skipped {
                    say::line(&format!("croft: {name}: left out: {skipped}"));
                }
                if got.skips > 0 {
                    let text = format!("{} entries were left out", got.skips);
                    return Err(Fault::failed(text).of(&name));
                }
            }
            _ => {
                return Err(Fault::usage(
                    "copy into a guest or out of one: give one path, and one NAME:PATH",
                ));
            }
        }
        Ok(Exit::PowerOff)
    }))
}

fn is_container(instances: &Instances, name: &InstanceName) -> Result<bool, Fault> {
    Ok(instances.config(name)?.container().is_some())
}

fn copying(name: &InstanceName, error: &AgentError) -> Fault {
    Fault::failed(error.to_string()).of(name)
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Host(&'a Path),
    Guest(InstanceName, &'a OsStr),
}

/// `NAME:PATH` is in a guest; what has a slash before the colon, or no name,
/// is a path of the host.
fn place(text: &OsStr) -> Place<'_> {
    let bytes = text.as_bytes();
    let guest = bytes.iter().position(|byte| *byte == b':').and_then(|at| {
        let (name, path) = bytes.split_at(at);
        let name = str::from_utf8(name).ok()?.parse().ok()?;
        Some(Place::Guest(name, OsStr::from_bytes(path.get(1..)?)))
    });
    guest.unwrap_or_else(|| Place::Host(Path::new(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_colon_are_in_a_guest() {
        let guest = |text: &'static str| match place(OsStr::new(text)) {
            Place::Guest(name, path) => Some((name.to_string(), path.to_str().unwrap())),
            Place::Host(path) => {
                assert_eq!(path, Path::new(text));
                None
            }
        };
        assert_eq!(guest("web:/etc"), Some(("web".to_owned(), "/etc")));
        assert_eq!(guest("web:/a:b"), Some(("web".to_owned(), "/a:b")));
        for host in ["file", "./web:/etc", "/a:b", ":x", ""] {
            assert_eq!(guest(host), None);
        }
    }
}
