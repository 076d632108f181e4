//! Event objects that raise interrupts.
//!
//! One thread waits for all of a partition's; it starts with the first. It
//! ends when the partition is dropped.

use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use croft_engine::InterruptRoute;
use croft_irqchip::Message;
use croft_isolate::{Role, spawn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::shared::{Shared, lock};

use std::os::fd::AsRawFd;

/// Identifies the event that ends the thread.
const STOP: u64 = u64::MAX;

type Routes = Arc<Mutex<Vec<(InterruptRoute, EventFd)>>>;

/// The interrupt events of one partition.
pub struct IrqFds {
    shared: Weak<Shared>,
    routes: Routes,
    running: Option<Running>,
}

struct Running {
    epoll: Arc<Epoll>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl IrqFds {
    /// None yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        IrqFds {
            shared: Arc::downgrade(&shared),
            routes: Routes::default(),
            running: None,
        }
    }

    /// Makes an event object for `route`.
    pub fn add(&mut self, route: InterruptRoute) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let kept = event.try_clone()?;
        let epoll = match &self.running {
            Some(running) => running.epoll.clone(),
            None => self.start()?,
        };
        let mut routes = lock(&self.routes);
        epoll.ctl(
            ControlOperation::Add,
            kept.as_raw_fd(),
            EpollEvent::new(EventSet::IN, routes.len() as u64),
        )?;
        routes.push((route, kept));
        Ok(event)
    }

    fn start(&mut self) -> io::Result<Arc<Epoll>> {
        let epoll = Arc::new(Epoll::new()?);
        let stop = EventFd::new(EFD_NONBLOCK)?;
        epoll.ctl(
            ControlOperation::Add,
            stop.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP),
        )?;
        let (waiter, shared, routes) = (epoll.clone(), self.shared.clone(), self.routes.clone());
        let thread = spawn(Role::Timers, "irqfd", move || {
            serve(&waiter, &shared, &routes);
        })?;
        self.running = Some(Running {
            epoll: epoll.clone(),
            stop,
            thread: Some(thread),
        });
        Ok(epoll)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panicked thread has said so itself.
            let _ = thread.join();
        }
    }
}

fn serve(epoll: &Epoll, shared: &Weak<Shared>, routes: &Routes) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let route = {
                let routes = lock(routes);
                let Some((route, event)) = routes.get(event.data() as usize) else {
                    continue;
                };
                // Another reader cannot have taken it: the count is ours.
                let _ = event.read();
                *route
            };
            raise(&shared, route);
        }
    }
}

fn raise(shared: &Shared, route: InterruptRoute) {
    match route {
        InterruptRoute::Line(gsi) => shared.with_chips(|chips, out| {
            chips.set_line(gsi, true, out);
            if !shared.is_resampled(gsi) {
                chips.set_line(gsi, false, out);
            }
        }),
        InterruptRoute::Msi(msi) => {
            if let Some(message) = Message::from_msi(msi) {
                shared.deliver(&message);
            }
        }
    }
}
