//! Threads with filters.
//!
//! A filter goes on to all threads that its thread makes, and can only become
//! narrower. If a vCPU's thread made a disk's, it would have to be allowed
//! what the disk's needs, and to make threads besides. So one thread makes
//! all others, and does nothing else:
//!
//! ```text
//! seal: main ─ role setup ─┬─► maker ─ role maker
//!                          │        ▲   │ thread, which assumes its role first
//! assume(Owner): main ◄────┘        │   ▼
//!                    spawn(role, …) from any thread
//! ```
//!
//! In a process that was not sealed (tests, fuzz targets, a payload without a
//! jail) threads are plain threads.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};

use seccompiler::BpfProgram;

use crate::role::Role;
use crate::{filter, trap};

/// What a machine needs beyond the common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// It was handed `/dev/kvm`.
    pub kvm: bool,
    /// It shares a directory of the host.
    pub shares: bool,
}

/// Why filters cannot be put on. Without them no guest may run.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The table is wrong.
    #[error("the jail's filters cannot be built: {0}")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refuses.
    #[error(
        "the kernel refuses the jail's filters: {0}; it needs CONFIG_SECCOMP_FILTER, or --no-jail"
    )]
    Install(#[from] seccompiler::Error),
    /// The host refuses something else.
    #[error("the jail cannot be closed: {0}")]
    Host(#[from] io::Error),
    /// A programming error.
    #[error("the jail is closed already")]
    Twice,
}

/// A process that is sealed.
struct Sealed {
    programs: BTreeMap<Role, BpfProgram>,
    maker: Sender<Order>,
}

/// A thread to be made.
struct Order {
    builder: thread::Builder,
    body: Box<dyn FnOnce() + Send>,
    answer: SyncSender<io::Result<JoinHandle<()>>>,
}

static SEALED: OnceLock<Sealed> = OnceLock::new();

/// Puts on the filter of role setup and starts the thread that makes threads.
/// Called once, by the only thread that there is.
pub fn seal(wants: Wants) -> Result<(), JailError> {
    let mut programs = BTreeMap::new();
    for role in Role::ALL {
        programs.insert(role, filter::program(role, wants)?);
    }
    trap::install()?;
    seccompiler::apply_filter(&filter::answers()?)?;
    if let Some(setup) = programs.get(&Role::Setup) {
        seccompiler::apply_filter(setup)?;
    }
    let (maker, orders) = mpsc::channel();
    SEALED
        .set(Sealed { programs, maker })
        .map_err(|_| JailError::Twice)?;
    thread::Builder::new()
        .name("maker".to_owned())
        .spawn(move || make(&orders))?;
    Ok(())
}

/// Narrows the calling thread to `role`, for good. Without a jail nothing
/// happens.
///
/// # Panics
/// When the kernel refuses a filter that it took before: the thread must not
/// go on without.
pub fn assume(role: Role) {
    let Some(sealed) = SEALED.get() else {
        return;
    };
    let program = sealed.programs.get(&role);
    let applied = program.map(|program| seccompiler::apply_filter(program));
    assert!(
        matches!(applied, Some(Ok(()))),
        "no filter for a thread of role {}: {applied:?}",
        role.word()
    );
}

/// Starts a thread called `name` that may do what `role` may.
///
/// # Errors
/// The host refuses a thread.
pub fn spawn(
    role: Role,
    name: impl Into<String>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    start(role, thread::Builder::new().name(name.into()), body)
}

/// The same, with `stack` bytes of stack.
///
/// # Errors
/// The host refuses a thread.
pub fn spawn_sized(
    role: Role,
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let builder = thread::Builder::new().name(name.into()).stack_size(stack);
    start(role, builder, body)
}

fn start(
    role: Role,
    builder: thread::Builder,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let body = move || {
        assume(role);
        body();
    };
    let Some(sealed) = SEALED.get() else {
        return builder.spawn(body);
    };
    let (answer, made) = mpsc::sync_channel(1);
    let order = Order {
        builder,
        body: Box::new(body),
        answer,
    };
    let gone = || io::Error::other("the thread that makes threads is gone");
    sealed.maker.send(order).map_err(|_| gone())?;
    made.recv().map_err(|_| gone())?
}

fn make(orders: &Receiver<Order>) {
    assume(Role::Maker);
    for order in orders {
        // Whoever asked may be gone.
        let _ = order.answer.send(order.builder.spawn(order.body));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_jail_threads_are_threads() {
        let (sender, receiver) = mpsc::channel();
        let thread = spawn_sized(Role::Disk, "disk0-0", 256 << 10, move || {
            let name = thread::current().name().map(str::to_owned);
            sender.send(name).unwrap();
        });
        thread.unwrap().join().unwrap();
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("disk0-0"));
    }
}
