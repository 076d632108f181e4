//! The control socket of a machine in the foreground: `croft save` finds it.
//!
//! ```text
//!          connect        Save, a file           answered
//! (nobody) ───────► heard ───────────► waiting ───────────► gone
//!                     │ nonsense, end                        ▲
//!                     └──────────────────────────────────────┘
//! ```
//!
//! One save at a time; it goes on when whoever asked for it goes away.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use croft_api::channel::channel;
use croft_api::control::{Event, PROTOCOL, Request};
use croft_api::disk::disk_name;
use croft_api::saved::SavedRun;
use croft_api::{Receiver, Sender, WireError};

use croft_host::socket::{self, SocketFile};

/// Name of the other end in messages.
const PEER: &str = "croft";
/// Most commands connected at once; more wait.
const CLIENTS_MAX: usize = 8;

/// The socket and who is connected to it.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    _file: Option<SocketFile>,
    run: SavedRun,
    clients: Vec<Client>,
    /// Numbers the clients.
    next: u64,
    /// A save is under way, for this client.
    saving: Option<u64>,
}

/// A command that is connected.
#[derive(Debug)]
struct Client {
    number: u64,
    sender: Sender,
    receiver: Receiver,
}

/// What a descriptor of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody wants to connect.
    Listener,
    /// A client by its number.
    Client(u64),
}

impl Control {
    /// Makes the socket. `run` is what a saved machine's file begins with.
    pub fn bind(path: &Path, run: SavedRun) -> io::Result<Self> {
        let (listener, file) = socket::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Control {
            listener,
            _file: file,
            run,
            clients: Vec::new(),
            next: 0,
            saving: None,
        })
    }

    /// What is worth waiting for.
    pub fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let clients = self
            .clients
            .iter()
            .map(|client| (Source::Client(client.number), client.receiver.as_fd()));
        let listener = (Source::Listener, self.listener.as_fd());
        let room = self.clients.len() < CLIENTS_MAX;
        room.then_some(listener)
            .into_iter()
            .chain(clients)
            .collect()
    }

    /// A device is gone, and is not there when the machine is restored.
    pub fn forget(&mut self, device: &str) {
        let named = |index: u8| disk_name(index) == device;
        self.run.disks.retain(|disk| !disk.index.is_some_and(named));
        self.run.nics.retain(|nic| nic.name != device);
    }

    /// Something is there. Returns the file to save the machine to, when that
    /// is asked for, and what it says that is plugged in.
    pub fn hear(&mut self, source: Source) -> Option<(OwnedFd, Vec<String>)> {
        match source {
            Source::Listener => {
                self.accept();
                None
            }
            Source::Client(number) => {
                let heard = self.hear_client(number);
                if heard.is_err() {
                    // A client that is gone, or speaks nonsense.
                    self.clients.retain(|client| client.number != number);
                }
                let file = heard.ok().flatten()?;
                let places = self.run.disks.iter().filter_map(|disk| disk.index);
                let nics = self.run.nics.iter().map(|nic| nic.name.clone());
                Some((file, places.map(disk_name).chain(nics).collect()))
            }
        }
    }

    fn accept(&mut self) {
        // One that is gone again is no loss.
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        let (sender, receiver) = channel(stream.into(), PROTOCOL, PEER);
        self.next += 1;
        self.clients.push(Client {
            number: self.next,
            sender,
            receiver,
        });
    }

    fn hear_client(&mut self, number: u64) -> Result<Option<OwnedFd>, WireError> {
        let Some(client) = self.clients.iter_mut().find(|c| c.number == number) else {
            return Ok(None);
        };
        client.receiver.fill()?;
        let mut asked = None;
        while let Some((request, descriptors)) = client.receiver.message::<Request>()? {
            if descriptors.len() != request.descriptors() {
                return Err(WireError::Damaged("a command has other descriptors"));
            }
            match request {
                Request::Save => asked = descriptors.into_iter().next(),
                _ => {
                    let message = "a machine in the foreground can be saved only".to_owned();
                    client.sender.push(&Event::Failed { message }, vec![])?;
                    client.sender.flush()?;
                }
            }
        }
        if client.receiver.ended() {
            return Err(WireError::Damaged("it is gone"));
        }
        let Some(file) = asked else {
            return Ok(None);
        };
        // The file is left alone as long as it may be the other save's.
        let begun = match self.saving {
            Some(_) => Err("the machine is being saved already".to_owned()),
            None => begin(file, &self.run),
        };
        let message = match begun {
            Ok(file) => {
                self.saving = Some(number);
                return Ok(Some(file));
            }
            Err(message) => message,
        };
        client.sender.push(&Event::Failed { message }, vec![])?;
        client.sender.flush()?;
        Ok(None)
    }

    /// Tells whoever asked for it that the save has ended.
    pub fn saved(&mut self, event: &Event) {
        let Some(number) = self.saving.take() else {
            return;
        };
        if let Some(client) = self.clients.iter_mut().find(|c| c.number == number) {
            // It may be gone by now. An answer is small: it fits.
            let _ = client.sender.push(event, vec![]);
            let _ = client.sender.flush();
        }
    }
}

/// Writes what comes before the state.
pub fn begin(file: OwnedFd, run: &SavedRun) -> Result<OwnedFd, String> {
    let mut file = File::from(file);
    let about = file.metadata().map_err(|error| error.to_string())?;
    // Anything else could keep us waiting.
    if !about.is_file() {
        return Err("a machine is saved to a regular file only".to_owned());
    }
    file.rewind()
        .and_then(|()| file.set_len(0))
        .and_then(|()| run.write(&mut file))
        .map_err(|error| format!("cannot write the machine's state: {error}"))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use croft_api::machine::{EngineChoice, MachineSpec, SoftwareSpec};

    use super::*;

    fn run() -> SavedRun {
        SavedRun {
            machine: MachineSpec {
                name: "test".to_owned(),
                engine: EngineChoice::Auto,
                software: SoftwareSpec::default(),
                cpu: None,
                memory: 1 << 24,
                cpus: 1,
                append: String::new(),
                no_reboot: false,
                test_devices: false,
                ports: Vec::new(),
                vsock: None,
            },
            kernel: Some("/kernel".into()),
            initrd: None,
            disks: Vec::new(),
            nics: Vec::new(),
            shares: Vec::new(),
        }
    }

    fn connect(path: &Path) -> (Sender, Receiver) {
        let stream = UnixStream::connect(path).unwrap();
        channel(stream.into(), PROTOCOL, "croft-monitor")
    }

    /// Everything that is ready; the files asked for.
    fn hear_all(control: &mut Control) -> Vec<(OwnedFd, Vec<String>)> {
        let sources: Vec<Source> = control.sources().iter().map(|(s, _)| *s).collect();
        let heard = sources
            .into_iter()
            .filter_map(|source| control.hear(source));
        heard.collect()
    }

    #[test]
    fn saves_come_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut control = Control::bind(&path, run()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let save = |sender: &mut Sender, file: &File| {
            let file = file.try_clone().unwrap().into();
            sender.deliver(&Request::Save, vec![file]).unwrap();
        };
        let (mut first, mut first_heard) = connect(&path);
        let (mut second, mut second_heard) = connect(&path);
        save(&mut first, &file);
        hear_all(&mut control);
        hear_all(&mut control);
        assert!(control.saving.is_some());
        save(&mut second, &file);
        assert!(hear_all(&mut control).is_empty());
        let (answer, _) = second_heard.wait::<Event>().unwrap().unwrap();
        assert!(matches!(answer, Event::Failed { message } if message.contains("already")));
        control.saved(&Event::Saved);
        let (answer, _) = first_heard.wait::<Event>().unwrap().unwrap();
        assert_eq!(answer, Event::Saved);
        file.rewind().unwrap();
        assert_eq!(SavedRun::read(&mut file).unwrap(), run());
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn nonsense_and_wrong_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut control = Control::bind(&path, run()).unwrap();
        let (mut sender, mut heard) = connect(&path);
        let null = File::options().write(true).open("/dev/null").unwrap();
        sender.deliver(&Request::Save, vec![null.into()]).unwrap();
        hear_all(&mut control);
        assert!(hear_all(&mut control).is_empty());
        let (answer, _) = heard.wait::<Event>().unwrap().unwrap();
        assert!(matches!(answer, Event::Failed { message } if message.contains("regular")));
        let mut stream = UnixStream::connect(&path).unwrap();
        io::Write::write_all(&mut stream, &[0xA5; 4000]).unwrap();
        hear_all(&mut control);
        hear_all(&mut control);
        assert_eq!(control.clients.len(), 1);
        sender.deliver(&Request::Save, vec![]).unwrap();
        hear_all(&mut control);
        assert!(control.clients.is_empty());
    }
}
