//! `croft image pull`, `login` and `logout`.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use croft_host::Directories;
use croft_image::registry::credentials::{self, Login};
use croft_image::registry::{self, Access};
use croft_image::store::{Committed, Store};
use rustix::stdio::stdin;
use rustix::termios::isatty;

use super::bar::Bar;
use super::{Fault, committed, secret, usage, warn};
use crate::args::image::{AccessOptions, LoginOptions, PullOptions};
use crate::exit::Exit;
use crate::say;

/// Longest name or password that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// Gets an image.
pub fn pull(
    store: &Store,
    directories: &Directories,
    options: &PullOptions,
) -> Result<Exit, Fault> {
    let host = registry::host_of(&options.image)?;
    let given = given(&options.access)?;
    let login = match given {
        Some(login) => Some(login),
        None => credentials::find(&files(directories), &host)?,
    };
    let pulled = by_name(store, &options.image, &access(&options.access, login));
    Ok(committed(&pulled?))
}

/// Gets an image that somebody wants to use, by whatever is known of its
/// registry.
pub fn pull_by_name(
    store: &Store,
    directories: &Directories,
    name: &str,
) -> Result<(), croft_image::Error> {
    let host = registry::host_of(name)?;
    let login = credentials::find(&files(directories), &host)?;
    let access = Access {
        login,
        ..Access::default()
    };
    by_name(store, name, &access).map(drop)
}

fn by_name(store: &Store, name: &str, access: &Access) -> Result<Committed, croft_image::Error> {
    let mut bar = Bar::new();
    let mut warnings = Vec::new();
    let pulled = registry::pull(store, name, access, &mut bar, &mut |text| {
        warnings.push(text.to_owned());
    });
    bar.finish();
    warn(warnings);
    pulled
}

/// Keeps a password that the registry takes.
pub fn log_in(directories: &Directories, options: &LoginOptions) -> Result<Exit, Fault> {
    let host = host(&options.registry)?;
    let login = match given(&options.access)? {
        Some(login) => login,
        None => asked(&host, options.access.username.clone())?,
    };
    let access = access(&options.access, Some(login.clone()));
    registry::log_in(&host, &access)?;
    if let Login::Password { user, password } = &login {
        credentials::keep(&own_file(directories), &host, user, password)?;
        say::line(&format!("croft: logged in to {host} as {user}"));
    }
    Ok(Exit::PowerOff)
}

/// Forgets a registry's password.
pub fn log_out(directories: &Directories, name: &str) -> Result<Exit, Fault> {
    let host = host(name)?;
    if credentials::forget(&own_file(directories), &host)? {
        return Ok(Exit::PowerOff);
    }
    Err(usage(format!("nobody has logged in to {host} by croft")))
}

/// A registry that is named alone, without an image.
fn host(name: &str) -> Result<String, Fault> {
    let host = registry::host_of(&format!("{name}/x"))?;
    if host == name {
        return Ok(host);
    }
    Err(usage(format!(
        "'{}' is no registry; give its host and port, like registry.example:5000",
        name.escape_debug()
    )))
}

fn own_file(directories: &Directories) -> PathBuf {
    directories.data().join("registries.json")
}

fn files(directories: &Directories) -> Vec<PathBuf> {
    let own = own_file(directories);
    [Some(own), credentials::docker_file()]
        .into_iter()
        .flatten()
        .collect()
}

fn access(options: &AccessOptions, login: Option<Login>) -> Access {
    Access {
        login,
        authorities: options.ca_file.clone(),
        insecure: options.insecure,
    }
}

/// The login that the command line gives.
fn given(options: &AccessOptions) -> Result<Option<Login>, Fault> {
    if !options.password_stdin {
        return match &options.username {
            Some(_) if !isatty(stdin()) => Err(usage(
                "--username wants a password: give it with --password-stdin",
            )),
            _ => Ok(None),
        };
    }
    let Some(user) = options.username.clone() else {
        return Err(usage("--password-stdin wants --username too"));
    };
    let mut password = String::new();
    io::stdin()
        .take(LONGEST)
        .read_to_string(&mut password)
        .map_err(|error| usage(format!("standard input has no password: {error}")))?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    Ok(Some(Login::Password { user, password }))
}

/// Asks at the terminal.
fn asked(host: &str, user: Option<String>) -> Result<Login, Fault> {
    if !isatty(stdin()) {
        return Err(usage("give --username and --password-stdin"));
    }
    let user = match user {
        Some(user) => user,
        None => line(&format!("User for {host}: "))?,
    };
    let password = secret::unseen(|| ask("Password: "), answer)
        .map_err(|error| usage(format!("the terminal: {error}")))?;
    Ok(Login::Password {
        user,
        password: password?,
    })
}

fn line(question: &str) -> Result<String, Fault> {
    ask(question);
    answer()
}

fn ask(question: &str) {
    // A terminal that cannot be written to cannot be read from either.
    let _ = io::stderr().write_all(question.as_bytes());
}

fn answer() -> Result<String, Fault> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(LONGEST)
        .read_line(&mut text)
        .map_err(|error| usage(format!("the terminal: {error}")))?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() {
        return Err(usage("nothing was given"));
    }
    Ok(text)
}
