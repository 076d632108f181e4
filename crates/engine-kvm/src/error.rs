//! Errors of KVM's system calls as the seam has them.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_engine::EngineError;
use croft_engine::state::StateError;

/// `what` was refused by KVM.
pub fn host(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host {
        what,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

/// `what` was refused by the host.
pub fn os(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::Host { what, source }
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
