//! Locks on image files, by QEMU's convention.
//!
//! QEMU (block/file-posix.c) guards an image by open file description locks
//! on single bytes of it, all of them shared:
//!
//! | byte  | held by whoever                                 |
//! |-------|-------------------------------------------------|
//! | 100+i | uses the image in way i                         |
//! | 200+i | does not accept that another uses it in way i   |
//!
//! | i | way                                  |
//! |---|--------------------------------------|
//! | 0 | reads and relies on what it reads    |
//! | 1 | writes                               |
//! | 2 | writes what is there already         |
//! | 3 | changes the size                     |
//!
//! Whoever opens an image takes its bytes first and looks afterwards whether
//! another holds a byte that it conflicts with: of two at the same time at
//! least one sees the other.
//!
//! Such a lock belongs to the open file: it passes to other processes with
//! the descriptor and ends when the last copy is closed, however the
//! processes end.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use thiserror::Error;

/// First byte of the ways in which the image is used.
const USES: i64 = 100;
/// First byte of the ways in which others may not use it.
const REFUSES: i64 = 200;
/// Number of ways.
const WAYS: i64 = 4;

const READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;

/// Why an image could not be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process uses it.
    #[error(
        "is in use by another process, which {0}; stop that one (another machine, or a qemu tool) first"
    )]
    InUse(&'static str),
    /// The file system has no locks.
    #[error("cannot be locked: {0}; put it on a file system that has open file description locks")]
    Host(#[from] io::Error),
}

/// Locks the image in `file` for one machine: to write it alone (others may
/// not even read it, since they would read changing data), or to read it
/// together with other readers. Released when the last copy of the
/// descriptor is closed.
pub fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    let uses = if read_only { READ } else { READ | WRITE };
    let refuses = WRITE | RESIZE;
    take(file, uses, refuses)?;
    let conflict = conflict(file, uses, refuses);
    if !matches!(conflict, Ok(None)) {
        release(file)?;
    }
    match conflict? {
        None => Ok(()),
        Some(what) => Err(LockError::InUse(what)),
    }
}

fn take(file: &File, uses: u8, refuses: u8) -> io::Result<()> {
    for (base, ways) in [(USES, uses), (REFUSES, refuses)] {
        for way in (0..WAYS).filter(|way| ways >> way & 1 != 0) {
            let mut byte = request(libc::F_RDLCK, base + way, 1);
            call(file, libc::F_OFD_SETLK, &mut byte)?;
        }
    }
    Ok(())
}

/// What another does that does not go together with our use of the file.
fn conflict(file: &File, uses: u8, refuses: u8) -> io::Result<Option<&'static str>> {
    for way in 0..WAYS {
        if uses >> way & 1 != 0 && is_held(file, REFUSES + way)? {
            return Ok(Some("does not share it"));
        }
        if refuses >> way & 1 != 0 && is_held(file, USES + way)? {
            return Ok(Some("writes it"));
        }
    }
    Ok(None)
}

/// Whether another open file holds this byte.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    let mut probe = request(libc::F_WRLCK, byte, 1);
    call(file, libc::F_OFD_GETLK, &mut probe)?;
    Ok(probe.l_type != libc::F_UNLCK as libc::c_short)
}

fn release(file: &File) -> io::Result<()> {
    let mut all = request(libc::F_UNLCK, USES, REFUSES + WAYS - USES);
    call(file, libc::F_OFD_SETLK, &mut all)
}

/// `l_pid` must be 0 for open file description locks (fcntl(2)).
fn request(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn call(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: these commands read and write one `flock`, which lives
        // until the call returns.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *request) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image
    }

    /// Waits until nobody has it: a child that another test has begun has all
    /// that is open here until it becomes its program.
    fn wait_until_free(image: &tempfile::NamedTempFile) {
        let end = Instant::now() + Duration::from_secs(600);
        while let Err(error) = lock(&open(image.path()), false) {
            assert!(Instant::now() < end, "{error}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = image();
        let first = open(image.path());
        lock(&first, false).unwrap();
        for read_only in [true, false] {
            let error = lock(&open(image.path()), read_only).unwrap_err();
            assert!(error.to_string().contains("in use"), "{error}");
        }
        // A copy of the descriptor keeps the lock.
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(lock(&open(image.path()), true).is_err());
        drop(copy);
        wait_until_free(&image);
        let (one, two) = (open(image.path()), open(image.path()));
        lock(&one, true).unwrap();
        lock(&two, true).unwrap();
        assert!(lock(&open(image.path()), false).is_err());
        drop((one, two));
        wait_until_free(&image);
    }

    #[test]
    fn a_refused_lock_leaves_nothing() {
        let image = image();
        let reader = open(image.path());
        lock(&reader, true).unwrap();
        let refused = open(image.path());
        assert!(lock(&refused, false).is_err());
        drop(reader);
        wait_until_free(&image);
    }

    /// A QEMU tool's answer, if it is installed: whether it worked on the
    /// image, and what it said.
    fn qemu(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
        let output = Command::new(program).args(arguments).output().ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Some((output.status.success(), said))
    }

    #[test]
    fn qemu_keeps_off() {
        let image = image();
        let path = image.path().to_str().unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        let to = copy.path().to_str().unwrap();
        let read = || qemu("qemu-img", &["convert", "-f", "raw", "-O", "raw", path, to]);
        let write = || qemu("qemu-io", &["-f", "raw", "-c", "write 0 512", path]);
        let Some((true, _)) = read() else {
            eprintln!("skipped: qemu-img is not installed");
            return;
        };
        let locked = |answer: Option<(bool, String)>| {
            let (worked, said) = answer.unwrap();
            assert!(!worked && said.contains("lock"), "{said}");
        };
        let writer = open(image.path());
        lock(&writer, false).unwrap();
        locked(read());
        locked(write());
        drop(writer);
        wait_until_free(&image);
        let reader = open(image.path());
        lock(&reader, true).unwrap();
        assert!(read().unwrap().0);
        locked(write());
    }

    /// `qemu-io` holds a writer's locks until its standard input ends.
    #[test]
    fn we_keep_off_qemu() {
        use std::io::{BufRead, BufReader, Write};
        use std::process::Stdio;
        let image = image();
        let spawned = Command::new("qemu-io")
            .args(["-f", "raw"])
            .arg(image.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut qemu) = spawned else {
            eprintln!("skipped: qemu-io is not installed");
            return;
        };
        // The answer to a command shows that the image is open.
        let input = qemu.stdin.as_mut().unwrap();
        input.write_all(b"length\n").unwrap();
        let mut answer = String::new();
        let mut output = BufReader::new(qemu.stdout.take().unwrap());
        output.read_line(&mut answer).unwrap();
        assert!(answer.contains("1 MiB"), "{answer}");
        for read_only in [true, false] {
            assert!(lock(&open(image.path()), read_only).is_err());
        }
        drop(qemu.stdin.take());
        qemu.wait().unwrap();
        wait_until_free(&image);
    }
}
