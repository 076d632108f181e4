//! All connections of a device, and the work for them.
//!
//! ```text
//! guest REQUEST ─► requested ── socket ──► open ◄── RESPONSE ── connecting ◄─ host
//!                      │ refused, late      │                        │ RST, late
//!                      ▼                    ├─ both ends closed ──────┤
//!                     RST                   ▼                        ▼
//!                                  lingering (what the guest     the socket
//!                                  sent goes on to the host)     is closed
//! ```
//!
//! Everything is bounded: connections in number, data by their credit,
//! packets for the guest by what each connection can owe, and resets for
//! packets of no connection in number. Is there no more room for those the
//! guest's packets wait until it takes some (5.10.6.2).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{SocketType, sockopt};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Key, Phase};
use super::handle::Hub;
use super::packet::{self, HOST_CID, Header, op};
use crate::virtio::{Chain, Next, QueueError, Queues, Service};

/// Receive queue: packets for the guest.
pub const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
/// Number of queues.
pub const QUEUES: u16 = 3;
/// Most connections at once, of all phases.
pub const CONNECTIONS_MAX: usize = 512;
/// Most resets that wait for room in the receive queue.
const RESETS_MAX: usize = 128;
/// How long either side may take to answer a request for a connection.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long the guest may take to let go of a connection that has ended.
const CLOSING: Duration = Duration::from_secs(8);
/// The least port of the host's own connections; those below are for those
/// who listen.
const PORT_FIRST: u32 = 1 << 30;
/// The one above stands for any port (5.10.4 leaves it out; VMADDR_PORT_ANY).
const PORT_LAST: u32 = u32::MAX - 1;
/// Most data of one packet, as in Linux.
const DATA_MAX: usize = 64 << 10;
/// Packets of the guest's taken before the sockets are looked after again.
const BATCH: usize = 128;
/// Packets handed to the guest before it is interrupted.
const INTERRUPT_EVERY: usize = 32;
/// Changes of sockets taken at once.
const EVENTS: usize = 64;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// See the [module](self).
pub struct Switchboard {
    cid: u64,
    hub: Arc<Hub>,
    /// Connections by number.
    connections: HashMap<u64, Connection>,
    /// Their numbers; those that linger have left the guest's sight.
    numbers: HashMap<Key, u64>,
    /// Those with something for the guest, in turn.
    ready: VecDeque<u64>,
    /// For packets of no connection.
    resets: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, u64)>,
    next_port: u32,
    /// The driver must hear that its connections are gone.
    restored: bool,
    /// The sockets; `None` when the host has no room for one more.
    poll: Option<Epoll>,
    chain: Chain,
    data: Vec<u8>,
}

impl Switchboard {
    /// For guest `cid`; after a restore it says so.
    pub fn new(cid: u32, hub: Arc<Hub>, restored: bool) -> Self {
        hub.set_serving(true);
        Switchboard {
            cid: u64::from(cid),
            hub,
            connections: HashMap::new(),
            numbers: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_port: first_port(),
            restored,
            poll: Epoll::new().ok(),
            chain: Chain::default(),
            data: vec![0; DATA_MAX],
        }
    }

    /// What came from outside.
    fn take_inbox(&mut self) {
        let inbox = self.hub.take();
        for (port, socket) in inbox.connects {
            self.host_connects(port, socket);
        }
        for (number, socket) in inbox.answers {
            self.host_answers(number, socket);
        }
    }

    fn host_connects(&mut self, port: u32, socket: OwnedFd) {
        let Some(key) = self.free_key(port) else {
            return;
        };
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let number = self.hub.number();
        if !self.watch(number, &socket) {
            return;
        }
        let deadline = Instant::now() + HANDSHAKE;
        let mut connection = Connection::new(key, Phase::Connecting, deadline);
        connection.set_host(socket);
        connection.owed.request = true;
        self.insert(number, connection);
        self.schedule(number);
    }

    /// A port of the host's that has no connection to `guest` yet.
    fn free_key(&mut self, guest: u32) -> Option<Key> {
        (0..=CONNECTIONS_MAX).find_map(|_| {
            let host = self.next_port;
            self.next_port = if host < PORT_LAST {
                host + 1
            } else {
                PORT_FIRST
            };
            let key = Key { host, guest };
            (!self.numbers.contains_key(&key)).then_some(key)
        })
    }

    fn host_answers(&mut self, number: u64, socket: Option<OwnedFd>) {
        let phase = self.connections.get(&number).map(|c| c.phase);
        if phase != Some(Phase::Requested) {
            return;
        }
        let socket = socket.filter(|socket| self.watch(number, socket));
        let (Some(socket), Some(connection)) = (socket, self.connections.get_mut(&number)) else {
            return self.reset(number);
        };
        connection.set_host(socket);
        connection.phase = Phase::Open;
        connection.owed.response = true;
        self.set_deadline(number, None);
        self.schedule(number);
    }

    /// Hears of a socket from now on; false if it cannot be one of a
    /// connection's.
    fn watch(&self, number: u64, socket: &OwnedFd) -> bool {
        let Some(poll) = &self.poll else { return false };
        let changes =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(changes, number);
        sockopt::socket_type(socket) == Ok(SocketType::STREAM)
            && poll
                .ctl(ControlOperation::Add, socket.as_raw_fd(), event)
                .is_ok()
    }

    /// What happened at the sockets.
    fn take_events(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        while let Some(poll) = &self.poll {
            let count = match poll.wait(0, &mut events) {
                Ok(count @ 1..) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ => break,
            };
            for event in events.iter().take(count) {
                self.socket_changed(event.data(), event.event_set());
            }
            if count < EVENTS {
                break;
            }
        }
    }

    fn socket_changed(&mut self, number: u64, changes: EventSet) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        connection.host_changed(
            changes.intersects(EventSet::IN | EventSet::READ_HANG_UP),
            changes.contains(EventSet::OUT),
            changes.intersects(EventSet::HANG_UP | EventSet::ERROR),
        );
        match connection.phase {
            Phase::Connecting if connection.is_hung_up() => self.reset(number),
            Phase::Lingering if connection.is_flushed() => self.forget(number),
            _ => self.schedule(number),
        }
    }

    /// Gives up what took too long.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, number)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.set_deadline(number, None);
            self.reset(number);
        }
    }

    fn set_deadline(&mut self, number: u64, deadline: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
            self.deadlines.remove(&(old, number));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, number));
        }
    }

    fn insert(&mut self, number: u64, connection: Connection) {
        if let Some(deadline) = connection.deadline {
            self.deadlines.insert((deadline, number));
        }
        self.numbers.insert(connection.key, number);
        self.connections.insert(number, connection);
    }

    /// Closes a connection and everything about it.
    fn forget(&mut self, number: u64) {
        self.set_deadline(number, None);
        if let Some(connection) = self.connections.remove(&number)
            && self.numbers.get(&connection.key) == Some(&number)
        {
            self.numbers.remove(&connection.key);
        }
    }

    /// The guest has done with a connection. What it has sent goes on to the
    /// host.
    fn release(&mut self, number: u64) {
        self.set_deadline(number, None);
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.phase != Phase::Open || connection.is_flushed() {
            return self.forget(number);
        }
        connection.phase = Phase::Lingering;
        connection.owed = Default::default();
        self.numbers.remove(&connection.key);
    }

    /// Ends a connection that the guest may know of.
    fn reset(&mut self, number: u64) {
        if let Some(connection) = self.connections.get(&number) {
            let key = connection.key;
            let unknown = connection.owed.request;
            self.release(number);
            if !unknown {
                self.refuse(&Header {
                    src_cid: self.cid,
                    dst_cid: HOST_CID,
                    src_port: key.guest,
                    dst_port: key.host,
                    ..Header::default()
                });
            }
        }
    }

    /// Answers a packet with a reset.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.resets.push_back(header.refusal());
        }
    }

    /// Lets a connection have its turn, if it has something for the guest.
    fn schedule(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number)
            && !connection.scheduled
            && connection.has_packet()
        {
            connection.scheduled = true;
            self.ready.push_back(number);
        }
    }

    /// A packet of the guest's.
    fn hear(&mut self, queues: &Queues<'_>, chain: &Chain) -> Result<(), QueueError> {
        let mut bytes = [0; packet::LEN];
        let have = chain.readable.read(queues.ram(), 0, &mut bytes)?;
        let header = Header::parse(&bytes);
        if have < bytes.len() {
            return Err(QueueError::Request("has no complete header"));
        }
        if u64::from(header.len) > chain.readable.len() - packet::LEN as u64 {
            return Err(QueueError::Request("has less data than its header says"));
        }
        if header.src_cid != self.cid {
            // Nobody of that name can be answered.
            return Ok(());
        }
        if header.kind != packet::STREAM || header.dst_cid != HOST_CID {
            self.refuse(&header);
            return Ok(());
        }
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        match self.numbers.get(&key).copied() {
            Some(number) => self.converse(queues, chain, number, &header)?,
            None if header.op == op::REQUEST => self.guest_connects(key, &header),
            None => self.refuse(&header),
        }
        Ok(())
    }

    fn guest_connects(&mut self, key: Key, header: &Header) {
        let number = self.hub.number();
        let room = self.connections.len() < CONNECTIONS_MAX;
        if !room || !self.hub.host.requested(number, key.host) {
            return self.refuse(header);
        }
        let deadline = Instant::now() + HANDSHAKE;
        let mut connection = Connection::new(key, Phase::Requested, deadline);
        connection.heard(header);
        self.insert(number, connection);
    }

    /// A packet of a connection.
    fn converse(
        &mut self,
        queues: &Queues<'_>,
        chain: &Chain,
        number: u64,
        header: &Header,
    ) -> Result<(), QueueError> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Ok(());
        };
        connection.heard(header);
        match (connection.phase, header.op) {
            (_, op::RST) => self.release(number),
            (Phase::Connecting, op::RESPONSE) => {
                connection.phase = Phase::Open;
                let port = connection.key.host;
                connection.greet(&format!("OK {port}\n"));
                self.set_deadline(number, None);
                self.schedule(number);
            }
            (Phase::Open, op::CREDIT_UPDATE | op::CREDIT_REQUEST) => self.schedule(number),
            (Phase::Open, op::RW) if connection.may_receive(header.len) => {
                let mut at = packet::LEN as u64;
                let end = at + u64::from(header.len);
                while at < end {
                    let len = (end - at).min(DATA_MAX as u64) as usize;
                    let part = self.data.get_mut(..len).unwrap_or_default();
                    chain.readable.read(queues.ram(), at, part)?;
                    connection.receive(part);
                    at += len as u64;
                }
                self.schedule(number);
            }
            (Phase::Open, op::SHUTDOWN) => {
                if connection.end_guest(header.flags) {
                    // This tells the guest that it can let go.
                    self.reset(number);
                } else {
                    self.schedule(number);
                }
            }
            // Out of turn, or more than there is room for.
            _ => self.reset(number),
        }
        Ok(())
    }

    /// Takes the guest's packets; true if there may be more.
    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let mut chain = std::mem::take(&mut self.chain);
        let result = self.drain_into(queues, &mut chain);
        self.chain = chain;
        result
    }

    fn drain_into(
        &mut self,
        queues: &mut Queues<'_>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        queues.expect(TX, false)?;
        for _ in 0..BATCH {
            if !queues.live() || self.resets.len() >= RESETS_MAX {
                queues.interrupt(TX)?;
                return Ok(false);
            }
            if !queues.pop(TX, chain)? {
                queues.interrupt(TX)?;
                return queues.expect(TX, true);
            }
            self.hear(queues, chain)?;
            queues.push(TX, chain, 0)?;
        }
        queues.interrupt(TX)?;
        Ok(true)
    }

    /// Hands packets to the guest; true if there were any.
    fn fill(&mut self, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let mut chain = std::mem::take(&mut self.chain);
        let result = self.fill_from(queues, &mut chain);
        self.chain = chain;
        result
    }

    fn fill_from(
        &mut self,
        queues: &mut Queues<'_>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        let mut count = 0;
        while queues.live() && !(self.resets.is_empty() && self.ready.is_empty()) {
            if !queues.pop(RX, chain)? {
                if queues.expect(RX, true)? {
                    continue;
                }
                break;
            }
            let header = packet::LEN as u64;
            let room = chain.writable.len().saturating_sub(header);
            if room == 0 {
                return Err(QueueError::Request("has no room for a packet"));
            }
            let Some((packet, len)) = self.next_packet(room) else {
                queues.unpop(RX);
                break;
            };
            chain.writable.write(queues.ram(), 0, &packet.bytes())?;
            let data = self.data.get(..len).unwrap_or_default();
            chain.writable.write(queues.ram(), header, data)?;
            queues.push(RX, chain, (packet::LEN + len) as u32)?;
            count += 1;
            if count % INTERRUPT_EVERY == 0 {
                queues.interrupt(RX)?;
            }
        }
        queues.interrupt(RX)?;
        Ok(count > 0)
    }

    /// The next packet for the guest, with at most `room` bytes of data, and
    /// how many of those there are.
    fn next_packet(&mut self, room: u64) -> Option<(Header, usize)> {
        if let Some(reset) = self.resets.pop_front() {
            return Some((reset, 0));
        }
        let room = room.min(DATA_MAX as u64) as usize;
        while let Some(number) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&number) else {
                continue;
            };
            connection.scheduled = false;
            let data = self.data.get_mut(..room).unwrap_or_default();
            let Some(packet) = connection.next_packet(self.cid, data) else {
                continue;
            };
            if packet.op == op::SHUTDOWN && connection.is_closing() {
                self.set_deadline(number, Some(Instant::now() + CLOSING));
            }
            self.schedule(number);
            return Some((packet, packet.len as usize));
        }
        None
    }

    /// Tells the driver of a restore.
    fn announce(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let mut chain = Chain::default();
        while self.restored && queues.live() {
            if !queues.pop(EVENT, &mut chain)? {
                if queues.expect(EVENT, true)? {
                    continue;
                }
                break;
            }
            let len = chain.writable.write(queues.ram(), 0, &TRANSPORT_RESET)?;
            queues.push(EVENT, &chain, len as u32)?;
            queues.interrupt(EVENT)?;
            self.restored = false;
        }
        Ok(())
    }
}

/// Anywhere: after a restore the guest may still hold connections to ports
/// that were in use before.
fn first_port() -> u32 {
    let mut bytes = [0; 4];
    // Without chance it is the first one.
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    PORT_FIRST | u32::from_le_bytes(bytes) & (PORT_FIRST - 1)
}

impl Service for Switchboard {
    fn descriptor(&self) -> Option<RawFd> {
        self.poll.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError> {
        self.announce(queues)?;
        self.take_events();
        self.take_inbox();
        self.expire();
        let mut again = self.drain(queues)?;
        // What the guest takes makes room for what was held back.
        again |= self.fill(queues)? && self.resets.len() < RESETS_MAX && queues.waits(TX)?;
        Ok(Next {
            again,
            deadline: self.deadlines.first().map(|(at, _)| *at),
        })
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        self.hub.set_serving(false);
    }
}
