//! Capabilities of containers.

use oci_spec::runtime::Capability;

/// What a container has if nobody says otherwise: enough for the usual
/// daemons inside of it, nothing that reaches the kernel's own settings,
/// devices or other containers. The same 14 that Docker, containerd and podman's
/// ancestors give.
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];
