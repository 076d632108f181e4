//! What the monitor is told.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_api::vmm::Event;
use croft_api::{Sender, WireError};
use croft_machine::VsockHost;
use rustix::event::{PollFd, PollFlags, poll};

/// Lines waiting for the monitor at most; more are dropped.
const BACKLOG: usize = 64;

/// Speaks to the monitor, from any thread.
#[derive(Clone, Debug)]
pub struct Reporter {
    sender: Arc<Mutex<Sender>>,
    socket: Arc<OwnedFd>,
}

impl Reporter {
    /// Over this half of the conversation.
    pub fn new(sender: Sender) -> io::Result<Self> {
        let socket = Arc::new(sender.as_fd().try_clone_to_owned()?);
        Ok(Reporter {
            sender: Arc::new(Mutex::new(sender)),
            socket,
        })
    }

    /// Sends an event and everything before it.
    pub fn report(&self, event: &Event) {
        let mut sent = self.sender().push(event, vec![]).is_err() || self.flush();
        while !sent {
            // Without the lock: vCPU threads may have a line to log.
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None);
            sent = self.flush();
        }
    }

    /// Sends an event when the monitor takes it. Never blocks; for what
    /// happens seldom, since all of it is kept.
    pub fn post(&self, event: &Event) {
        if self.sender().push(event, vec![]).is_ok() {
            self.flush();
        }
    }

    /// Sends an event, unless the monitor is far behind; says whether. Never
    /// blocks.
    pub fn try_report(&self, event: &Event) -> bool {
        let pushed = {
            let mut sender = self.sender();
            sender.backlog() < BACKLOG && sender.push(event, vec![]).is_ok()
        };
        if pushed {
            self.flush();
        }
        pushed
    }

    /// Sends a line for the operator, or drops it when the monitor is far
    /// behind. Never blocks.
    pub fn log(&self, line: &str) {
        let text = line.to_owned();
        self.try_report(&Event::Log { text });
    }

    /// True if nothing is left. Without a monitor there is no machine: if
    /// nothing can be sent the process ends.
    fn flush(&self) -> bool {
        let result = self.sender().flush();
        match result {
            Ok(all) => all,
            Err(error) => gone(Some(&error)),
        }
    }

    fn sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VsockHost for Reporter {
    fn requested(&self, id: u64, port: u32) -> bool {
        self.try_report(&Event::VsockRequest { id, port })
    }
}

/// The monitor is gone, or speaks nonsense: the machine ends with it.
pub fn gone(error: Option<&WireError>) -> ! {
    if let Some(error) = error {
        let _ = writeln!(io::stderr(), "{error}");
    }
    process::exit(1)
}
