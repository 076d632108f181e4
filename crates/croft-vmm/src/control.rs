//! What the monitor asks of a running machine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;

use croft_api::Receiver;
use croft_api::WireError;
use croft_api::vmm::{Event, Request};
use croft_machine::{AttachError, MachineHandle, SaveError};

use crate::disks;
use crate::nics;
use crate::report::{Reporter, gone};

/// Obeys until the monitor is gone, and then ends the process.
pub fn obey(mut receiver: Receiver, machine: &MachineHandle, reporter: &Reporter) {
    loop {
        match receiver.wait::<Request>() {
            Ok(Some((Request::PowerButton, _))) => machine.press_power_button(),
            // Of a machine that has ended nothing can be asked; it has said
            // so, or is about to.
            Ok(Some((Request::Stop, _))) => drop(machine.stop()),
            Ok(Some((Request::Pause, _))) => {
                if machine.pause().is_ok() {
                    reporter.report(&Event::Paused);
                }
            }
            Ok(Some((Request::Resume, _))) => {
                if machine.resume().is_ok() {
                    reporter.report(&Event::Resumed);
                }
            }
            Ok(Some((Request::ResizeDisk { disk, bytes }, _))) => {
                let resized = machine.resize_disk(disk as usize, bytes);
                reporter.report(&Event::DiskResized {
                    disk,
                    error: resized.err().map(|error| error.to_string()),
                });
            }
            Ok(Some((Request::AttachDisk(disk), descriptors))) => {
                if descriptors.len() != disk.layers.len() {
                    let what = "AttachDisk comes with other descriptors";
                    gone(Some(&WireError::Damaged(what)));
                }
                let config = disks::config(*disk, &mut descriptors.into_iter());
                attached(machine.attach_disk(config).map(drop), reporter);
            }
            Ok(Some((Request::AttachNic(nic), descriptors))) => {
                if descriptors.len() != nic.backend.descriptors() {
                    let what = "AttachNic comes with other descriptors";
                    gone(Some(&WireError::Damaged(what)));
                }
                let config = nics::config(*nic, &mut descriptors.into_iter());
                attached(machine.attach_nic(config), reporter);
            }
            Ok(Some((Request::NicLimits { nic, limits }, _))) => {
                if let Some(nic) = machine.nic(&nic) {
                    nic.set_limits(nics::limits(limits));
                }
            }
            Ok(Some((Request::Detach { device, force }, _))) => {
                // That it is gone the machine tells.
                if let Err(error) = machine.detach(&device, force) {
                    reporter.report(&Event::DetachFailed {
                        device,
                        message: error.to_string(),
                    });
                }
            }
            Ok(Some((Request::Save { devices }, descriptors))) => {
                let Some(file) = descriptors.into_iter().next() else {
                    gone(Some(&WireError::Damaged("Save comes without a file")));
                };
                match machine.save_with(devices, Box::new(StateFile::new(file))) {
                    // The outcome tells.
                    Ok(()) | Err(SaveError::Ended(_)) => {}
                    Err(error) => reporter.report(&Event::SaveFailed {
                        message: error.to_string(),
                    }),
                }
            }
            Ok(Some((Request::ResizeConsole { columns, rows }, _))) => {
                machine.resize_console(columns, rows);
            }
            Ok(Some((Request::VsockConnect { port }, descriptors))) => {
                let socket = descriptors.into_iter().next();
                if let (Some(vsock), Some(socket)) = (machine.vsock(), socket) {
                    vsock.connect(port, socket);
                }
            }
            Ok(Some((Request::VsockAnswer { id }, descriptors))) => {
                if let Some(vsock) = machine.vsock() {
                    vsock.answer(id, descriptors.into_iter().next());
                }
            }
            Ok(Some((Request::NicBackend { nic, backend }, descriptors))) => {
                if let Some(nic) = machine.nic(&nic) {
                    let mut descriptors = descriptors.into_iter();
                    nic.set_backend(nics::backend(backend, nic.mtu(), &mut descriptors));
                }
            }
            Ok(Some((Request::NicLink { nic, up }, _))) => {
                if let Some(nic) = machine.nic(&nic) {
                    nic.set_link(up);
                }
            }
            Ok(Some((Request::Start(_), _))) => gone(Some(&WireError::Damaged("a second Start"))),
            Ok(None) => gone(None),
            Err(error) => gone(Some(&error)),
        }
    }
}

/// That a device is there the machine tells.
fn attached(result: Result<(), AttachError>, reporter: &Reporter) {
    if let Err(error) = result {
        reporter.report(&Event::AttachFailed {
            message: error.to_string(),
        });
    }
}

/// Bytes written at once.
const BUFFER: usize = 1 << 20;

/// A file that has everything, on stable storage, once it was flushed.
struct StateFile(BufWriter<File>);

impl StateFile {
    fn new(file: OwnedFd) -> Self {
        StateFile(BufWriter::with_capacity(BUFFER, File::from(file)))
    }
}

impl Write for StateFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.get_ref().sync_all()
    }
}
