//! A connection to an instance's control socket.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use croft_api::channel::channel;
use croft_api::control::{Event, PROTOCOL, Request};
use croft_api::{Receiver, Sender, Status, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::socket;

/// Name of the other end in messages.
const PEER: &str = "croft-monitor";
/// Longest answer to a connection to the guest in bytes.
const LINE_MAX: usize = 32;
/// Most events kept that came before an answer.
const KEPT_MAX: usize = 1000;

/// Why an instance's monitor cannot be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("it does not run")]
    NoMonitor,
    /// It cannot be connected to.
    #[error("its control socket: {0}")]
    Connect(#[source] io::Error),
    /// The conversation failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It went away before it answered.
    #[error("its monitor went away")]
    Gone,
    /// It has not answered yet.
    #[error("it does not answer in time; what was asked for may still be done")]
    Late,
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    receiver: Receiver,
    /// What came before an answer.
    kept: VecDeque<Event>,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = socket::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoMonitor,
            _ => ClientError::Connect(error),
        })?;
        let (sender, receiver) = channel(stream.into(), PROTOCOL, PEER);
        Ok(Client {
            sender,
            receiver,
            kept: VecDeque::new(),
        })
    }

    /// Asks for something and waits for the answer.
    pub fn ask(
        &mut self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Event, Vec<OwnedFd>), ClientError> {
        self.ask_within(request, descriptors, None)
    }

    /// As [`ask`](Self::ask), for so long at most. What was asked for may
    /// still be done afterwards; the connection is of no use any more.
    pub fn ask_within(
        &mut self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
        patience: Option<Duration>,
    ) -> Result<(Event, Vec<OwnedFd>), ClientError> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        self.sender.deliver(request, descriptors)?;
        loop {
            let Some((event, descriptors)) = self.receive(deadline)? else {
                return Err(ClientError::Late);
            };
            match event {
                Event::Failed { message } => return Err(ClientError::Refused(message)),
                event if event.is_answer() => return Ok((event, descriptors)),
                Event::Status(_) if *request == Request::Status => {
                    return Ok((event, descriptors));
                }
                event => {
                    self.kept.push_back(event);
                    if self.kept.len() > KEPT_MAX {
                        self.kept.pop_front();
                    }
                }
            }
        }
    }

    /// The next message, or `None` when there was none until `deadline`.
    fn receive(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(Event, Vec<OwnedFd>)>, ClientError> {
        loop {
            if let Some(message) = self.receiver.message::<Event>()? {
                return Ok(Some(message));
            }
            if self.receiver.ended() {
                return Err(ClientError::Gone);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec::try_from(left).unwrap_or_default());
            let mut wait = [PollFd::new(&self.receiver, PollFlags::IN)];
            match poll(&mut wait, left.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => self.receiver.fill()?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ClientError::Connect(error.into())),
            }
        }
    }

    /// Asks for something that is answered by [`Event::Done`].
    pub fn command(&mut self, request: &Request) -> Result<(), ClientError> {
        self.ask(request, vec![]).map(drop)
    }

    /// Asks for something that comes as a descriptor.
    pub fn descriptor(&mut self, request: &Request) -> Result<(Event, OwnedFd), ClientError> {
        let (event, descriptors) = self.ask(request, vec![])?;
        let descriptor = descriptors.into_iter().next();
        let descriptor = descriptor.ok_or(WireError::Damaged("an answer without a descriptor"))?;
        Ok((event, descriptor))
    }

    /// A connection to a port of the guest's vsock, which the guest has
    /// accepted within `patience`.
    pub fn guest(&mut self, port: u32, patience: Duration) -> Result<UnixStream, ClientError> {
        let (_, descriptor) = self.descriptor(&Request::Connect { port })?;
        let mut stream = UnixStream::from(descriptor);
        let timeout = Some(patience.max(Duration::from_millis(1)));
        stream
            .set_read_timeout(timeout)
            .map_err(ClientError::Connect)?;
        // `OK <port of the host>` and a line end; what follows is the guest's.
        for _ in 0..LINE_MAX {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    stream
                        .set_read_timeout(None)
                        .map_err(ClientError::Connect)?;
                    return Ok(stream);
                }
                Ok(1) => {}
                Ok(_) => {
                    return Err(ClientError::Refused(format!(
                        "nobody listens at port {port} of the guest's vsock"
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Connect(error)),
            }
        }
        Err(WireError::Damaged("the guest's side said something else").into())
    }

    /// What is known now.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, vec![])? {
            (Event::Status(status), _) => Ok(*status),
            _ => Err(WireError::Damaged("another answer than the status").into()),
        }
    }

    /// From now on there are [`next`](Self::next) events.
    pub fn watch(&mut self) -> Result<(), ClientError> {
        Ok(self.sender.deliver(&Request::Watch, vec![])?)
    }

    /// The next event, or `None` when `timeout` has passed without one.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.kept.pop_front() {
            return Ok(Some(event));
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(self.receive(deadline)?.map(|(event, _)| event))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use croft_api::pair;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    /// A monitor whose guest answers a connection like this, and then closes it.
    fn connect(guest: &'static [u8]) -> Result<UnixStream, ClientError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("sock");
        let (listener, _file) = socket::bind(&path).unwrap();
        let monitor = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (mut sender, mut receiver) = channel(stream.into(), PROTOCOL, "croft");
            let (request, _) = receiver.wait::<Request>().unwrap().unwrap();
            assert_eq!(request, Request::Connect { port: 7 });
            let (ours, theirs) = pair().unwrap();
            let status = Event::Status(Box::new(Status::created(0)));
            sender.deliver(&status, vec![]).unwrap();
            sender.deliver(&Event::Connected, vec![theirs]).unwrap();
            UnixStream::from(ours).write_all(guest).unwrap();
        });
        let mut client = Client::connect(&path).unwrap();
        let connected = client.guest(7, PATIENCE);
        monitor.join().unwrap();
        // What came before the answer is not lost.
        assert!(matches!(client.next(None), Ok(Some(Event::Status(_)))));
        connected
    }

    #[test]
    fn what_follows_the_answer_is_the_guests() {
        let mut stream = connect(b"OK 1073741824\nhello").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn an_answer_is_waited_for_so_long() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("sock");
        let (listener, _file) = socket::bind(&path).unwrap();
        let monitor = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (mut sender, mut receiver) = channel(stream.into(), PROTOCOL, "croft");
            receiver.wait::<Request>().unwrap();
            let status = Event::Status(Box::new(Status::created(0)));
            sender.deliver(&status, vec![]).unwrap();
            // Until the client goes.
            receiver.wait::<Request>().unwrap();
        });
        let mut client = Client::connect(&path).unwrap();
        let patience = Some(Duration::from_millis(50));
        let late = client.ask_within(&Request::Pause, vec![], patience);
        assert!(matches!(late, Err(ClientError::Late)), "{late:?}");
        drop(client);
        monitor.join().unwrap();
    }

    #[test]
    fn a_guest_that_refuses_is_named() {
        let error = connect(b"").unwrap_err().to_string();
        assert!(error.contains("port 7"), "{error}");
        assert!(connect(&[b'x'; 100]).is_err());
    }
}
