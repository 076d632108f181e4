//! A container's program that tries to get out, for the tests of isolation.
//!
//! Its words are attempts; each is answered by a line, `ATTEMPT: OUTCOME`,
//! whose outcome is `done` or what the kernel said.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{FsOpenFlags, MountFlags, UnmountFlags, fsopen, mount, mount_remount, unmount};
use rustix::process::{Pid, test_kill_process};

fn main() {
    for word in std::env::args().skip(1) {
        let (attempt, about) = word.split_once('=').unwrap_or((&word, ""));
        let outcome = match attempt {
            "signal" => signal(about),
            "processes" => Ok(processes().to_string()),
            "mount" => said(mount("none", "/tmp", "tmpfs", MountFlags::empty(), None)),
            "new-mount" => said(fsopen("tmpfs", FsOpenFlags::empty()).map(drop)),
            "cgroup-mount" => said(mount(
                "none",
                "/tmp",
                "cgroup",
                MountFlags::empty(),
                c"none,name=out",
            )),
            "remount" => said(mount_remount(about, MountFlags::BIND, "")),
            "unmount" => said(unmount(about, UnmountFlags::DETACH)),
            "unshare" => unshare(),
            "module" => module(),
            "node" => node(about),
            "read" => fs::read(about).map(|bytes| format!("{} bytes", bytes.len().min(4096))),
            "write" => write(about),
            "group" => fs::create_dir(about).map(|()| "done".to_owned()),
            "fork" => fork(about.parse().expect("how many")),
            "memory" => memory(about.parse().expect("how much")),
            "overwrite" => overwrite(about),
            "descriptors" => descriptors(),
            "cwd" => directory(),
            "wait" => {
                thread::sleep(Duration::from_millis(about.parse().expect("how long")));
                Ok("done".to_owned())
            }
            _ => Ok("what?".to_owned()),
        };
        let outcome = outcome.unwrap_or_else(|error| error.to_string());
        println!("{word}: {outcome}");
    }
}

fn said(result: rustix::io::Result<()>) -> Result<String> {
    result?;
    Ok("done".to_owned())
}

/// Whether a process could be signalled.
fn signal(id: &str) -> Result<String> {
    let id = Pid::from_raw(id.parse().expect("an id")).expect("an id");
    said(test_kill_process(id))
}

fn processes() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .count()
}

fn unshare() -> Result<String> {
    // SAFETY: takes no pointers; this process has one thread.
    match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
        0 => Ok("done".to_owned()),
        _ => Err(Error::last_os_error()),
    }
}

/// A module that is none: whoever may load one is told so.
fn module() -> Result<String> {
    let junk = [0_u8; 64];
    // SAFETY: both pointers are to memory of the lengths that are said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_init_module,
            junk.as_ptr(),
            junk.len(),
            c"".as_ptr(),
        )
    };
    match (result, Error::last_os_error()) {
        (0, _) => Ok("done".to_owned()),
        (_, error) => Err(error),
    }
}

/// Makes a device node and opens it: `b:8:0`.
fn node(device: &str) -> Result<String> {
    let words: Vec<&str> = device.split(':').collect();
    let kind = match words[0] {
        "b" => FileType::BlockDevice,
        _ => FileType::CharacterDevice,
    };
    let numbers = (
        words[1].parse().expect("major"),
        words[2].parse().expect("minor"),
    );
    let path = "/node";
    let _ = fs::remove_file(path);
    mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o600),
        makedev(numbers.0, numbers.1),
    )?;
    File::open(path)?;
    Ok("done".to_owned())
}

/// Opens for writing, and writes what is there already.
fn write(path: &str) -> Result<String> {
    let now = fs::read(path).unwrap_or_default();
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(&now)?;
    Ok("done".to_owned())
}

/// Makes processes until it may no more.
fn fork(most: usize) -> Result<String> {
    let mut made = Vec::new();
    for _ in 0..most {
        // SAFETY: the child makes system calls only.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: takes no pointers.
                unsafe { libc::pause() };
            },
            -1 => break,
            child => made.push(child),
        }
    }
    for child in &made {
        // SAFETY: takes no pointers; these are this process's children.
        unsafe { libc::kill(*child, libc::SIGKILL) };
    }
    Ok(made.len().to_string())
}

/// The working directory as the kernel has it: a C library hides one that is
/// not beneath the root.
fn directory() -> Result<String> {
    let mut path = [0_u8; 4096];
    // SAFETY: the kernel writes at most as much as it is told there is.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    let length = usize::try_from(length).map_err(|_| Error::last_os_error())?;
    let path = path.get(..length.saturating_sub(1)).unwrap_or_default();
    Ok(String::from_utf8_lossy(path).into_owned())
}

/// Takes memory and uses it.
fn memory(mebibytes: usize) -> Result<String> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        all.push(vec![1; 1 << 20]);
    }
    Ok(format!("{} MiB", std::hint::black_box(all).len()))
}

/// Tries to write to the program of every process that is not its own: the
/// runtime's, while it brings another program in here. Until there is a file
/// that says that no more come, and then as often as it takes for one that
/// nobody runs any more.
fn overwrite(enough: &str) -> Result<String> {
    const ROUNDS_MORE: u32 = 1000;
    let own = fs::read_link("/proc/self/exe")?;
    let mut held: Vec<File> = Vec::new();
    let mut seen = false;
    let mut more = 0;
    while more < ROUNDS_MORE {
        more += u32::from(fs::exists(enough)?);
        for entry in fs::read_dir("/proc")?.flatten() {
            let path = entry.path().join("exe");
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            // `sleep` is of the host's tools, bound here read-only.
            if target == own || target.starts_with("/usr") || target.starts_with("/bin") {
                continue;
            }
            seen = true;
            // While it runs it is busy; a handle on it is not, later.
            let handle = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(&path);
            held.extend(handle);
            if held.len() > 64 {
                held.remove(0);
            }
        }
        for file in &held {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // A sealed file opens, and is not written.
            let file = OpenOptions::new().write(true).open(path);
            if file.is_ok_and(|mut file| file.write_all(b"intruder").is_ok()) {
                return Ok("done".to_owned());
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(if seen { "seen, refused" } else { "not seen" }.to_owned())
}

fn descriptors() -> Result<String> {
    let mut all = Vec::new();
    for number in 0..1024 {
        let path = CString::new(format!("/proc/self/fd/{number}"))?;
        if let Ok(target) = rustix::fs::readlink(&path, Vec::new()) {
            all.push(format!("{number}={}", target.to_string_lossy()));
        }
    }
    Ok(all.join(" "))
}
