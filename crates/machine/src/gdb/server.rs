//! The thread that talks to debuggers, one after the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use croft_engine::DebugStop;
use croft_isolate::{Role, spawn};
use croft_memory::GuestRam;
use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::connection::{GdbListener, Stream};
use super::target::DebugTarget;
use crate::console::ConsoleBackend;
use crate::events::Events;
use crate::sync::{Shared, lock};

/// What the owner leaves for the debugger's thread.
pub struct Mailbox {
    /// Readable when there is something new.
    wake: OwnedFd,
    report: Shared<Option<(usize, DebugStop)>>,
    closed: AtomicBool,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Mailbox {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            report: Shared::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub fn take_report(&self) -> Option<(usize, DebugStop)> {
        lock(&self.report).take()
    }

    fn ring(&self) {
        // Fails only when it has rung 2^64 times unheard.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until `other` is readable or the owner rings.
    fn wait(&self, other: impl AsFd) -> io::Result<()> {
        let mut fds = [
            PollFd::new(&other, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        if !fds[1].revents().is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(())
    }
}

/// The thread.
pub struct GdbServer {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<()>,
}

impl GdbServer {
    /// Starts it.
    pub fn start(
        listener: GdbListener,
        events: Events,
        ram: GuestRam,
        vcpus: usize,
        console: Arc<dyn ConsoleBackend>,
    ) -> io::Result<Self> {
        listener.set_nonblocking()?;
        let mailbox = Arc::new(Mailbox::new()?);
        let mut target = DebugTarget::new(events, ram, vcpus, mailbox.clone());
        let shared = mailbox.clone();
        let thread = spawn(Role::Gdb, "gdb", move || {
            while !shared.is_closed() {
                match next(&listener, &shared) {
                    Ok(Some(stream)) => {
                        console.log("a debugger connected, the guest is stopped");
                        if let Err(text) = session(stream, &mut target, &shared) {
                            console.log(&format!("the debugger was dropped: {text}"));
                        }
                        target.leave();
                    }
                    Ok(None) => {}
                    Err(error) => {
                        console.log(&format!("no debugger can connect: {error}"));
                        return;
                    }
                }
            }
        })?;
        Ok(GdbServer { mailbox, thread })
    }

    /// Tells the debugger why the guest stopped.
    pub fn report(&self, vcpu: usize, stop: DebugStop) {
        *lock(&self.mailbox.report) = Some((vcpu, stop));
        self.mailbox.ring();
    }

    /// Ends it. Nobody may be needed to answer it any more: the owner's queue
    /// must be closed, or be served meanwhile.
    pub fn finish(self) {
        self.mailbox.closed.store(true, Ordering::Release);
        self.mailbox.ring();
        let _ = self.thread.join();
    }
}

/// The next debugger, or `None` when there was another reason to wake.
fn next(listener: &GdbListener, mailbox: &Mailbox) -> io::Result<Option<Stream>> {
    mailbox.wait(listener)?;
    match listener.accept() {
        Ok(stream) => Ok(Some(stream)),
        // It left already, or it was the owner who rang.
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted => Ok(None),
            _ => Err(error),
        },
    }
}

/// What a session waits for.
enum Wake {
    Byte(u8),
    Stopped(usize, DebugStop),
    Gone,
    Ended,
}

fn wake(stream: &mut Stream, mailbox: &Mailbox) -> io::Result<Wake> {
    loop {
        if let Some(byte) = stream.buffered() {
            return Ok(Wake::Byte(byte));
        }
        if mailbox.is_closed() {
            return Ok(Wake::Ended);
        }
        if let Some((vcpu, stop)) = mailbox.take_report() {
            return Ok(Wake::Stopped(vcpu, stop));
        }
        mailbox.wait(&*stream)?;
        let mut readable = [PollFd::new(&*stream, PollFlags::IN)];
        if poll(&mut readable, Some(&rustix::event::Timespec::default()))? != 0 && !stream.fill()? {
            return Ok(Wake::Gone);
        }
    }
}

/// Serves one debugger until it is gone.
fn session(stream: Stream, target: &mut DebugTarget, mailbox: &Mailbox) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    target.hold().map_err(|error| text(&error))?;
    let stub = GdbStub::new(stream);
    let mut machine = stub
        .run_state_machine(target)
        .map_err(|error| text(&error))?;
    loop {
        machine = match machine {
            GdbStubStateMachine::Idle(mut stub) => {
                match wake(stub.borrow_conn(), mailbox).map_err(|error| text(&error))? {
                    Wake::Byte(byte) => stub.incoming_data(target, byte),
                    Wake::Stopped(..) => Ok(stub.into()),
                    Wake::Gone | Wake::Ended => return Ok(()),
                }
            }
            GdbStubStateMachine::Running(mut stub) => {
                match wake(stub.borrow_conn(), mailbox).map_err(|error| text(&error))? {
                    Wake::Byte(byte) => stub.incoming_data(target, byte),
                    Wake::Stopped(vcpu, stop) => {
                        let reason = target.reason(vcpu, stop);
                        stub.report_stop(target, reason)
                    }
                    Wake::Gone => return Ok(()),
                    Wake::Ended => {
                        let exited = MultiThreadStopReason::Exited(0);
                        let _ = stub.report_stop(target, exited);
                        return Ok(());
                    }
                }
            }
            GdbStubStateMachine::CtrlCInterrupt(stub) => {
                target.hold().map_err(|error| text(&error))?;
                let reason = MultiThreadStopReason::Signal(Signal::SIGINT);
                stub.interrupt_handled(target, Some(reason))
            }
            GdbStubStateMachine::Disconnected(stub) => {
                if stub.get_reason() == DisconnectReason::Kill {
                    target.kill();
                }
                return Ok(());
            }
        }
        .map_err(|error| text(&error))?;
    }
}
