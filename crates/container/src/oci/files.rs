//! Files and sockets that callers name: process ids, terminals, descriptors.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::Pid;

use super::error::Error;

/// Most descriptors that are kept: nobody has more open by default.
const MOST_FDS: u32 = 1024;

/// Writes a process id for the caller, whole or not at all.
pub fn write_pid(path: &Path, pid: Pid) -> Result<(), Error> {
    let failed = |error: io::Error| Error::file("write", path, error);
    let name = path
        .file_name()
        .ok_or_else(|| failed(Errno::INVAL.into()))?;
    let mut part = name.to_os_string();
    part.push(format!(".{}", std::process::id()));
    let part: PathBuf = path.with_file_name(part);
    fs::write(&part, pid.as_raw_nonzero().to_string())
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| {
            let _ = fs::remove_file(&part);
            failed(error)
        })
}

/// Hands a terminal's master to whoever listens at a socket; the bytes beside
/// it are a name, for the receiver's messages.
pub fn send_console(socket: &Path, console: BorrowedFd<'_>) -> Result<(), Error> {
    let failed = |error: Errno| Error::file("send the terminal to", socket, error);
    let own = connect_to(socket).map_err(failed)?;
    let descriptors = [console.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(failed(Errno::NOBUFS));
    }
    let name = IoSlice::new(b"/dev/ptmx");
    sendmsg(&own, &[name], &mut control, SendFlags::NOSIGNAL).map_err(failed)?;
    Ok(())
}

/// A connection to a stream socket.
pub fn connect_to(path: &Path) -> Result<OwnedFd, Errno> {
    let own = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&own, &SocketAddrUnix::new(path)?)?;
    Ok(own)
}

/// How many descriptors from 3 on the program keeps: what was asked for, and
/// the sockets that a service manager passed (sd_listen_fds(3)).
///
/// Those that are not open are none: what this process opens closes itself when
/// the program begins, whichever number it has.
pub fn preserved(asked: u32, sockets: u32) -> Result<u32, Error> {
    let count = asked.saturating_add(sockets);
    if count > MOST_FDS {
        return Err(Error::Usage(format!(
            "--preserve-fds {asked} is too much; {MOST_FDS} are possible"
        )));
    }
    Ok(count)
}

/// Sockets that a service manager passed to this process.
pub fn listening() -> u32 {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
    };
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), _) if pid != std::process::id() => 0,
        (_, Some(count)) => count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn process_ids_are_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        write_pid(&path, Pid::from_raw(123).unwrap()).unwrap();
        write_pid(&path, Pid::from_raw(4).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let error = write_pid(&directory.path().join("no/pid"), Pid::INIT).unwrap_err();
        assert!(error.to_string().contains("no/pid"), "{error}");
    }

    #[test]
    fn a_terminal_arrives() {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let file = tempfile::tempfile().unwrap();
        send_console(&path, file.as_fd()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 64];
        let mut into = [io::IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&stream, &mut into, &mut control, RecvFlags::empty()).unwrap();
        assert!(got.bytes > 0);
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.count()),
            _ => None,
        });
        assert_eq!(descriptors.sum::<usize>(), 1);
    }

    #[test]
    fn descriptors_are_bounded() {
        assert_eq!(preserved(2, 1).unwrap(), 3);
        assert!(preserved(u32::MAX, 1).is_err());
        assert!(preserved(MOST_FDS, 1).is_err());
    }
}
