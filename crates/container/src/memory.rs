//! Memory of whoever has made a container and stays beside it.

/// Gives what is free of this process's heap back to the host (malloc_trim(3)).
/// Making a container takes far more than watching over it, and there are
/// hundreds who do. Other C libraries than glibc have no such call.
pub fn give_back_memory() {
    // SAFETY: takes a number and no pointer; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Has threads that come and go share one heap, from which they leave nothing
/// behind but what is free of it: each would else begin its own (`M_ARENA_MAX`
/// of mallopt(3)). To be called before there is another.
pub fn share_memory() {
    // SAFETY: takes two numbers and no pointer; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}
