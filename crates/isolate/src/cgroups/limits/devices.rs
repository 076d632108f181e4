//! Which devices: files of version 1, a program in version 2.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::device_program::{Instruction, compile};
use super::device_rules::{Lists, Rule, rules};
use super::writes::Writes;
use crate::cgroups::dir::Dir;
use crate::cgroups::{Controllers, Error, Version};

/// Sets what is said of devices; an empty list says nothing.
pub fn apply(writes: &mut Writes<'_>, list: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    if list.is_empty() {
        return Ok(());
    }
    let rules = rules(list)?;
    let Some((dir, version)) = writes.place(Controllers::DEVICES) else {
        return Ok(());
    };
    let result = match version {
        Version::One => apply_1(dir, &rules),
        Version::Two => apply_2(dir, &rules),
    };
    match result {
        // Whoever may not load programs may not make device nodes either, and
        // reaches those devices only that its own user may.
        Err(Error::Devices { source, .. })
            if Errno::from_io_error(&source) == Some(Errno::PERM) =>
        {
            writes.leave_out("devices", "programs of version 2 are root's alone");
            Ok(())
        }
        result => result,
    }
}

/// From what is set now to what is wanted, without a moment in which a
/// running container lacks a device that it has before and after.
fn apply_1(dir: &Dir, rules: &[Rule]) -> Result<(), Error> {
    let wanted = Lists::of(rules)?;
    let text = dir.read("devices.list")?;
    let now = Lists::parse(&text).filter(|now| !now.allow && !wanted.allow);
    let (add, remove) = match wanted.allow {
        true => ("devices.deny", "devices.allow"),
        false => ("devices.allow", "devices.deny"),
    };
    let now = match now {
        Some(now) => now.exceptions,
        None => {
            dir.write(remove, "a")?;
            Vec::new()
        }
    };
    for one in &wanted.exceptions {
        if !now.contains(one) {
            dir.write(add, &one.line())?;
        }
    }
    for mut one in now {
        let same = wanted.exceptions.iter().find(|wanted| {
            (wanted.kind, wanted.major, wanted.minor) == (one.kind, one.major, one.minor)
        });
        one.access
            .remove(same.map(|same| same.access).unwrap_or_default());
        if !one.access.is_empty() {
            dir.write(remove, &one.line())?;
        }
    }
    Ok(())
}

// Commands and constants of bpf(2) (`linux/bpf.h`).
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// How many programs are looked for in a group: we attach one.
const PROGRAMS: usize = 64;

/// `union bpf_attr` for [`PROG_LOAD`]: its beginning.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// For [`PROG_ATTACH`] and [`PROG_DETACH`].
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// For [`PROG_QUERY`].
#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// For [`PROG_GET_FD_BY_ID`].
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Attaches the program of these rules, in the place of one that is there.
fn apply_2(dir: &Dir, rules: &[Rule]) -> Result<(), Error> {
    let failed = |action| {
        move |source| Error::Devices {
            action,
            path: dir.path().to_owned(),
            source,
        }
    };
    let program = load(&compile(rules)).map_err(failed("load"))?;
    let group = dir
        .file(".", OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(failed("attach"))?;
    attach(group.as_fd(), program.as_fd()).map_err(failed("attach"))
}

fn attach(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let old = attached(group)?;
    let mut call = Attach {
        target: number(group),
        program: number(program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // One for one, and no moment without any (Linux 5.6).
    if let [one] = old.as_slice() {
        let mut replace = Attach {
            flags: ALLOW_MULTI | REPLACE,
            replaced: number(one.as_fd()),
            ..call
        };
        match bpf(PROG_ATTACH, &mut replace) {
            Ok(_) => return Ok(()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    // All that are attached have to agree: the new one first.
    bpf(PROG_ATTACH, &mut call)?;
    for one in old {
        let mut detach = Attach {
            target: number(group),
            program: number(one.as_fd()),
            kind: ATTACH_CGROUP_DEVICE,
            ..Attach::default()
        };
        bpf(PROG_DETACH, &mut detach)?;
    }
    Ok(())
}

/// Programs that are attached to the group itself.
fn attached(group: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS];
    let mut query = Query {
        target: number(group),
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS as u32,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).unwrap_or_default();
    let mut programs = Vec::new();
    for id in ids.iter().take(count) {
        let mut by_id = ById {
            id: *id,
            ..ById::default()
        };
        let descriptor = bpf(PROG_GET_FD_BY_ID, &mut by_id)?;
        // SAFETY: the command returns a new descriptor, nobody else's.
        programs.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }
    Ok(programs)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"croft_devices\0\0\0",
    };
    let descriptor = bpf(PROG_LOAD, &mut load)?;
    // SAFETY: the command returns a new descriptor, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A descriptor as these structures have it: they are never negative.
fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is the beginning of `union bpf_attr` for the
    // command, of the size that is said; what it points to outlives the call
    // and is as long as its counts say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => i32::try_from(result).map_err(io::Error::other),
    }
}
