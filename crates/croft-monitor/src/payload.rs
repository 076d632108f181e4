//! The process that the monitor is beside.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use croft_api::channel::channel;
use croft_api::disk::DISKS_MAX;
use croft_api::net::{NICS_MAX, QUEUES_MAX};
use croft_api::vmm::{self, Request, StartRequest};
use croft_api::{Receiver, Sender, pair, programs};
use croft_isolate::launch::Ended;
use croft_isolate::{Child, ControlGroup, Launch, Limits, Part, Piece, report, trap};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;

/// Name of the program, and of the other end in messages.
const PROGRAM: &str = "croft-vmm";
/// How long a payload that has nothing left to say may take to exit.
const EXIT: Duration = Duration::from_secs(10);
/// What a machine may take beyond its memory: an eighth of it for what
/// describes it, and this.
const MEMORY: u64 = 256 << 20;
/// And this for each vCPU.
const VCPU_MEMORY: u64 = 32 << 20;
/// Threads of a NIC: two for each pair of queues, and the commands'.
const NIC_TASKS: u64 = 2 * QUEUES_MAX as u64 + 1;
/// Threads beside those of vCPUs, disks and NICs.
const TASKS: u64 = 128;
/// Threads for a vCPU, with what the kernel makes for it.
const VCPU_TASKS: u64 = 4;
/// Threads for a disk. There is room for all that can be attached.
const DISK_TASKS: u64 = 16;
/// Processors for devices.
const DEVICE_PROCESSORS: u64 = 2;

/// A running payload. Killed when dropped.
#[derive(Debug)]
pub struct Payload {
    // Ends before its group goes.
    child: Child,
    group: Option<ControlGroup>,
    /// To it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
    /// The guest's console.
    pub console: OwnedFd,
    /// What it says outside the protocol: a panic, or its jail's last word.
    pub stderr: File,
    /// What the operator should know of its jail.
    pub complaints: Vec<String>,
}

impl Payload {
    /// Starts it with `handed`, the descriptors of the files it is made from,
    /// in its jail unless `no_jail`.
    pub fn start(start: StartRequest, handed: Vec<OwnedFd>, no_jail: bool) -> Result<Self, String> {
        let program = programs::find(PROGRAM)?;
        let name = program.display().to_string();
        let failed = |error: io::Error| format!("cannot start {name}: {error}");
        let (ours, theirs) = pair().map_err(failed)?;
        let (console, far_console) = pair().map_err(failed)?;
        let (stderr, far_stderr) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let null = OpenOptions::new().write(true).open("/dev/null");
        let null = null.map_err(failed)?;
        let mut complaints = Vec::new();
        let group = if no_jail {
            complaints.push("warning: --no-jail: croft-vmm has all rights of its user".to_owned());
            None
        } else {
            let (group, part) = ControlGroup::create(&start.machine.name, &limits(&start));
            // A user's groups are delegated rarely; 'croft doctor' tells.
            if geteuid().is_root() {
                complaints.extend(report::complaints(&[part]));
            }
            group
        };
        let mut arguments = vec![start.machine.name.clone().into()];
        let mut environment = Vec::new();
        if no_jail {
            arguments.push("--no-jail".into());
            // In the jail there is nothing that a backtrace could be read from.
            let backtrace = std::env::var("RUST_BACKTRACE");
            environment.extend(backtrace.map(|value| format!("RUST_BACKTRACE={value}").into()));
        }
        let launch = Launch {
            program,
            arguments,
            environment,
            descriptors: [theirs, null.into(), far_stderr],
            jail: !no_jail,
            // Files of a share are made and opened by these ids.
            keeps_ids: !start.shares.is_empty(),
        };
        // Our copies of its ends go with the launch: its death is then our
        // end of file.
        let child = launch
            .start(group.as_ref())
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        if let Some(error) = &child.unlimited {
            let part = Part::missing(Piece::ControlGroup, error);
            complaints.extend(report::complaints(&[part]));
        }
        let (sender, receiver) = channel(ours, vmm::PROTOCOL, PROGRAM);
        let mut payload = Payload {
            child,
            group,
            sender,
            receiver,
            console,
            stderr: stderr.into(),
            complaints,
        };
        let descriptors = std::iter::once(far_console).chain(handed).collect();
        payload
            .sender
            .push(&Request::Start(Box::new(start)), descriptors)
            .map_err(|error| error.to_string())?;
        Ok(payload)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Waits for its exit, which is due, and helps if it does not come.
    pub fn reap(&mut self) -> io::Result<Ended> {
        let ended = self.wait()?;
        self.group = None;
        Ok(ended)
    }

    fn wait(&mut self) -> io::Result<Ended> {
        let deadline = Instant::now() + EXIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(ended) = self.child.wait(Some(left))? {
                return Ok(ended);
            }
            if left.is_zero() {
                self.kill();
                if let Some(ended) = self.child.wait(None)? {
                    return Ok(ended);
                }
            }
        }
    }
}

/// What it may take of the host.
fn limits(start: &StartRequest) -> Limits {
    let machine = &start.machine;
    let vcpus = u64::from(machine.cpus);
    let memory = [
        machine.memory / 8,
        machine.software.code_cache,
        vcpus.saturating_mul(VCPU_MEMORY),
        MEMORY,
    ];
    Limits {
        memory: memory.into_iter().fold(machine.memory, u64::saturating_add),
        tasks: TASKS
            + VCPU_TASKS * vcpus
            + DISK_TASKS * DISKS_MAX as u64
            + NIC_TASKS * NICS_MAX as u64,
        processors: vcpus + DEVICE_PROCESSORS,
    }
}

/// How a payload that did not say why it ends has ended. `refused` is what
/// its jail said.
pub fn describe(ended: Ended, refused: Option<&str>) -> String {
    match ended {
        Ended::Exited(trap::STATUS) => {
            let what = refused.unwrap_or("a thread called what it may not");
            format!("{PROGRAM} was ended by its jail: {what}")
        }
        Ended::Killed(trap::SIGNAL) => {
            format!("{PROGRAM} was ended by its jail, by SIGSYS")
        }
        Ended::Exited(code) => format!("{PROGRAM} ended with status {code} before its machine did"),
        Ended::Killed(signal) => format!("{PROGRAM} was killed by signal {signal}"),
    }
}
