//! The agent itself.
//!
//! ```text
//! main ── listens at the vsock port ─┬─ a thread for each connection: task
//!    └─── ready: tells the host      └─ …
//! ```
//!
//! While nothing is asked of it every thread of it sleeps in the kernel.

mod addresses;
mod clock;
mod exec;
mod freeze;
mod power;
mod process;
mod ready;
mod task;
mod users;
mod vsock;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

pub use freeze::thaw_left_over;
pub use ready::announce;
pub use task::serve;
pub use vsock::{Listener, connect_ready};

/// Most connections at once.
const CONNECTIONS_MAX: usize = 256;
/// What to wait after the system refused a connection or a thread.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves connections, each on a thread, for good.
pub fn listen(mut accept: impl FnMut() -> io::Result<OwnedFd>) -> ! {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok(stream) = accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            // Its end is answer enough.
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let count = Count(open.clone());
        let body = move || {
            let _count = count;
            if let Err(error) = serve(stream) {
                eprintln!("croft-agent: {error}");
            }
        };
        // Without a thread the connection ends, and is not counted.
        let started = thread::Builder::new().name("task".to_owned()).spawn(body);
        if started.is_err() {
            thread::sleep(PAUSE);
        }
    }
}

/// A connection that counts.
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
