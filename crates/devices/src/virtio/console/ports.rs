//! The work of a console: bytes between queues and sockets.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::control;
use super::handle::Hub;
use super::{PORTS_MAX, PortConfig};
use crate::lock;
use crate::virtio::{Chain, Next, QueueError, Queues, Service};

/// Queues of control messages.
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
/// Bytes carried at once.
const PIECE: usize = 4096;
/// Pieces, or messages, of one port and direction before it is others' turn.
const TURN: usize = 16;

/// A port's queues: to and from the guest.
fn queues_of(index: usize) -> (u16, u16) {
    match index as u16 {
        0 => (0, 1),
        n => (2 * n + 2, 2 * n + 3),
    }
}

/// A port's socket.
struct Port {
    config: Arc<PortConfig>,
    readable: bool,
    writable: bool,
    /// The host has closed its end: what the guest sends is for nobody.
    gone: bool,
}

/// See the [module](self).
pub struct Ports {
    hub: Arc<Hub>,
    ports: Vec<Port>,
    multiport: bool,
    /// The sockets; `None` when the host has no room for one more.
    poll: Option<Epoll>,
    chain: Chain,
}

impl Ports {
    /// Of these ports, with control messages if `multiport`.
    pub fn new(configs: &[Arc<PortConfig>], hub: Arc<Hub>, multiport: bool) -> Self {
        let poll = Epoll::new().ok();
        let changes =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let ports = (0u64..).zip(configs).map(|(index, config)| {
            let event = EpollEvent::new(changes, index);
            let added = poll.as_ref().is_some_and(|poll| {
                poll.ctl(ControlOperation::Add, config.socket.as_raw_fd(), event)
                    .is_ok()
            });
            Port {
                config: config.clone(),
                readable: added,
                writable: added,
                gone: !added,
            }
        });
        let ports = ports.collect();
        Ports {
            hub,
            ports,
            multiport,
            poll,
            chain: Chain::default(),
        }
    }

    /// What happened at the sockets.
    fn take_events(&mut self) {
        let mut events = [EpollEvent::default(); PORTS_MAX];
        let Some(poll) = &self.poll else { return };
        let count = loop {
            match poll.wait(0, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.unwrap_or(0),
            }
        };
        for event in events.iter().take(count) {
            if let Some(port) = self.ports.get_mut(event.data() as usize) {
                let changes = event.event_set();
                let hung_up = changes.intersects(EventSet::HANG_UP | EventSet::ERROR);
                port.readable |= hung_up || changes.intersects(EventSet::IN);
                port.writable |= hung_up || changes.contains(EventSet::OUT);
            }
        }
    }

    /// Control messages, both ways. True if there may be more to do.
    fn converse(&mut self, queues: &mut Queues<'_>, chain: &mut Chain) -> Result<bool, QueueError> {
        queues.expect(CONTROL_TX, false)?;
        let mut heard = 0;
        let mut more = true;
        while heard < TURN && queues.live() {
            if !queues.pop(CONTROL_TX, chain)? {
                more = queues.expect(CONTROL_TX, true)?;
                break;
            }
            let mut message = [0; control::LEN];
            if chain.readable.read(queues.ram(), 0, &mut message)? == message.len() {
                lock(&self.hub.control).hear(&message);
            }
            queues.push(CONTROL_TX, chain, 0)?;
            heard += 1;
        }
        queues.interrupt(CONTROL_TX)?;
        while queues.live() && lock(&self.hub.control).owes() {
            if !queues.pop(CONTROL_RX, chain)? {
                if queues.expect(CONTROL_RX, true)? {
                    continue;
                }
                break;
            }
            let configs = self.ports.iter().map(|port| &*port.config);
            let message = lock(&self.hub.control).next_message(configs);
            let Some(message) = message else {
                queues.unpop(CONTROL_RX);
                break;
            };
            // A buffer that is too small gets what it has room for.
            let written = chain.writable.write(queues.ram(), 0, &message)?;
            queues.push(CONTROL_RX, chain, written as u32)?;
        }
        queues.interrupt(CONTROL_RX)?;
        Ok(more)
    }

    /// Bytes for the guest, when a program of its has the port open. True if
    /// there may be more.
    fn feed(
        &mut self,
        index: usize,
        queues: &mut Queues<'_>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        let (rx, _) = queues_of(index);
        let open = !self.multiport
            || lock(&self.hub.control)
                .ports
                .get(index)
                .is_some_and(|port| port.open);
        let Some(port) = self.ports.get_mut(index).filter(|_| open) else {
            return Ok(false);
        };
        let mut buffer = [0; PIECE];
        let mut turns = 0;
        while port.readable && turns < TURN && queues.live() {
            if !queues.pop(rx, chain)? {
                if queues.expect(rx, true)? {
                    continue;
                }
                queues.interrupt(rx)?;
                return Ok(false);
            }
            let room = chain.writable.len().min(PIECE as u64) as usize;
            let space = buffer.get_mut(..room).unwrap_or_default();
            let count = if space.is_empty() {
                0
            } else {
                port.read(space)
            };
            if count == 0 && room > 0 {
                queues.unpop(rx);
                break;
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            chain.writable.write(queues.ram(), 0, bytes)?;
            queues.push(rx, chain, count as u32)?;
            turns += 1;
        }
        queues.interrupt(rx)?;
        Ok(port.readable && turns == TURN)
    }

    /// Bytes of the guest's. True if there may be more.
    fn drain(
        &mut self,
        index: usize,
        queues: &mut Queues<'_>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        let (_, tx) = queues_of(index);
        let Some(port) = self.ports.get_mut(index) else {
            return Ok(false);
        };
        queues.expect(tx, false)?;
        let mut buffer = [0; PIECE];
        let mut more = true;
        let mut turns = 0;
        while turns < TURN && queues.live() {
            if !port.writable && !port.gone {
                // The socket says when it takes more.
                more = false;
                break;
            }
            if !queues.pop(tx, chain)? {
                more = queues.expect(tx, true)?;
                break;
            }
            let mut sent = match lock(&self.hub.control).ports.get(index) {
                Some(port) => port.sent,
                None => 0,
            };
            let end = chain.readable.len();
            while sent < end && turns < TURN {
                turns += 1;
                if port.gone {
                    sent = end;
                    break;
                }
                let count = chain.readable.read(queues.ram(), sent, &mut buffer)?;
                let taken = port.write(buffer.get(..count).unwrap_or_default());
                sent += taken as u64;
                if taken < count && !port.gone {
                    break;
                }
            }
            turns += 1;
            let done = sent >= end;
            if let Some(state) = lock(&self.hub.control).ports.get_mut(index) {
                state.sent = if done { 0 } else { sent };
            }
            if done {
                queues.push(tx, chain, 0)?;
            } else {
                // What is left of it comes again.
                queues.unpop(tx);
            }
        }
        queues.interrupt(tx)?;
        Ok(more)
    }
}

impl Port {
    /// How many bytes there were; 0 when there are none now.
    fn read(&mut self, space: &mut [u8]) -> usize {
        loop {
            match recv(&self.config.socket, &mut *space, RecvFlags::DONTWAIT) {
                Ok((count @ 1.., _)) => return count,
                Err(Errno::INTR) => {}
                // None now, or none any more.
                _ => {
                    self.readable = false;
                    return 0;
                }
            }
        }
    }

    /// How many bytes were taken.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match send(&self.config.socket, bytes, flags) {
                Ok(count) => return count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return 0;
                }
                Err(_) => {
                    self.gone = true;
                    return 0;
                }
            }
        }
    }
}

impl Service for Ports {
    fn descriptor(&self) -> Option<RawFd> {
        self.poll.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn serve(&mut self, queues: &mut Queues<'_>) -> Result<Next, QueueError> {
        self.take_events();
        let mut chain = std::mem::take(&mut self.chain);
        let mut again = false;
        if self.multiport {
            again |= self.converse(queues, &mut chain)?;
        }
        let count = if self.multiport { self.ports.len() } else { 1 };
        for index in 0..count {
            again |= self.drain(index, queues, &mut chain)?;
            again |= self.feed(index, queues, &mut chain)?;
        }
        self.chain = chain;
        Ok(Next {
            again: again && queues.live(),
            deadline: None,
        })
    }
}
