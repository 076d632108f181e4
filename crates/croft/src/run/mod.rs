//! `croft run` and `croft restore`: a machine in the foreground.
//!
//! ```text
//! checking ──► waiting for the monitor ──► running ──► ending ──► exit code
//!    │ wrong          │ Stopped               │ Stopped   ▲
//!    ▼                ▼                       │           │ 2 s at most
//!  exit 2          exit code        Ctrl-], signal, stdout closed
//! ```

pub mod input;
mod monitor;
pub mod output;
mod session;
pub mod signals;
pub mod terminal;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use croft_api::monitor::{RestoreRequest, RunRequest};
use rustix::fs::OFlags;

use crate::args::create::Restart;
use crate::args::machine::Engine;
use crate::args::restore::RestoreOptions;
use crate::args::run::RunOptions;
use crate::exit::Exit;
use crate::instance::{ByDefault, machine_spec, nets, nics};
use crate::say;
use monitor::Start;

/// Name of a machine that was given none.
const UNNAMED: &str = "machine";

/// Runs a machine until it ends.
pub fn run(options: RunOptions) -> Exit {
    let auto = options.machine.engine == Engine::Auto;
    match request(options) {
        Ok(request) => session(Start::Run(request), auto),
        Err(message) => {
            say::line(&format!("croft: {message}"));
            Exit::Usage
        }
    }
}

/// Lets a saved machine go on until it ends.
pub fn restore(options: RestoreOptions) -> Exit {
    let auto = options.engine == Engine::Auto;
    let file = match open(options.file.as_ref()) {
        Ok(file) => file,
        Err(message) => {
            say::line(&format!("croft: {message}"));
            return Exit::Usage;
        }
    };
    match restore_request(options) {
        Ok(request) => session(Start::Restore(request, file), auto),
        Err(message) => {
            say::line(&format!("croft: {message}"));
            Exit::Usage
        }
    }
}

fn session(start: Start, auto: bool) -> Exit {
    match session::run(start, auto) {
        Ok(exit) => exit,
        Err(error) => {
            say::line(&format!("croft: {error}"));
            Exit::Failed
        }
    }
}

/// A path for messages: what could upset a terminal is escaped.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().escape_debug())
}

/// Opens a file that `croft save` wrote.
fn open(path: &Path) -> Result<File, String> {
    let name = quoted(path);
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| format!("{name}: {error}; name a file that 'croft save' wrote"))?;
    match file.metadata() {
        Ok(about) if about.is_file() => Ok(file),
        Ok(_) => Err(format!(
            "{name} is not a regular file; name one that 'croft save' wrote"
        )),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

fn restore_request(options: RestoreOptions) -> Result<RestoreRequest, String> {
    let (_, ports) = options.place.ports();
    Ok(RestoreRequest {
        file: quoted(options.file.as_ref()),
        name: options.name,
        engine: options.engine.into(),
        software: (&options.software).into(),
        kernel: options.kernel,
        initrd: options.initrd,
        disks: Some(options.disks).filter(|disks| !disks.is_empty()),
        nets: nets(&options.net)?,
        log: options.place.log,
        gdb: options.place.gdb,
        control: options.place.control,
        ports,
        vsock: options.place.vsock,
        terminal: false,
        no_jail: options.place.no_jail,
    })
}

fn request(options: RunOptions) -> Result<RunRequest, String> {
    let (names, ports) = options.place.ports();
    let name = options.name.as_deref().unwrap_or(UNNAMED);
    let mut machine = machine_spec(&options.machine, name);
    machine.vsock = options.place.vsock.as_ref().map(|_| options.vsock_cid);
    machine.ports = names;
    let instance = &options.instance;
    if instance.restart != Restart::No || instance.ephemeral || instance.autostart {
        return Err(
            "--restart, --ephemeral and --autostart are for instances; add -d to make one"
                .to_owned(),
        );
    }
    Ok(RunRequest {
        machine,
        kernel: options.machine.kernel,
        initrd: options.machine.initrd,
        disks: options.machine.disks,
        nics: nics(&options.machine.net, ByDefault::None)?,
        shares: options.machine.shares,
        log: options.place.log,
        gdb: options.place.gdb,
        control: options.place.control,
        ports,
        vsock: options.place.vsock,
        terminal: false,
        no_jail: options.place.no_jail,
    })
}

/// What a failure of the host's is called.
pub fn host(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}
