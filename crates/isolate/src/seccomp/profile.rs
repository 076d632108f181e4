//! The profile of a container that brings none.

use oci_spec::runtime::{Arch, Capability, LinuxSeccomp};

/// What a container with these capabilities may call on a host of this
/// architecture.
pub fn default_profile(capabilities: &[Capability], arch: Arch) -> LinuxSeccomp {
    let _ = (capabilities, arch);
    LinuxSeccomp::default()
}
