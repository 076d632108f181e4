//! What a program may do: labels, capabilities, ids, the filter of system
//! calls.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use croft_isolate::seccomp::Program;
use oci_spec::runtime::{Capabilities, Capability, Process};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::settings::Proc;
use crate::error::At;
use crate::hooks::State;
use crate::{Error, Step, sys};

/// All that a description can name, each at its number
/// (`linux/capability.h`).
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Sets of capabilities, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sets {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

fn bits(set: Option<&Capabilities>) -> u64 {
    let Some(set) = set else {
        return 0;
    };
    let with = CAPABILITIES.iter().enumerate();
    with.filter(|(_, one)| set.contains(*one))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

impl Sets {
    /// Of a description, which gives none if it says nothing. What the maker
    /// does not have it cannot give, and an ambient capability is one that is
    /// inherited (capabilities(7)).
    fn new(process: &Process, had: u64) -> Self {
        let Some(given) = process.capabilities() else {
            return Sets::default();
        };
        let permitted = bits(given.permitted().as_ref()) & had;
        let inheritable = bits(given.inheritable().as_ref()) & had;
        Sets {
            bounding: bits(given.bounding().as_ref()),
            effective: bits(given.effective().as_ref()) & permitted,
            inheritable,
            permitted,
            ambient: bits(given.ambient().as_ref()) & permitted & inheritable,
        }
    }
}

/// What a program is to be permitted and this process cannot give it, for it
/// does not hold it itself.
pub fn not_held(process: &Process) -> Vec<Capability> {
    let wanted = process.capabilities().as_ref();
    let wanted = bits(wanted.and_then(|sets| sets.permitted().as_ref()));
    let held = sys::permitted_capabilities().unwrap_or(u64::MAX);
    let all = CAPABILITIES.into_iter().enumerate();
    all.filter(|(number, _)| wanted & !held & (1 << number) != 0)
        .map(|(_, one)| one)
        .collect()
}

/// The label that a security module gives the program.
pub fn label(process: &Process, proc: &Proc) -> Result<(), Error> {
    if let Some(profile) = process.apparmor_profile().as_deref()
        && !profile.is_empty()
    {
        let what = || format!("the AppArmor profile {profile}, if this host has AppArmor at all");
        let command = format!("exec {profile}");
        let write = |file: &str| proc.write(file, command.as_bytes());
        // The first since Linux 5.8, where other modules may have the second.
        match write("self/attr/apparmor/exec") {
            Err(Errno::NOENT) => write("self/attr/exec"),
            result => result,
        }
        .at(Step::Rights, what)?;
    }
    if let Some(label) = process.selinux_label().as_deref()
        && !label.is_empty()
        && proc.write("self/attr/exec", b"").is_ok()
    {
        let what = || format!("the SELinux label {label}");
        let written = proc.write("self/attr/exec", label.as_bytes());
        written.at(Step::Rights, what)?;
    }
    Ok(())
}

/// The program's ids and capabilities. `keep_groups` says that the maker may
/// not change the groups.
pub fn take(process: &Process, keep_groups: bool) -> Result<(), Error> {
    let what = || "the capabilities";
    let had = sys::permitted_capabilities().at(Step::Rights, what)?;
    let sets = Sets::new(process, had);
    for number in 0..64 {
        if sets.bounding >> number & 1 == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, number, 0) {
                // The kernel has no more.
                Err(Errno::INVAL) => break,
                // Whoever has no rights has none to give up.
                Err(Errno::PERM) if had == 0 => break,
                result => result.at(Step::Rights, what)?,
            };
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).at(Step::Rights, what)?;
    let user = process.user();
    let more = user.additional_gids().as_deref().unwrap_or_default();
    let groups = (!keep_groups).then_some(more);
    sys::set_ids(user.uid(), user.gid(), groups).at(Step::Rights, || {
        format!(
            "the user {} and group {}: are they mapped?",
            user.uid(),
            user.gid()
        )
    })?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).at(Step::Rights, what)?;
    sys::set_capabilities(sets.effective, sets.permitted, sets.inheritable)
        .at(Step::Rights, what)?;
    let ambient = libc::PR_CAP_AMBIENT;
    sys::prctl(ambient, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).at(Step::Rights, what)?;
    for number in (0..64).filter(|number| sets.ambient >> number & 1 != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
        sys::prctl(ambient, raise, number).at(Step::Rights, || "an ambient capability")?;
    }
    Ok(())
}

/// Puts the filter on. Who is to be asked gets its descriptor, and is told of
/// whom (runtime-spec, `config-linux.md`, Container Process State).
pub fn filter(
    filter: &Program,
    listener: Option<&UnixStream>,
    state: &State<'_>,
) -> Result<(), Error> {
    let what = || "the filter of system calls";
    let told = match (filter.listener(), listener) {
        (Some(asked), Some(socket)) => {
            let text = serde_json::json!({
                "ociVersion": state.version,
                "fds": ["seccompFd"],
                "pid": state.pid.map(|pid| pid.as_raw_nonzero().get()),
                "metadata": asked.metadata,
                "state": state.to_json(),
            });
            Some((socket, text.to_string()))
        }
        _ => None,
    };
    let handle = filter.install().at(Step::Filter, what)?;
    let (Some(handle), Some((socket, text))) = (handle, told) else {
        return Ok(());
    };
    send(&handle, socket, &text).at(Step::Filter, || "whom the filter is to ask")
}

fn send(handle: &OwnedFd, socket: &UnixStream, text: &str) -> Result<(), Errno> {
    let handles = [handle.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&handles));
    sendmsg(
        socket.as_fd(),
        &[IoSlice::new(text.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCapabilitiesBuilder, ProcessBuilder};

    use super::*;

    #[test]
    fn numbers_are_the_kernel_s() {
        let number = |one| CAPABILITIES.iter().position(|other| *other == one);
        assert_eq!(number(Capability::NetAdmin), Some(12));
        assert_eq!(number(Capability::SysAdmin), Some(21));
        assert_eq!(number(Capability::Setfcap), Some(31));
        assert_eq!(number(Capability::CheckpointRestore), Some(40));
    }

    #[test]
    fn nobody_gets_what_the_maker_has_not() {
        let all = || Capabilities::from([Capability::Chown, Capability::Kill]);
        let given = LinuxCapabilitiesBuilder::default()
            .bounding(all())
            .effective(all())
            .permitted(all())
            .inheritable(Capabilities::from([Capability::Kill]))
            .ambient(all())
            .build()
            .unwrap();
        let process = ProcessBuilder::default().capabilities(given).build();
        let process = process.unwrap();
        let sets = Sets::new(&process, 1 << 5);
        let bit = 1 << 5;
        assert_eq!(
            (
                sets.effective,
                sets.permitted,
                sets.inheritable,
                sets.ambient
            ),
            (bit, bit, bit, bit)
        );
        assert_eq!(Sets::new(&process, u64::MAX).ambient, bit);
    }
}
