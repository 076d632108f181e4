//! What a payload does to itself first, while it has one thread and nothing
//! of a guest's.

use std::io;

use rustix::fs::{Mode, StatVfsMountFlags, fstatvfs};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, chdir, getrlimit, pivot_root,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, umask,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid, capabilities,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::launch::Given;
use crate::report::{Part, Piece};

/// Most descriptors: a few for each queue and vCPU, and what guests have open
/// in shared directories.
const DESCRIPTORS: u64 = 64 << 10;
/// Place for the new root; any directory that every host has.
const PLACE: &str = "/proc";

/// Puts on everything but landlock and filters, with the namespaces that were
/// given. Returns what there is; whatever cannot be had is left out.
pub fn confine(given: &Given) -> Vec<Part> {
    let mut parts = given.parts();
    // A payload whose monitor dies before this sees the end of its socket.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if given.has(Piece::Root)
        && let Err(error) = empty_root()
    {
        parts.retain(|part| part.piece != Piece::Root);
        parts.push(Part::missing(
            Piece::Root,
            format!("the host refuses mounts in a namespace: {error}"),
        ));
    }
    parts.push(limits());
    // Ids are changed while there still is the right to.
    forgo_rights();
    if let Err(error) = take_ids(given.uid) {
        parts.retain(|part| part.piece != Piece::User);
        let why = format!("ids of its own cannot be taken: {error}");
        parts.push(Part::missing(Piece::User, why));
    }
    parts.push(drop_rights());
    umask(Mode::RWXG | Mode::RWXO);
    arenas();
    // All changes of ids and rights have been made: they reset both.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    parts
}

/// A root with nothing in it, to which nothing can be added.
fn empty_root() -> io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(
        "none",
        PLACE,
        "tmpfs",
        flags,
        c"size=4k,nr_inodes=1,mode=555",
    )?;
    chdir(PLACE)?;
    // Puts the old root onto the new one (pivot_root(2)), so that it can be
    // taken off without a directory for it.
    pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    let root = rustix::fs::open(
        "/",
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if fstatvfs(&root)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        Ok(())
    } else {
        Err(io::Error::other(
            "the new root is not the one that was made",
        ))
    }
}

fn limits() -> Part {
    let mut refused = Vec::new();
    let mut limit = |resource, name: &str, wanted: u64| {
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let value = Some(wanted.min(most));
        let new = Rlimit {
            current: value,
            maximum: value,
        };
        if let Err(error) = setrlimit(resource, new) {
            refused.push(format!("{name}: {error}"));
        }
    };
    limit(Resource::Nofile, "descriptors", DESCRIPTORS);
    limit(Resource::Core, "core dumps", 0);
    limit(Resource::Memlock, "locked memory", 0);
    limit(Resource::Msgqueue, "message queues", 0);
    if refused.is_empty() {
        Part::there(Piece::Limits, "descriptors, core dumps, locked memory")
    } else {
        Part::missing(Piece::Limits, refused.join(", "))
    }
}

/// No capability can be come by any more.
fn forgo_rights() {
    // What fails for want of a capability leaves none to take away.
    let _ = clear_ambient_capability_set();
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let _ = set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    );
}

/// The ids become those of nobody else, where the payload was given such.
fn take_ids(id: Option<u32>) -> io::Result<()> {
    // A user's own groups cannot be left (user_namespaces(7)).
    let _ = set_thread_groups(&[]);
    if let Some(id) = id {
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    Ok(())
}

/// No capability is left.
fn drop_rights() -> Part {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let dropped = set_capabilities(None, none)
        .and_then(|()| set_no_new_privs(true))
        .and_then(|()| capabilities(None));
    match dropped {
        Ok(left) if left.permitted.is_empty() => {
            Part::there(Piece::Capabilities, "none, and no new privileges")
        }
        Ok(_) => Part::missing(Piece::Capabilities, "the kernel keeps some"),
        Err(error) => Part::missing(Piece::Capabilities, error),
    }
}

/// Bounds the arenas of glibc's allocator, and with it the memory of a payload
/// with many threads: each that finds none free would make one, and keep memory
/// in it.
fn arenas() {
    #[cfg(target_env = "gnu")]
    {
        /// Most of them.
        const ARENAS: i32 = 8;
        // SAFETY: sets a number; there is one thread.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}
