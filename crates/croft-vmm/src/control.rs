//! What the monitor asks of a running machine.

use croft_api::Receiver;
use croft_api::WireError;
use croft_api::vmm::{Event, Request};
use croft_machine::MachineHandle;

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
            Ok(Some((Request::Start(_), _))) => gone(Some(&WireError::Damaged("a second Start"))),
            Ok(None) => gone(None),
            Err(error) => gone(Some(&error)),
        }
    }
}
