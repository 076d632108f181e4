//! The serial console: a thread carries the guest's output to the backend,
//! which may block; input waits until the guest has room for it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use croft_devices::uart::{UartHandle, UartNotify};
use croft_isolate::{Role, spawn};

use crate::config::Ended;
use crate::sync::Signal;

/// How long a machine that was asked to end waits for its console.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why a machine stands still that nobody held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// The disk's name.
    pub disk: String,
    /// What happened.
    pub message: String,
}

/// Where a machine's console goes.
pub trait ConsoleBackend: Send + Sync {
    /// Takes what the guest wrote. Comes on one thread, which may block.
    fn output(&self, bytes: &[u8]);

    /// The machine stands still because the host failed at a disk, or goes on
    /// by itself after that. Comes on the owner's thread.
    fn disk_failed(&self, fault: Option<&DiskFault>) {
        let _ = fault;
    }

    /// A device was attached. Comes on the owner's thread, before whoever
    /// asked for it is answered.
    fn attached(&self, device: &str) {
        let _ = device;
    }

    /// A device that could be detached has been, by the guest's or the
    /// operator's wish: nothing of it is open any more. Comes on the owner's
    /// thread.
    fn detached(&self, device: &str) {
        let _ = device;
    }

    /// What was behind this NIC is gone. Must not block.
    fn nic_lost(&self, nic: &str) {
        let _ = nic;
    }

    /// Takes a line for the operator. Must not block.
    fn log(&self, line: &str) {
        let _ = line;
    }

    /// The guest's kernel panicked; with a `crash_kernel` of its own it goes
    /// on with that. The machine stays as it is: what comes next is the
    /// guest's choice (its `panic=`) or the operator's. Once for each start
    /// of the guest. Must not block.
    fn panicked(&self, crash_kernel: bool) {
        let _ = crash_kernel;
    }
}

#[derive(Debug, Default)]
struct Flags {
    output: bool,
    /// Output stays in the UART.
    held: bool,
    /// The pump is taking output out of the UART.
    taking: bool,
    room: bool,
    closed: bool,
    finished: bool,
}

/// What the UART tells, and what the threads here wait for.
#[derive(Debug, Default)]
pub struct ConsoleSignal(Signal<Flags>);

impl ConsoleSignal {
    /// From the return on, what the guest has sent and was not taken stays
    /// where it is; or no longer so.
    pub fn hold(&self, held: bool) {
        self.0.change(|flags| flags.held = held);
        self.0.wait(|flags| (!flags.taking).then_some(()));
    }
}

impl UartNotify for ConsoleSignal {
    fn output_ready(&self) {
        self.0.change(|flags| flags.output = true);
    }

    fn input_room(&self) {
        self.0.change(|flags| flags.room = true);
    }
}

/// Input's way into the guest.
#[derive(Clone)]
pub struct ConsoleInput {
    pub uart: UartHandle,
    pub signal: Arc<ConsoleSignal>,
}

impl ConsoleInput {
    /// Hands `bytes` to the guest; blocks while it takes no more.
    pub fn push(&self, mut bytes: &[u8]) -> Result<(), Ended> {
        while !bytes.is_empty() {
            self.signal.0.change(|flags| flags.room = false);
            let taken = self.uart.push_input(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            self.signal.0.wait(|flags| match flags {
                Flags { closed: true, .. } => Some(Err(Ended)),
                Flags { room: true, .. } => Some(Ok(())),
                _ => None,
            })?;
        }
        Ok(())
    }
}

/// The output thread.
pub struct ConsolePump {
    signal: Arc<ConsoleSignal>,
    thread: JoinHandle<()>,
}

impl ConsolePump {
    /// Starts it.
    pub fn start(
        uart: UartHandle,
        signal: Arc<ConsoleSignal>,
        backend: Arc<dyn ConsoleBackend>,
    ) -> std::io::Result<Self> {
        let shared = signal.clone();
        let thread = spawn(Role::Console, "console", move || {
            pump(&uart, &shared, &*backend);
        })?;
        Ok(ConsolePump { signal, thread })
    }

    /// Carries what is left, unless it is held, and ends. When `hurried`, a backend that blocks
    /// is left behind after a second.
    pub fn finish(self, hurried: bool) {
        self.signal.0.change(|flags| flags.closed = true);
        if hurried {
            let finished = |flags: &mut Flags| flags.finished.then_some(());
            if self.signal.0.wait_for(LAST_WORDS, finished).is_none() {
                return;
            }
        }
        let _ = self.thread.join();
    }
}

fn pump(uart: &UartHandle, signal: &ConsoleSignal, backend: &dyn ConsoleBackend) {
    let mut buffer = Vec::new();
    loop {
        let closed = signal.0.wait(|flags| {
            if flags.held {
                return flags.closed.then_some(None);
            }
            let output = std::mem::take(&mut flags.output);
            flags.taking = output || flags.closed;
            flags.taking.then_some(Some(flags.closed))
        });
        let Some(closed) = closed else { break };
        buffer.clear();
        uart.take_output(&mut buffer);
        signal.0.change(|flags| flags.taking = false);
        if !buffer.is_empty() {
            backend.output(&buffer);
        } else if closed {
            break;
        }
    }
    signal.0.change(|flags| flags.finished = true);
}
