//! `croft-oci`: see [`croft_container::oci`].

fn main() -> std::process::ExitCode {
    croft_container::oci::main()
}
