//! `croft run`: a machine in the foreground.
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

use std::io;

use croft_api::monitor::RunRequest;
use croft_api::{CpuModel, EngineChoice, MachineSpec};

use crate::args::{Cpu, Engine, RunOptions};
use crate::exit::Exit;
use crate::say;

/// Runs a machine until it ends.
pub fn run(options: RunOptions) -> Exit {
    let auto = options.engine == Engine::Auto;
    let request = match check(options) {
        Ok(request) => request,
        Err(message) => {
            say::line(&format!("croft: {message}"));
            return Exit::Usage;
        }
    };
    match session::run(request, auto) {
        Ok(exit) => exit,
        Err(error) => {
            say::line(&format!("croft: {error}"));
            Exit::Failed
        }
    }
}

fn check(options: RunOptions) -> Result<RunRequest, String> {
    let engine = match options.engine {
        Engine::Auto => EngineChoice::Auto,
        Engine::Software => EngineChoice::Software,
        Engine::Kvm => EngineChoice::Kvm,
    };
    Ok(RunRequest {
        machine: MachineSpec {
            name: options.name,
            engine,
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
        },
        kernel: options.kernel,
        initrd: options.initrd,
        disks: options.disks,
        log: options.log,
        gdb: options.gdb,
        terminal: false,
    })
}

/// What a failure of the host's is called.
fn host(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}
