//! One connection: its credit (virtio 1.2, 5.10.6.3) and its ends.
//!
//! Data from the guest that the host's socket does not take at once waits
//! here; the guest knows how much may wait and sends no more. Data for the
//! guest waits in the host's socket: it is read when the guest has room.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};

/// Most data from the guest that waits for the host, in bytes.
pub const BUFFER: u32 = 128 << 10;

/// The ports that tell a connection from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub host: u32,
    pub guest: u32,
}

/// Where a connection stands; see the [switchboard](super::switchboard).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest asked for it, the host has not answered.
    Requested,
    /// The host asked for it, the guest has not answered.
    Connecting,
    /// It carries data.
    Open,
    /// The guest has done with it; the host takes the rest.
    Lingering,
}

/// What a connection owes to the guest, most urgent first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    pub request: bool,
    pub response: bool,
    pub shutdown: bool,
    pub credit_request: bool,
    pub credit_update: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Connection {
    pub key: Key,
    pub phase: Phase,
    /// When it is given up, in phases that must not last.
    pub deadline: Option<Instant>,
    /// It is in the queue of those with something for the guest.
    pub scheduled: bool,
    pub owed: Owed,
    host: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    /// The host has closed its socket.
    hung_up: bool,
    /// Nothing comes from the host any more.
    host_sends: bool,
    /// The host takes nothing any more.
    host_takes: bool,
    /// The host's socket was told that nothing more comes.
    finished: bool,
    /// What the guest does no more, as flags of SHUTDOWN.
    guest_ended: u32,
    /// What the guest was told that the host does no more.
    told_ended: u32,
    /// From the guest, for the host.
    waiting: VecDeque<u8>,
    /// So many of those, in front, are not the guest's.
    greeting: usize,
    /// Bytes that came from the guest, and that went on to the host; these
    /// and the next ones wrap.
    received: u32,
    forwarded: u32,
    /// What the guest knows of the latter.
    told: u32,
    /// The guest waits to hear of room.
    asked: bool,
    /// Bytes that went to the guest.
    sent: u32,
    guest_room: u32,
    guest_forwarded: u32,
    /// The guest was asked for room and has not answered.
    begged: bool,
}

impl Connection {
    pub fn new(key: Key, phase: Phase, deadline: Instant) -> Self {
        Connection {
            key,
            phase,
            deadline: Some(deadline),
            scheduled: false,
            owed: Owed::default(),
            host: None,
            readable: false,
            writable: false,
            hung_up: false,
            host_sends: true,
            host_takes: true,
            finished: false,
            guest_ended: 0,
            told_ended: 0,
            waiting: VecDeque::new(),
            greeting: 0,
            received: 0,
            forwarded: 0,
            told: 0,
            asked: false,
            sent: 0,
            guest_room: 0,
            guest_forwarded: 0,
            begged: false,
        }
    }

    /// The host's end.
    pub fn set_host(&mut self, socket: OwnedFd) {
        self.host = Some(socket);
        self.writable = true;
        self.readable = true;
    }

    /// Says to the host, before any data of the guest's.
    pub fn greet(&mut self, text: &str) {
        self.waiting.extend(text.as_bytes());
        self.greeting = text.len();
        self.flush();
    }

    /// What its epoll says of the host's socket.
    pub fn host_changed(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable || hung_up;
        self.hung_up |= hung_up;
        if hung_up && self.guest_ended & SHUTDOWN_RECEIVE != 0 {
            // Nobody would read to its end.
            self.host_sends = false;
        }
        self.flush();
    }

    /// The host has closed its socket.
    pub fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Every header tells of room.
    pub fn heard(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.begged = false;
        }
        if header.op == op::CREDIT_REQUEST {
            self.owed.credit_update = true;
            self.asked = true;
        }
        self.beg();
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_room.saturating_sub(on_the_way)
    }

    /// Whether `len` bytes more are within what the guest may send.
    pub fn may_receive(&self, len: u32) -> bool {
        let waiting = self.waiting.len() - self.greeting;
        self.guest_ended & SHUTDOWN_SEND == 0
            && waiting as u64 + u64::from(len) <= u64::from(BUFFER)
    }

    /// Takes data of the guest's, as much as [`may_receive`](Self::may_receive)
    /// allows.
    pub fn receive(&mut self, data: &[u8]) {
        self.received = self.received.wrapping_add(data.len() as u32);
        let mut rest = data;
        if self.waiting.is_empty() {
            let taken = self.give(data);
            self.forwarded = self.forwarded.wrapping_add(taken as u32);
            rest = data.get(taken..).unwrap_or_default();
        }
        if self.host_takes {
            self.waiting.extend(rest);
        } else {
            self.forwarded = self.received;
        }
        self.tell_room();
    }

    /// Hands on what the host takes of what waits.
    pub fn flush(&mut self) {
        while self.host_takes && !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let taken = self.give(waiting.as_slices().0);
            self.waiting = waiting;
            if taken == 0 {
                break;
            }
            self.waiting.drain(..taken);
            let own = taken.min(self.greeting);
            self.greeting -= own;
            self.forwarded = self.forwarded.wrapping_add((taken - own) as u32);
        }
        if !self.host_takes {
            self.waiting.clear();
            self.greeting = 0;
            self.forwarded = self.received;
        }
        let guest_sends = self.guest_ended & SHUTDOWN_SEND == 0;
        if self.waiting.is_empty() && !guest_sends && !self.finished {
            self.finished = true;
            self.close_host(Shutdown::Write);
        }
        if self.phase == Phase::Open {
            self.tell_room();
            self.tell_end();
            self.beg();
        }
    }

    /// Sends to the host; returns how much it took.
    fn give(&mut self, data: &[u8]) -> usize {
        let Some(host) = &self.host else { return 0 };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while self.writable && self.host_takes {
            match send(host, data, flags) {
                Ok(count) => return count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => self.host_takes = false,
            }
        }
        0
    }

    /// Nothing waits for the host.
    pub fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Owes news of room when the guest may be waiting for them: when it
    /// thinks that at least half is taken.
    fn tell_room(&mut self) {
        let taken = self.received.wrapping_sub(self.told);
        let waits = taken >= BUFFER / 2 || self.asked;
        if self.forwarded != self.told && waits {
            self.owed.credit_update = true;
        }
    }

    /// The guest ends directions. True if nothing is left of both.
    pub fn end_guest(&mut self, flags: u32) -> bool {
        self.guest_ended |= flags & SHUTDOWN_BOTH;
        if self.guest_ended & SHUTDOWN_RECEIVE != 0 {
            self.close_host(Shutdown::Read);
            self.host_sends = false;
        }
        self.flush();
        self.guest_ended == SHUTDOWN_BOTH
    }

    fn close_host(&self, direction: Shutdown) {
        if let Some(host) = &self.host {
            // One that is not connected any more has hung up.
            let _ = shutdown(host, direction);
        }
    }

    /// Owes news of the host's end.
    fn tell_end(&mut self) {
        if self.host_ended() & !self.told_ended != 0 {
            self.owed.shutdown = true;
        }
    }

    /// What the host does no more, as flags of SHUTDOWN.
    fn host_ended(&self) -> u32 {
        let sends = if self.host_sends { 0 } else { SHUTDOWN_SEND };
        let takes = if self.host_takes { 0 } else { SHUTDOWN_RECEIVE };
        let over = sends != 0 && (self.hung_up || self.guest_ended & SHUTDOWN_SEND != 0);
        if over { SHUTDOWN_BOTH } else { sends | takes }
    }

    /// True once the guest was told that both directions have ended: it
    /// answers with a reset.
    pub fn is_closing(&self) -> bool {
        self.told_ended == SHUTDOWN_BOTH
    }

    fn can_read(&self) -> bool {
        self.phase == Phase::Open && self.readable && self.host_sends
    }

    /// Asks for room when data waits for it.
    fn beg(&mut self) {
        if self.can_read() && self.credit() == 0 && !self.begged {
            self.begged = true;
            self.owed.credit_request = true;
        }
    }

    /// There is, or may be, something for the guest.
    pub fn has_packet(&self) -> bool {
        self.owed != Owed::default() || self.can_read() && self.credit() > 0
    }

    /// The next packet for the guest `cid`, with at most `buffer`'s length of
    /// data, which is put there.
    pub fn next_packet(&mut self, cid: u64, buffer: &mut [u8]) -> Option<Header> {
        let owed = &mut self.owed;
        if std::mem::take(&mut owed.request) {
            return Some(self.header(cid, op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut owed.response) {
            return Some(self.header(cid, op::RESPONSE, 0, 0));
        }
        if self.can_read() && self.credit() > 0 {
            let len = self.read(buffer);
            if len > 0 {
                self.sent = self.sent.wrapping_add(len);
                self.beg();
                return Some(self.header(cid, op::RW, 0, len));
            }
        }
        let owed = &mut self.owed;
        if std::mem::take(&mut owed.shutdown) {
            self.told_ended |= self.host_ended();
            return Some(self.header(cid, op::SHUTDOWN, self.told_ended, 0));
        }
        if std::mem::take(&mut owed.credit_request) {
            return Some(self.header(cid, op::CREDIT_REQUEST, 0, 0));
        }
        if owed.credit_update {
            return Some(self.header(cid, op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    /// Reads from the host what guest and `buffer` have room for.
    fn read(&mut self, buffer: &mut [u8]) -> u32 {
        let Some(host) = &self.host else { return 0 };
        let len = buffer.len().min(self.credit() as usize);
        let room = buffer.get_mut(..len).unwrap_or_default();
        loop {
            match recv(host.as_fd(), &mut *room, RecvFlags::DONTWAIT) {
                Ok((count @ 1.., _)) => return count as u32,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => self.readable = false,
                Ok(_) => self.host_sends = false,
                Err(_) => {
                    self.host_sends = false;
                    self.hung_up = true;
                }
            }
            if self.hung_up && !self.host_sends {
                self.host_takes = false;
            }
            // Its end may be to be told.
            self.flush();
            return 0;
        }
    }

    /// A header of this connection's: it tells of room too.
    fn header(&mut self, cid: u64, op: u16, flags: u32, len: u32) -> Header {
        self.told = self.forwarded;
        self.owed.credit_update = false;
        if self.waiting.is_empty() {
            self.asked = false;
        }
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.key.host,
            dst_port: self.key.guest,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }
}
