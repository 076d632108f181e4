//! What is done between a fork and the execution of passt or pasta.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Gid, Uid, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Has the child of `command` be in a session of its own, on a terminal whose
/// other end is returned: it gets SIGHUP when that is closed, whatever rights
/// it has by then (tty_vhangup, drivers/tty/tty_io.c). With a user namespace it
/// is root there, and nowhere else.
pub(super) fn prepare(command: &mut Command, user: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    let enter = move || {
        setsid()?;
        ioctl_tiocsctty(&theirs)?;
        if let Some(user) = &user {
            move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
            // Forbidden where an unprivileged user made the namespace
            // (user_namespaces(7)); groups that are not mapped give nothing.
            let _ = set_thread_groups(&[]);
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls alone; it neither allocates nor
    // takes locks, and what it refers to is its own.
    unsafe { command.pre_exec(enter) };
    Ok(ours)
}
