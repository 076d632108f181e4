//! What clients ask for.

use std::os::fd::OwnedFd;

use croft_api::control::{Event as Told, Request, Writing};
use croft_api::{Outcome, Phase, pair, vmm};

use super::super::keeper::{Answer, Keeper};
use super::Machine;
use crate::control;

/// Most disks waiting for their new size.
const RESIZING_MAX: usize = 64;
/// The serial console, the only one.
const SERIAL: u32 = 0;

impl Keeper<Machine> {
    /// Does what a client asks for; `None` if it is answered later.
    pub(super) fn answer_machine(
        &mut self,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        Some(match request {
            Request::Save => match self.save(client, descriptors) {
                // Answered when it is done.
                Ok(()) => return None,
                Err(message) => Err(message),
            },
            Request::ResizeDisk { disk, bytes } => match self.resize(client, disk, bytes) {
                // Answered later.
                Ok(()) => return None,
                Err(message) => Err(message),
            },
            Request::AttachDisk { disk, live_only } => {
                match self.attach_disk(client, disk, live_only) {
                    Ok(()) => return None,
                    Err(message) => Err(message),
                }
            }
            Request::AttachNic { nic, live_only } => {
                match self.attach_nic(client, *nic, live_only) {
                    Ok(()) => return None,
                    Err(message) => Err(message),
                }
            }
            Request::SetNic {
                nic,
                change,
                live_only,
            } => {
                let set = self.set_nic(&nic, change, live_only);
                set.map(|()| (Told::Done, vec![]))
            }
            Request::Detach {
                device,
                force,
                live_only,
            } => match self.detach(client, device, force, live_only) {
                Ok(()) => return None,
                Err(message) => Err(message),
            },
            Request::PowerButton => self.press_button(),
            Request::Attach {
                console,
                writing,
                lines,
            } => self.attach(console, writing, lines),
            Request::Connect { port } => self.connect_guest(port),
            Request::ResizeConsole { console, .. } => match console {
                SERIAL => Err("a serial console knows no size".to_owned()),
                other => Err(no_console(other)),
            },
            _ => Err("it is a machine; this is for containers".to_owned()),
        })
    }

    fn press_button(&mut self) -> Answer {
        match &mut self.own.running {
            Some(running) => {
                running.ask(&vmm::Request::PowerButton);
                Ok((Told::Done, vec![]))
            }
            None => Err("it does not run".to_owned()),
        }
    }

    fn attach(&mut self, console: u32, writing: Writing, lines: Option<u32>) -> Answer {
        if console != SERIAL {
            return Err(no_console(console));
        }
        let (ours, theirs) = pair().map_err(|error| format!("cannot make a socket: {error}"))?;
        let writer = self.own.console.attach(ours, writing, lines)?;
        Ok((Told::Attached { writer }, vec![theirs]))
    }

    fn save(&mut self, client: u64, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let phase = self.life.phase();
        if !matches!(phase, Phase::Running | Phase::Paused) {
            return Err(format!("it is {phase}"));
        }
        let running = self
            .own
            .running
            .as_mut()
            .filter(|_| self.own.saving.is_none());
        let running = running.ok_or("it is being saved already")?;
        if running.devices.is_attaching() {
            return Err("a device is being attached; save it again".to_owned());
        }
        let file = descriptors.into_iter().next().ok_or("no file came along")?;
        let file = control::begin(file, &running.saved)?;
        let devices = running.devices.names();
        let request = vmm::Request::Save { devices };
        let pushed = running.payload.sender.push(&request, vec![file]);
        pushed.map_err(|error| error.to_string())?;
        self.own.saving = Some(client);
        Ok(())
    }

    /// Whoever asked for a save hears of it once the disks are free.
    pub(super) fn end_save(&mut self, outcome: &Outcome) {
        let Some(client) = self.own.saving.take() else {
            return;
        };
        let event = match outcome {
            Outcome::Saved => Told::Saved,
            _ => Told::Failed {
                message: "the machine ended before it was saved".to_owned(),
            },
        };
        self.clients.answer(client, &event, vec![]);
    }

    fn resize(&mut self, client: u64, disk: u32, bytes: u64) -> Result<(), String> {
        let phase = self.life.phase();
        let executes = matches!(phase, Phase::Running | Phase::Paused | Phase::Crashed);
        let running = self.own.running.as_mut().filter(|_| executes);
        let running = running.ok_or_else(|| format!("it is {phase}"))?;
        if self.own.resizing.len() >= RESIZING_MAX {
            return Err("too many disks wait for their new size".to_owned());
        }
        running.ask(&vmm::Request::ResizeDisk { disk, bytes });
        self.own.resizing.push_back(client);
        Ok(())
    }

    /// Whoever asked for a size of a disk hears that there is no machine.
    pub(super) fn end_resizes(&mut self) {
        for client in self.own.resizing.drain(..) {
            let message = "the machine ended before its disk was resized".to_owned();
            self.clients
                .answer(client, &Told::Failed { message }, vec![]);
        }
    }
}

fn no_console(console: u32) -> String {
    format!("it has no console {console}; {SERIAL} is its serial console")
}
