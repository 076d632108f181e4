//! `croft-oci`: see [`croft_container::oci`].

/// musl's own takes several times as long.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> std::process::ExitCode {
    croft_container::oci::main()
}
