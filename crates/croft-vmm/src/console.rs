//! Between the machine's serial console and the console's socket.
//!
//! Both directions block, on threads of their own, and keep nothing: a socket
//! that takes nothing holds back the guest's UART, and a guest that takes
//! nothing holds back the socket.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use croft_api::vmm::Event;
use croft_isolate::{Role, spawn};
use croft_machine::{ConsoleBackend, DiskFault, MachineHandle};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::report::Reporter;

/// Bytes read at once.
const PIECE: usize = 1024;

/// The console's socket.
#[derive(Debug)]
pub struct Console {
    socket: Arc<OwnedFd>,
    reporter: Reporter,
}

impl Console {
    /// Over `socket`; lines for the operator go to `reporter`.
    pub fn new(socket: OwnedFd, reporter: Reporter) -> Self {
        Console {
            socket: Arc::new(socket),
            reporter,
        }
    }

    /// Starts to hand input to `machine`.
    pub fn feed(&self, machine: MachineHandle) -> io::Result<()> {
        let socket = Arc::clone(&self.socket);
        spawn(Role::Console, "console-in", move || feed(&socket, &machine)).map(drop)
    }
}

impl ConsoleBackend for Console {
    fn output(&self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(&*self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // Nobody reads any more.
                Err(_) => return,
            }
        }
    }

    fn disk_failed(&self, fault: Option<&DiskFault>) {
        self.reporter.report(&match fault {
            Some(DiskFault { disk, message }) => Event::DiskFailed {
                disk: disk.clone(),
                message: message.clone(),
            },
            None => Event::Resumed,
        });
    }

    fn attached(&self, device: &str) {
        let device = device.to_owned();
        self.reporter.report(&Event::Attached { device });
    }

    fn detached(&self, device: &str) {
        let device = device.to_owned();
        self.reporter.report(&Event::Detached { device });
    }

    fn nic_lost(&self, nic: &str) {
        let nic = nic.to_owned();
        self.reporter.post(&Event::NicLost { nic });
    }

    fn log(&self, line: &str) {
        self.reporter.log(line);
    }

    fn panicked(&self, crash_kernel: bool) {
        self.reporter.post(&Event::Panicked { crash_kernel });
    }
}

fn feed(socket: &OwnedFd, machine: &MachineHandle) {
    let mut buffer = [0; PIECE];
    loop {
        let bytes = match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((count @ 1.., _)) => buffer.get(..count).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Ok(_) | Err(_) => return,
        };
        if machine.push_input(bytes).is_err() {
            return;
        }
    }
}
