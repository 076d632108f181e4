//! `croft save`: a running machine to a file.
//!
//! ```text
//! checking ──► connected ──► file made ──Save──► waiting ──► exit code
//!    │ wrong        │ refused                      │ Failed: file removed
//!    ▼              ▼                              ▼
//!  exit 2         exit 2                         exit 1
//! ```
//!
//! The file is good as soon as the machine has ended, whether this command
//! still waits or not; until then its end is missing, and nothing restores it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use croft_api::channel::channel;
use croft_api::control::{Event, PROTOCOL, Request};
use croft_host::Directories;

use crate::args::save::SaveOptions;
use crate::exit::Exit;
use crate::say;

/// Name of the other end in messages.
const PEER: &str = "croft-monitor";

/// Saves a machine.
pub fn run(options: &SaveOptions) -> Exit {
    let socket = find(&options.socket);
    let (exit, message) = match save(&socket, options.file.as_ref()) {
        Ok(()) => return Exit::PowerOff,
        Err(Failure::Usage(message)) => (Exit::Usage, message),
        Err(Failure::NotSaved(message)) => (Exit::Failed, message),
    };
    say::line(&format!("croft: {message}"));
    exit
}

/// The control socket that is meant: by its path, or by the name of an
/// instance.
fn find(socket: &OsStr) -> PathBuf {
    let path = PathBuf::from(socket);
    let name = socket.to_str().and_then(|name| name.parse().ok());
    let directories = Directories::find();
    match (name, directories) {
        (Some(name), Ok(directories)) if !path.exists() && directories.instance(&name).is_dir() => {
            directories.socket(&name)
        }
        _ => path,
    }
}

enum Failure {
    /// Nothing was done.
    Usage(String),
    /// It was tried.
    NotSaved(String),
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().escape_debug())
}

fn save(socket: &Path, path: &Path) -> Result<(), Failure> {
    let stream = croft_host::socket::connect(socket).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => "no such socket".to_owned(),
            ErrorKind::ConnectionRefused => "no machine listens there any more".to_owned(),
            _ => error.to_string(),
        };
        let socket = quoted(socket);
        Failure::Usage(format!(
            "{socket}: {why}; name a running instance, or the --control socket of a machine"
        ))
    })?;
    let file = create(path).map_err(Failure::Usage)?;
    let not_saved = |why: &str| {
        // It was made here, and nothing in it can be used.
        let _ = fs::remove_file(path);
        Err(Failure::NotSaved(format!("not saved: {why}")))
    };
    let (mut sender, mut receiver) = channel(stream.into(), PROTOCOL, PEER);
    if let Err(error) = sender.deliver(&Request::Save, vec![file.into()]) {
        return not_saved(&error.to_string());
    }
    let why = match receiver.wait::<Event>() {
        Ok(Some((Event::Saved, _))) => return Ok(()),
        Ok(Some((Event::Failed { message }, _))) => return not_saved(&message),
        Ok(Some(_)) => "the machine's monitor answered something else".to_owned(),
        Ok(None) => "the machine's monitor went away".to_owned(),
        Err(error) => error.to_string(),
    };
    // The save may be under way, or done.
    Err(Failure::NotSaved(format!(
        "{why}; whether {} is complete, 'croft restore' will find out",
        quoted(path)
    )))
}

/// Makes the file, for its owner alone: it holds all that the guest has in
/// memory.
fn create(path: &Path) -> Result<File, String> {
    let name = quoted(path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                format!("{name} exists already; remove it or name another file")
            }
            _ => format!("{name}: {error}; name a file that can be made"),
        })?;
    // The name must outlast a power failure as the contents do. Where a
    // directory cannot be synchronised there is nothing more to do.
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Ok(directory) = File::open(directory.unwrap_or(Path::new("."))) {
        let _ = directory.sync_all();
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_that_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        drop(create(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0);
        fs::write(&path, "precious").unwrap();
        assert!(create(&path).unwrap_err().contains("exists already"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(create(&directory.path().join("no/where")).is_err());
    }
}
