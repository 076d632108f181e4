//! A thread for each vCPU. The owner commands, the threads answer by events.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use croft_devices::Bus;
use croft_engine::{CpuIo, Kicker, Stop, Vcpu};
use croft_isolate::{Role, spawn};

use crate::config::Ended;
use crate::events::{Event, Events};

type Task = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

enum Command {
    /// Run until there is a reason to stop, and tell the owner.
    Run,
    /// Do something with the vCPU, which does not run.
    Task(Task),
}

/// The owner's end of one vCPU thread.
pub struct VcpuThread {
    commands: Sender<Command>,
    kicker: Kicker,
    running: bool,
    thread: JoinHandle<()>,
}

/// Routes accesses to the bus.
struct BusIo(Arc<Bus>);

impl CpuIo for BusIo {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.0.port_read(port, data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.0.port_write(port, data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.0.mmio_read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.0.mmio_write(address, data);
    }
}

/// Tells the owner when a thread dies of a bug, so that nobody waits for it.
struct Obituary {
    vcpu: usize,
    events: Events,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if thread::panicking() {
            let stop = Stop::Failed("its thread panicked, which is a bug in Croft".to_owned());
            let vcpu = self.vcpu;
            let _ = self.events.send(Event::Stopped { vcpu, stop });
        }
    }
}

impl VcpuThread {
    /// Starts the thread of vCPU `index`; the vCPU does not run yet.
    pub fn start(
        index: usize,
        mut vcpu: Box<dyn Vcpu>,
        bus: Arc<Bus>,
        events: Events,
    ) -> std::io::Result<Self> {
        let kicker = vcpu.kicker();
        let (commands, receiver) = mpsc::channel();
        let thread = spawn(Role::Vcpu, format!("cpu{index}"), move || {
            let obituary = Obituary {
                vcpu: index,
                events,
            };
            serve(&mut *vcpu, &BusIo(bus), &receiver, &obituary);
        })?;
        Ok(VcpuThread {
            commands,
            kicker,
            running: false,
            thread,
        })
    }

    /// Whether the vCPU runs, or has stopped without the owner knowing yet.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Lets it run.
    pub fn run(&mut self) {
        self.running = self.commands.send(Command::Run).is_ok();
    }

    /// Makes a run end soon.
    pub fn kick(&self) {
        self.kicker.kick();
    }

    /// Notes that [`Event::Stopped`] came.
    pub fn stopped(&mut self) {
        self.running = false;
    }

    /// Does something with the vCPU on its thread. It must not run.
    pub fn with<R: Send + 'static>(
        &self,
        task: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let task: Task = Box::new(move |vcpu| {
            let _ = sender.send(task(vcpu));
        });
        self.commands.send(Command::Task(task)).map_err(|_| Ended)?;
        receiver.recv().map_err(|_| Ended)
    }

    /// Ends the thread. The vCPU must not run.
    pub fn finish(self) {
        drop(self.commands);
        let _ = self.thread.join();
    }
}

fn serve(vcpu: &mut dyn Vcpu, io: &dyn CpuIo, commands: &Receiver<Command>, owner: &Obituary) {
    for command in commands {
        match command {
            Command::Task(task) => task(vcpu),
            Command::Run => {
                let stop = vcpu.run(io);
                let vcpu = owner.vcpu;
                if owner.events.send(Event::Stopped { vcpu, stop }).is_err() {
                    return;
                }
            }
        }
    }
}
