//! Memory of whoever has made a container and stays beside it.

/// Gives what is free of this process's heap back to the host (malloc_trim(3)).
/// Making a container takes far more than watching over it, and there are
/// hundreds who do. Other C libraries than glibc have no such call.
pub fn give_back_memory() {
    // SAFETY: takes a number and no pointer; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}
