//! The debugger: gdb's remote protocol over the engine seam.
//!
//! ```text
//! gdb ── socket ──► thread "gdb" ── DebugRequest ──► owner ──► vCPU threads
//!                        ▲                             │
//!                        └───────── a stop ────────────┘
//! ```
//!
//! Connecting stops the guest; detaching, or losing the connection, removes
//! all breakpoints and lets it go on; gdb's `kill` ends the machine. vCPUs
//! are gdb's threads. While one is stepped the others, and guest time between
//! steps, stand still.

mod connection;
mod registers;
mod server;
mod target;

use std::sync::mpsc::SyncSender;

use croft_engine::Vcpu;

use crate::config::Outcome;
use crate::vcpus::VcpuThread;

pub use connection::GdbListener;
pub(crate) use server::GdbServer;

/// Something to do with a vCPU that stands still.
pub(crate) type Task = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// From the debugger to the owner.
pub(crate) enum DebugRequest {
    /// Hold all vCPUs.
    Hold(SyncSender<()>),
    /// Let these vCPUs run, or all when there are none.
    Run(Vec<usize>),
    /// Do something with a vCPU.
    Access {
        /// Which.
        vcpu: usize,
        /// What; it answers by itself.
        task: Task,
    },
    /// The debugger is gone: let everything run.
    Leave,
    /// End the machine.
    Kill,
}

/// What the owner knows about the debugger.
#[derive(Debug, Default)]
pub(crate) struct Debugged {
    attached: bool,
    held: bool,
    only: Vec<usize>,
}

impl Debugged {
    /// All vCPUs are held.
    pub fn holds(&self) -> bool {
        self.held
    }

    /// This vCPU is not held back while others run.
    pub fn lets_run(&self, vcpu: usize) -> bool {
        self.only.is_empty() || self.only.contains(&vcpu)
    }

    /// A vCPU stopped for the debugger: whether that is news to it. All vCPUs
    /// are held from then on.
    pub fn stopped(&mut self) -> bool {
        let news = self.attached && !self.held;
        self.held |= news;
        news
    }

    /// Acts on a request, with no vCPU running.
    pub fn handle(&mut self, request: DebugRequest, threads: &[VcpuThread]) -> Option<Outcome> {
        match request {
            DebugRequest::Hold(done) => {
                self.attached = true;
                self.held = true;
                let _ = done.send(());
            }
            DebugRequest::Run(only) => {
                self.held = false;
                self.only = only;
            }
            DebugRequest::Access { vcpu, task } => {
                if let Some(thread) = threads.get(vcpu) {
                    let _ = thread.with(task);
                }
            }
            DebugRequest::Leave => *self = Debugged::default(),
            DebugRequest::Kill => return Some(Outcome::Requested),
        }
        None
    }
}

#[cfg(test)]
mod tests;
