//! The NICs of a machine: what carries their frames.
//!
//! ```text
//!            its passt ends            the wait is over
//!  (carried) ──────────────► (cut) ─────────────────────► (carried)
//!                link down    │ 100 ms … 30 s      NicBackend, link up
//! ```
//!
//! The vmm gets descriptors; what has to be watched for them is here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use croft_api::net::{NicBackend, NicKind, NicSpec, Publish, StartNic};
use croft_api::vmm::Request;
use croft_network::user::{self, Host, Passt, PublishFault, Retry};

use crate::lines::Lines;

/// How long a published port may be taken still by an instance that has just
/// ended.
const LINGER: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most lines that one passt can say; a guest could provoke many.
const LINES_MAX: usize = 100;

/// A NIC of a machine that is about to start.
#[derive(Debug)]
pub struct Nic {
    start: StartNic,
    descriptors: Vec<OwnedFd>,
    wire: Wire,
}

/// What the monitor keeps of a NIC.
#[derive(Debug)]
pub struct Wire {
    /// The NIC's name.
    name: String,
    user: Option<UserWire>,
}

impl Wire {
    fn process(&self) -> Option<u32> {
        let passt = self.user.as_ref()?.passt.as_ref()?;
        Some(passt.id())
    }
}

impl Nic {
    /// Makes what carries the frames of all of them, or says what is wrong
    /// and what to do.
    pub fn open_all(specs: &[NicSpec]) -> Result<Vec<Nic>, String> {
        let nics = specs.iter().map(Nic::open);
        nics.collect()
    }

    /// Makes what carries its frames.
    pub fn open(spec: &NicSpec) -> Result<Nic, String> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", spec.name);
        match &spec.kind {
            NicKind::User(net) => {
                let mtu = spec.mtu.unwrap_or(user::MTU);
                let (user, socket) =
                    UserWire::open(spec, &net.publish, mtu).map_err(|error| named(&error))?;
                Ok(Nic {
                    start: StartNic {
                        name: spec.name.clone(),
                        mac: spec.mac,
                        mtu,
                        queues: 1,
                        limits: spec.limits,
                        link: spec.link,
                        backend: NicBackend::Stream,
                    },
                    descriptors: vec![socket],
                    wire: Wire {
                        name: spec.name.clone(),
                        user: Some(user),
                    },
                })
            }
            NicKind::Network(_) | NicKind::Bridge(_) => Err(named(&"not wired yet")),
        }
    }

    /// What the payload is told.
    pub fn describe(&self) -> StartNic {
        self.start.clone()
    }

    /// What the payload is given, and what stays.
    pub fn split(self) -> (Vec<OwnedFd>, Wire) {
        (self.descriptors, self.wire)
    }
}

/// All that the monitor keeps of a machine's NICs.
#[derive(Debug, Default)]
pub struct Wires(Vec<Wire>);

impl Extend<Wire> for Wires {
    fn extend<T: IntoIterator<Item = Wire>>(&mut self, wires: T) {
        self.0.extend(wires);
    }
}

impl Wires {
    /// Lets go of what a NIC hung on that is gone.
    pub fn remove(&mut self, nic: &str) {
        self.0.retain(|wire| wire.name != nic);
    }

    /// What is worth reading, with the process that is heard then.
    pub fn sources(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let users = self.0.iter().filter_map(|wire| wire.user.as_ref());
        let passts = users.filter_map(|user| user.passt.as_ref());
        passts.map(|passt| (passt.id(), passt.as_fd()))
    }

    /// One can be read: what there is to say of it.
    pub fn hear(&mut self, process: u32) -> Vec<String> {
        let Some(wire) = self
            .0
            .iter_mut()
            .find(|wire| wire.process() == Some(process))
        else {
            return Vec::new();
        };
        let lines = wire.user.iter_mut().flat_map(UserWire::hear);
        lines.map(|line| format!("{}: {line}", wire.name)).collect()
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let users = self.0.iter().filter_map(|wire| wire.user.as_ref());
        users.filter_map(|user| user.again).min()
    }

    /// Mends those whose time has come: what the payload is to be asked, with
    /// its descriptor, or what there is to say.
    pub fn mend(&mut self) -> Vec<Result<(Request, OwnedFd), String>> {
        let mut mended = Vec::new();
        for wire in &mut self.0 {
            let Some(result) = wire.user.as_mut().and_then(UserWire::mend) else {
                continue;
            };
            mended.push(match result {
                Ok(socket) => {
                    let request = Request::NicBackend {
                        nic: wire.name.clone(),
                        backend: NicBackend::Stream,
                    };
                    Ok((request, socket))
                }
                Err(error) => Err(format!("{}: {error}", wire.name)),
            });
        }
        mended
    }
}

/// A NIC's passt.
#[derive(Debug)]
struct UserWire {
    program: PathBuf,
    publish: Vec<Publish>,
    mtu: u16,
    passt: Option<Passt>,
    lines: Lines,
    /// How many lines this passt has said.
    said: usize,
    retry: Retry,
    /// When it is started again, if it has ended.
    again: Option<Instant>,
}

impl UserWire {
    fn open(spec: &NicSpec, publish: &[Publish], mtu: u16) -> Result<(Self, OwnedFd), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let program = user::find().map_err(|error| text(&error))?;
        let host = Host::look();
        check(publish, &host).map_err(|error| text(&error))?;
        let (passt, socket) =
            Passt::start(&program, &host, publish, mtu, spec.mac).map_err(|error| {
                format!("{error}; 'croft doctor' may tell why, --net none does without")
            })?;
        let wire = UserWire {
            program,
            publish: publish.to_vec(),
            mtu,
            passt: Some(passt),
            lines: Lines::default(),
            said: 0,
            retry: Retry::new(Instant::now()),
            again: None,
        };
        Ok((wire, socket))
    }

    fn hear(&mut self) -> Vec<String> {
        let Some(passt) = &mut self.passt else {
            return Vec::new();
        };
        let mut news = self.lines.read(passt.stderr());
        news.retain(|line| user::is_news(line));
        let room = LINES_MAX.saturating_sub(self.said);
        self.said = self.said.saturating_add(news.len());
        news.truncate(room);
        for line in &mut news {
            line.insert_str(0, "passt: ");
        }
        if self.lines.ended() {
            let status = self.passt.take().and_then(Passt::reap);
            let wait = self.retry.ended(Instant::now());
            self.again = Some(Instant::now() + wait);
            // One whose socket was closed has done as it should: the vmm has
            // ended, or says itself what it did not like.
            if !status.is_some_and(|status| status.success()) {
                news.push(format!(
                    "passt has ended{}; it is started again in {} ms",
                    status.map(describe).unwrap_or_default(),
                    wait.as_millis()
                ));
            }
        }
        news
    }

    /// Starts it again when its time has come. It is not waited for: what it
    /// has to say is heard like that of the first.
    fn mend(&mut self) -> Option<Result<OwnedFd, String>> {
        let now = Instant::now();
        self.again.take_if(|again| *again <= now)?;
        self.retry.started(now);
        match Passt::spawn(&self.program, &Host::look(), &self.publish, self.mtu) {
            Ok((passt, socket)) => {
                self.passt = Some(passt);
                self.lines = Lines::default();
                self.said = 0;
                Some(Ok(socket))
            }
            Err(error) => {
                self.again = Some(now + self.retry.ended(now));
                Some(Err(error.to_string()))
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    format!(" ({status})")
}

/// As [`user::check`], with patience for whoever is about to leave a port.
fn check(publish: &[Publish], host: &Host) -> Result<(), PublishFault> {
    let end = Instant::now() + LINGER;
    loop {
        match user::check(publish, host) {
            Err(PublishFault::Taken(_)) if Instant::now() < end => std::thread::sleep(LOOK),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use croft_api::net::UserNet;
    use rustix::event::PollFlags;

    use super::*;
    use crate::wait::ready;

    fn spec(publish: &[&str]) -> NicSpec {
        NicSpec {
            name: "net0".to_owned(),
            mac: "02:c7:0f:01:02:03".parse().unwrap(),
            mtu: None,
            queues: None,
            limits: Default::default(),
            link: true,
            kind: NicKind::User(UserNet {
                publish: publish.iter().map(|text| text.parse().unwrap()).collect(),
            }),
        }
    }

    #[test]
    fn a_passt_that_ends_comes_back() {
        if user::find().is_err() {
            eprintln!("skipped: passt is not installed");
            return;
        }
        let mut nics = Nic::open_all(&[spec(&[])]).unwrap();
        let nic = nics.pop().unwrap();
        assert_eq!(nic.describe().mtu, user::MTU);
        let (_socket, wire) = nic.split();
        let pid = |wires: &Wires| wires.0[0].process().unwrap();
        let mut wires = Wires::default();
        wires.extend([wire]);
        let first = pid(&wires);
        let process = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        let mut lines = Vec::new();
        while wires.deadline().is_none() {
            let interests: Vec<_> = wires
                .sources()
                .map(|(i, fd)| (i, fd, PollFlags::IN))
                .collect();
            for (index, _) in ready(&interests, Some(Duration::from_secs(20))).unwrap() {
                lines.extend(wires.hear(index));
            }
        }
        assert!(
            lines.last().unwrap().starts_with("net0: passt has ended"),
            "{lines:?}"
        );
        assert!(wires.mend().is_empty(), "it waits");
        std::thread::sleep(Duration::from_millis(120));
        let (request, socket) = wires.mend().pop().unwrap().unwrap();
        assert!(
            matches!(request, Request::NicBackend { nic, backend: NicBackend::Stream } if nic == "net0")
        );
        assert_ne!(first, pid(&wires));
        drop(wires);
        assert_eq!(UnixStream::from(socket).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Nic::open_all(&[spec(&[&format!("127.0.0.1:{port}:22")])]).unwrap_err();
        if user::find().is_ok() {
            assert!(error.contains(&format!("port {port} (tcp)")), "{error}");
        } else {
            assert!(error.contains("apt install passt"), "{error}");
        }
    }
}
