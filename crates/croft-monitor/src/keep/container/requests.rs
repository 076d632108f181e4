//! What clients ask of a container.

use std::os::fd::OwnedFd;

use croft_api::container::{ContainerLimits, ExecSpec};
use croft_api::control::{Event as Told, Request, Writing};
use croft_api::net::{NicChange, NicSpec};
use croft_api::{Phase, pair};
use rustix::termios::{Winsize, tcsetwinsize};

use super::super::keeper::{Answer, Keeper};
use super::Container;

/// Its terminal, the only console there is.
const TERMINAL: u32 = 0;

impl Keeper<Container> {
    pub(super) fn answer_container(
        &mut self,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Answer {
        match request {
            Request::Attach {
                console,
                writing,
                lines,
            } => self.attach(console, writing, lines),
            Request::AttachStreams { writing, lines } => self.attach_streams(writing, lines),
            Request::ResizeConsole {
                console,
                columns,
                rows,
            } => self.resize(console, columns, rows),
            Request::Exec(exec) => self.exec(client, &exec, descriptors),
            Request::ExecSignal { id, signal } => {
                self.own.execs.signal(client, id, signal)?;
                Ok((Told::Done, vec![]))
            }
            Request::Signal { signal } => {
                let sent = self.running()?.signal(signal);
                sent.map_err(|error| error.to_string())?;
                Ok((Told::Done, vec![]))
            }
            Request::PowerButton => {
                let signal = self.own.stop_signal();
                let sent = self.running()?.signal(signal);
                sent.map_err(|error| error.to_string())?;
                Ok((Told::Done, vec![]))
            }
            Request::Stats => {
                let stats = self.running()?.stats()?;
                Ok((Told::Stats(Box::new(stats)), vec![]))
            }
            Request::Processes => {
                let processes = self.running()?.group().processes();
                let processes = processes.map_err(|error| error.to_string())?;
                let pids = processes.into_iter();
                let pids = pids.map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
                let pids = pids.collect();
                Ok((Told::Processes { pids }, vec![]))
            }
            Request::SetLimits(limits) => self.set_limits(*limits),
            Request::SetNic {
                nic,
                change,
                live_only,
            } => self.set_nic(&nic, change, live_only),
            Request::AttachNic { nic, live_only } => self.attach_nic(*nic, live_only),
            Request::Detach {
                device, live_only, ..
            } => self.detach_nic(device, live_only),
            _ => Err("it is a container; this is for machines".to_owned()),
        }
    }

    fn attach(&mut self, console: u32, writing: Writing, lines: Option<u32>) -> Answer {
        if console != TERMINAL || !self.own.run.container.tty {
            return Err(no_terminal());
        }
        self.attach_streams(writing, lines).map(|(event, sockets)| {
            let event = match event {
                Told::Streams { writer } => Told::Attached { writer },
                event => event,
            };
            (event, sockets)
        })
    }

    fn attach_streams(&mut self, writing: Writing, lines: Option<u32>) -> Answer {
        let mut writer = false;
        let mut sockets = Vec::new();
        for (index, console) in self.own.consoles.iter_mut().enumerate() {
            let made = pair().map_err(|error| format!("cannot make a socket: {error}"));
            let (ours, theirs) = made?;
            let writing = if index == 0 { writing } else { Writing::No };
            writer |= console.attach(ours, writing, lines)?;
            sockets.push(theirs);
        }
        Ok((Told::Streams { writer }, sockets))
    }

    fn resize(&mut self, console: u32, columns: u16, rows: u16) -> Answer {
        let running = self.running()?;
        let terminal = running.streams.get_terminal();
        let terminal = terminal.filter(|_| console == TERMINAL);
        let terminal = terminal.ok_or_else(no_terminal)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size).map_err(|error| error.to_string())?;
        Ok((Told::Done, vec![]))
    }

    fn exec(&mut self, client: u64, exec: &ExecSpec, descriptors: Vec<OwnedFd>) -> Answer {
        match self.life.phase() {
            Phase::Running | Phase::Stopping => {}
            // It would be held too, before it had said how it went.
            phase => return Err(format!("it is {phase}")),
        }
        let own = &mut self.own;
        let running = own.running.as_ref().ok_or("it does not run")?;
        Ok(own.execs.start(
            client,
            exec,
            descriptors,
            running,
            &own.run,
            &self.directory,
        ))
    }

    fn set_limits(&mut self, limits: ContainerLimits) -> Answer {
        let before = std::mem::replace(&mut self.own.run.container.limits, limits.clone());
        if let Some(running) = &self.own.running
            && let Err(error) = running.set_limits(&self.own.run)
        {
            self.own.run.container.limits = before;
            // As far as they were set.
            let undone = running.set_limits(&self.own.run);
            let also = undone.err().filter(|other| *other != error);
            let also = also.map_or_else(String::new, |other| format!("; undoing it: {other}"));
            return Err(format!("{error}{also}"));
        }
        self.change_config(|config| {
            if let Some(container) = config.container_mut() {
                container.limits = limits;
            }
        })?;
        Ok((Told::Done, vec![]))
    }

    fn set_nic(&mut self, name: &str, change: NicChange, live_only: bool) -> Answer {
        // As for a machine: one that does not run is changed on disk.
        self.running()?;
        if let Some(running) = &mut self.own.running {
            running.nics.change(name, change)?;
        }
        if !live_only {
            set(&mut self.own.run.nics, name, change);
            self.change_config(|config| set(&mut config.nics, name, change))?;
        }
        Ok((Told::Done, vec![]))
    }

    /// A NIC that the container has at once, in its configuration too.
    fn attach_nic(&mut self, nic: NicSpec, live_only: bool) -> Answer {
        self.running()?;
        let own = &mut self.own;
        let running = own.running.as_mut().ok_or("it does not run")?;
        running.add_nic(&own.run, &self.directory, &nic, live_only)?;
        let device = nic.name.clone();
        if !live_only {
            own.run.nics.push(nic.clone());
            let kept = self.change_config(|config| config.nics.push(nic));
            kept.map_err(|error| {
                format!("{device} is attached, but not at the next start: {error}")
            })?;
        }
        self.say(&format!("{device} is attached"));
        Ok((Told::Plugged { device }, vec![]))
    }

    /// The container's kernel is this host's: there is nobody to be asked.
    fn detach_nic(&mut self, device: String, live_only: bool) -> Answer {
        self.running()?;
        let own = &mut self.own;
        let running = own.running.as_mut().ok_or("it does not run")?;
        running.remove_nic(&own.run, &self.directory, &device)?;
        if !live_only {
            own.run.nics.retain(|nic| nic.name != device);
            let kept = self.change_config(|config| config.nics.retain(|nic| nic.name != device));
            kept.map_err(|error| {
                format!("{device} is gone, but there at the next start: {error}")
            })?;
        }
        self.say(&format!("{device} is detached"));
        Ok((Told::Done, vec![]))
    }
}

/// Changes the NIC of this name.
fn set(nics: &mut [NicSpec], name: &str, change: NicChange) {
    if let Some(nic) = nics.iter_mut().find(|nic| nic.name == name) {
        change.apply(nic);
    }
}

fn no_terminal() -> String {
    "it has no terminal; create it with --tty, or see 'croft attach' and 'croft exec -t'".to_owned()
}
