//! The NICs of a machine: what carries their frames.
//!
//! ```text
//!            its passt ends            the wait is over
//!  (carried) ──────────────► (cut) ─────────────────────► (carried)
//!                link down    │ 100 ms … 30 s      NicBackend, link up
//! ```
//!
//! The vmm gets descriptors; what has to be watched for them is here ([`user`]),
//! or undone when they are gone ([`tap`]). A container's NICs are interfaces in
//! its network namespace ([`container`]).

pub mod container;
mod helper;
mod tap;
mod user;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use croft_api::MachineSpec;
use croft_api::net::{NicBackend, NicKind, NicSpec, Publish, QUEUES_MAX, StartNic};
use croft_api::vmm::Request;
use croft_network::user::{self as network, Passt};

use self::tap::Attachment;
use self::user::UserWire;

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
    end: End,
}

/// The other end of a NIC's cable.
#[derive(Debug)]
enum End {
    User(Box<UserWire>),
    /// A tap, which is the payload's alone. Detached when dropped.
    Tap {
        /// Keeps what is behind it.
        _attachment: Attachment,
    },
}

impl Wire {
    fn user(&self) -> Option<&UserWire> {
        match &self.end {
            End::User(user) => Some(user),
            End::Tap { .. } => None,
        }
    }

    fn user_mut(&mut self) -> Option<&mut UserWire> {
        match &mut self.end {
            End::User(user) => Some(user),
            End::Tap { .. } => None,
        }
    }

    /// Its passt, while it has one.
    fn passt(&self) -> Option<&Passt> {
        self.user()?.helper.process.as_ref()
    }
}

impl Nic {
    /// Makes what carries the frames of all NICs of `machine`, or says what
    /// is wrong and what to do.
    pub fn open_all(machine: &MachineSpec, nics: &[NicSpec]) -> Result<Vec<Nic>, String> {
        nics.iter().map(|nic| Nic::open(machine, nic)).collect()
    }

    /// Makes what carries the frames of a NIC of `machine`.
    pub fn open(machine: &MachineSpec, nic: &NicSpec) -> Result<Nic, String> {
        let opened = match &nic.kind {
            NicKind::User(net) => Nic::open_user(nic, &net.publish),
            NicKind::Network(_) | NicKind::Bridge(_) => Nic::open_tap(machine, nic),
        };
        opened.map_err(|error| format!("{}: {error}", nic.name))
    }

    fn open_user(nic: &NicSpec, publish: &[Publish]) -> Result<Nic, String> {
        let mtu = nic.mtu.unwrap_or(network::MTU);
        let (user, socket) = UserWire::open(nic, publish, mtu)?;
        let end = End::User(Box::new(user));
        Ok(Nic::new(nic, mtu, 1, NicBackend::Stream, vec![socket], end))
    }

    fn open_tap(machine: &MachineSpec, nic: &NicSpec) -> Result<Nic, String> {
        let own = u16::try_from(machine.cpus).unwrap_or(QUEUES_MAX);
        let queues = nic.queues.unwrap_or(own).clamp(1, QUEUES_MAX);
        let (attachment, attached) = Attachment::make(machine, nic, queues)?;
        let backend = NicBackend::Tap { queues };
        let end = End::Tap {
            _attachment: attachment,
        };
        Ok(Nic::new(
            nic,
            attached.mtu,
            queues,
            backend,
            attached.queues,
            end,
        ))
    }

    fn new(
        nic: &NicSpec,
        mtu: u16,
        queues: u16,
        backend: NicBackend,
        descriptors: Vec<OwnedFd>,
        end: End,
    ) -> Nic {
        Nic {
            start: StartNic {
                name: nic.name.clone(),
                mac: nic.mac,
                mtu,
                queues,
                limits: nic.limits,
                link: nic.link,
                backend,
            },
            descriptors,
            wire: Wire {
                name: nic.name.clone(),
                end,
            },
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
        let passts = self.0.iter().filter_map(Wire::passt);
        passts.map(|passt| (passt.id(), passt.as_fd()))
    }

    /// One can be read: what there is to say of it.
    pub fn hear(&mut self, process: u32) -> Vec<String> {
        let is = |wire: &&mut Wire| wire.passt().map(Passt::id) == Some(process);
        let Some(wire) = self.0.iter_mut().find(is) else {
            return Vec::new();
        };
        let lines = wire.user_mut().map(|user| user.helper.hear());
        let lines = lines.unwrap_or_default();
        let lines = lines.into_iter();
        lines.map(|line| format!("{}: {line}", wire.name)).collect()
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let users = self.0.iter().filter_map(Wire::user);
        users.filter_map(|user| user.helper.again).min()
    }

    /// Mends those whose time has come: what the payload is to be asked, with
    /// its descriptor, or what there is to say.
    pub fn mend(&mut self) -> Vec<Result<(Request, OwnedFd), String>> {
        let mut mended = Vec::new();
        for wire in &mut self.0 {
            let Some(result) = wire.user_mut().and_then(UserWire::mend) else {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use croft_api::machine::{EngineChoice, SoftwareSpec};
    use croft_api::net::UserNet;
    use rustix::event::PollFlags;

    use super::*;
    use crate::wait::ready;

    fn machine() -> MachineSpec {
        MachineSpec {
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
        }
    }

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
        if network::find(network::Program::Passt).is_err() {
            eprintln!("skipped: passt is not installed");
            return;
        }
        let mut nics = Nic::open_all(&machine(), &[spec(&[])]).unwrap();
        let nic = nics.pop().unwrap();
        assert_eq!(nic.describe().mtu, network::MTU);
        let (_socket, wire) = nic.split();
        let pid = |wires: &Wires| wires.0[0].passt().unwrap().id();
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
        // It waits, which is over soon, or already.
        let (request, socket) = loop {
            if let Some(mended) = wires.mend().pop() {
                break mended.unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
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
        let error =
            Nic::open_all(&machine(), &[spec(&[&format!("127.0.0.1:{port}:22")])]).unwrap_err();
        if network::find(network::Program::Passt).is_ok() {
            assert!(error.contains(&format!("port {port} (tcp)")), "{error}");
        } else {
            assert!(error.contains("apt install passt"), "{error}");
        }
    }
}
