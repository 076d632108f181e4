//! `croft run` and `croft restore`: a machine in the foreground.
//!
//! ```text
//! checking ──► waiting for the monitor ──► running ──► ending ──► exit code
//!    │ wrong          │ Stopped               │ Stopped   ▲
//!    ▼                ▼                       │           │ 2 s at most
//!  exit 2          exit code        Ctrl-], signal, stdout closed
//! ```

mod input;
mod monitor;
mod output;
mod session;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use croft_api::monitor::{RestoreRequest, RunRequest};
use croft_api::{CpuModel, EngineChoice, MachineSpec, SoftwareSpec};
use rustix::fs::OFlags;

use crate::args::machine::{Cpu, Engine, SoftwareOptions};
use crate::args::restore::RestoreOptions;
use crate::args::run::RunOptions;
use crate::exit::Exit;
use crate::say;
use monitor::Start;

/// Runs a machine until it ends.
pub fn run(options: RunOptions) -> Exit {
    let auto = options.engine == Engine::Auto;
    let start = Start::Run(request(options));
    session(start, auto)
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
    session(Start::Restore(restore_request(options), file), auto)
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

fn engine(engine: Engine) -> EngineChoice {
    match engine {
        Engine::Auto => EngineChoice::Auto,
        Engine::Software => EngineChoice::Software,
        Engine::Kvm => EngineChoice::Kvm,
    }
}

fn software(options: &SoftwareOptions) -> SoftwareSpec {
    SoftwareSpec {
        code_cache: options.code_cache,
        interpret: options.interpret,
        verify_code: options.verify_code,
        stats: options.stats,
    }
}

fn restore_request(options: RestoreOptions) -> RestoreRequest {
    let (_, ports) = options.place.ports();
    RestoreRequest {
        file: quoted(options.file.as_ref()),
        name: options.name,
        engine: engine(options.engine),
        software: software(&options.software),
        kernel: options.kernel,
        initrd: options.initrd,
        disks: Some(options.disks).filter(|disks| !disks.is_empty()),
        log: options.place.log,
        gdb: options.place.gdb,
        control: options.place.control,
        ports,
        vsock: options.place.vsock,
        terminal: false,
    }
}

fn request(options: RunOptions) -> RunRequest {
    let (names, ports) = options.place.ports();
    RunRequest {
        machine: MachineSpec {
            name: options.name,
            engine: if options.lockstep {
                EngineChoice::Lockstep
            } else {
                engine(options.engine)
            },
            software: software(&options.software),
            cpu: options.cpu.map(|cpu| match cpu {
                Cpu::Host => CpuModel::Host,
                Cpu::PortableV1 => CpuModel::PortableV1,
                Cpu::SoftwareFast => CpuModel::SoftwareFast,
            }),
            memory: options.memory,
            cpus: options.cpus,
            append: options.append,
            no_reboot: options.no_reboot,
            test_devices: options.test_devices,
            ports: names,
            vsock: options.place.vsock.as_ref().map(|_| options.vsock_cid),
        },
        kernel: options.kernel,
        initrd: options.initrd,
        disks: options.disks,
        shares: options.shares,
        log: options.place.log,
        gdb: options.place.gdb,
        control: options.place.control,
        ports,
        vsock: options.place.vsock,
        terminal: false,
    }
}

/// What a failure of the host's is called.
fn host(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}
