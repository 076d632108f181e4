//! Getting a vCPU out of the kernel.
//!
//! ```text
//! kick:  requested = 1 ─► (running?) immediate_exit = 1 ─► signal its thread
//! run:   announce thread, immediate_exit = 0 ─► requested? ─► KVM_RUN
//! ```
//!
//! A kick that comes before the thread is inside KVM_RUN finds
//! `immediate_exit` set when it gets there; one that comes later interrupts
//! it by the signal. Nothing is lost between. The thread is announced under a
//! lock that `kick` holds too, so no signal goes to a thread that has left.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::{io, mem, ptr};

use croft_engine::Kick;
use vmm_sys_util::signal::SIGRTMIN;

use crate::error::lock;

/// The signal that interrupts KVM_RUN. Whoever else uses real-time signals in
/// this process leaves this one alone.
fn signal_number() -> i32 {
    SIGRTMIN() + 3
}

extern "C" fn nothing(_: i32) {}

/// Gives the signal a handler that does nothing, once for the process.
pub fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: all zeros is a valid sigaction.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        // SAFETY: the handler does nothing, which is safe anywhere.
        if unsafe { libc::sigaction(signal_number(), &action, ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        Ok(())
    });
    (*done).map_err(io::Error::from_raw_os_error)
}

/// Lets the signal through on this thread.
fn unblock() {
    // SAFETY: a signal set on the stack, filled by the calls themselves.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal_number());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer leads into the vCPU's shared page, which outlives the
// target: `Running` takes it away before `run` returns.
unsafe impl Send for Target {}

/// The kick of one vCPU.
#[derive(Default)]
pub struct KvmKick {
    requested: AtomicBool,
    target: Mutex<Option<Target>>,
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if let Some(target) = &*lock(&self.target) {
            // SAFETY: the target is there only while its vCPU is in `run`.
            unsafe { &*target.immediate_exit }.store(1, Ordering::SeqCst);
            // SAFETY: the thread is in `run`, so it exists.
            unsafe { libc::pthread_kill(target.thread, signal_number()) };
        }
    }
}

impl KvmKick {
    /// Whether somebody kicked; the kick stays.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Takes the kick, if there is one.
    pub fn take(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// Announces that this thread runs the vCPU with this `immediate_exit`
    /// byte.
    ///
    /// # Safety
    /// The byte must stay valid until the result is dropped.
    pub unsafe fn running(self: &Arc<Self>, immediate_exit: *const AtomicU8) -> Running {
        unblock();
        let mut target = lock(&self.target);
        // SAFETY: promised by the caller.
        unsafe { &*immediate_exit }.store(0, Ordering::SeqCst);
        *target = Some(Target {
            // SAFETY: always succeeds.
            thread: unsafe { libc::pthread_self() },
            immediate_exit,
        });
        Running {
            kick: self.clone(),
            immediate_exit,
        }
    }
}

/// A vCPU inside `run`.
pub struct Running {
    kick: Arc<KvmKick>,
    immediate_exit: *const AtomicU8,
}

impl Running {
    /// Sets or clears `immediate_exit`.
    pub fn leave_at_once(&self, yes: bool) {
        // SAFETY: see `KvmKick::running`.
        unsafe { &*self.immediate_exit }.store(yes.into(), Ordering::SeqCst);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.kick.target) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_kick_is_kept_until_it_is_taken() {
        let kick = Arc::new(KvmKick::default());
        kick.kick();
        kick.kick();
        let byte = AtomicU8::new(7);
        // SAFETY: the byte outlives the guard.
        let running = unsafe { kick.running(&byte) };
        assert_eq!(byte.load(Ordering::SeqCst), 0);
        assert!(kick.is_requested() && kick.take() && !kick.take());
        drop(running);
        kick.kick();
        assert_eq!(byte.load(Ordering::SeqCst), 0, "nobody runs");
    }

    #[test]
    fn a_kick_interrupts_a_system_call() {
        install().unwrap();
        let kick = Arc::new(KvmKick::default());
        let other = kick.clone();
        let (runs, it_runs) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            let byte = AtomicU8::new(0);
            // SAFETY: the byte outlives the guard.
            let _running = unsafe { other.running(&byte) };
            runs.send(()).unwrap();
            // SAFETY: plain poll without descriptors.
            let ended = unsafe { libc::poll(ptr::null_mut(), 0, 120_000) };
            (ended, byte.load(Ordering::SeqCst))
        });
        it_runs.recv().unwrap();
        // One that comes before the call interrupts nothing.
        while !sleeper.is_finished() {
            kick.kick();
            std::thread::sleep(Duration::from_millis(5));
        }
        let (ended, byte) = sleeper.join().unwrap();
        assert_eq!(ended, -1, "it was not interrupted");
        assert_eq!(byte, 1);
    }
}
