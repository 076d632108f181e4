//! Errors of KVM's system calls as the seam has them.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_engine::EngineError;
use croft_engine::state::StateError;

/// What the host answered, and what to do where that can be said.
pub fn answer(errno: i32) -> io::Error {
    let error = io::Error::from_raw_os_error(errno);
    let advice = match errno {
        libc::ENOMEM => "; give the machine less memory (--memory), or free some on the host",
        libc::EMFILE => "; raise this process's limit (ulimit -n), each vCPU takes a file",
        libc::EFAULT => {
            "; most probably the host had no page left for the guest's memory: free some on the \
             host, or give the machine less (--memory)"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}{advice}"))
}

/// `what` was refused by KVM.
pub fn host(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host {
        what,
        source: answer(error.errno()),
    }
}

/// `what` was refused by the host.
pub fn os(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::Host {
        what,
        source: error.raw_os_error().map_or(error, answer),
    }
}

/// The state cannot be of any processor.
pub fn damaged(what: impl Into<String>) -> EngineError {
    StateError::Damaged(what.into()).into()
}

/// KVM takes EINVAL for values that no processor of this model can have.
pub fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| match error.errno() {
        libc::EINVAL => damaged(format!("KVM refuses its {what}")),
        _ => host("cannot restore a vCPU")(error),
    }
}

/// What a panicked holder left behind is still consistent here: every change
/// under these locks is a single step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_come_with_a_remedy() {
        let text = |errno| {
            let vcpu = host("cannot make a vCPU")(kvm_ioctls::Error::new(errno)).to_string();
            let slot = os("cannot map")(io::Error::from_raw_os_error(errno)).to_string();
            assert_eq!(
                vcpu.split_once(": ").unwrap().1,
                slot.split_once(": ").unwrap().1
            );
            vcpu
        };
        let memory = text(libc::ENOMEM);
        assert!(
            memory.starts_with("cannot make a vCPU: Cannot allocate memory"),
            "{memory}"
        );
        assert!(memory.contains("--memory"), "{memory}");
        assert!(text(libc::EMFILE).contains("ulimit -n"));
        assert!(text(libc::EFAULT).contains("no page left"));
        assert!(!text(libc::EBUSY).contains(';'));
    }
}
