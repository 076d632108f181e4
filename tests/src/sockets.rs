//! Guests with sockets (vsock) and terminals (virtio-console).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::{Archive, Machine, PATIENCE, Stage, files, modules};

/// Modules, in the order in which they can be loaded.
const MODULES: [&str; 5] = [
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_console",
    "virtio_blk",
];

/// The program that the guest has.
const PROGRAM: &str = "socket-guest";

/// The libraries of a program of this host, the loader among them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// The program as `/socket-guest`, with what it needs.
///
/// # Panics
/// When it is not built.
pub fn archive() -> Archive {
    let program = files::program(PROGRAM);
    let mut archive = Archive::new().program(PROGRAM, &fs::read(&program).expect("a program"));
    let mut directories = BTreeSet::new();
    for library in libraries(&program) {
        let relative = library.strip_prefix("/").expect("an absolute path");
        let above: Vec<_> = relative.ancestors().skip(1).collect();
        for directory in above.into_iter().rev() {
            let name = directory.to_str().expect("a plain name");
            if !name.is_empty() && directories.insert(name.to_owned()) {
                archive = archive.directory(name);
            }
        }
        let bytes = fs::read(&library).expect("a library");
        archive = archive.program(relative.to_str().expect("a plain name"), &bytes);
    }
    archive
}

/// `croft run` of a shell with modules and program at hand.
///
/// # Panics
/// When the kernel was not fetched.
pub fn shell(stage: &Stage) -> Command {
    let mut command = modules::shell_with(stage, archive(), &MODULES);
    command.args(["--cpus", "2"]);
    command
}

/// Loads the modules after a boot.
///
/// # Panics
/// When the guest does not say that it has them.
pub fn load(machine: &mut Machine<'_>) {
    modules::load(machine, &MODULES);
}

/// A connection to `port` of the guest, which accepts it.
///
/// # Panics
/// When it does not.
pub fn connect(socket: &Path, port: u32) -> UnixStream {
    let mut stream = ask(socket, port);
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("an answer");
        line.extend(byte);
    }
    let line = String::from_utf8(line).expect("a line");
    let port = line
        .strip_prefix("OK ")
        .and_then(|port| port.trim().parse::<u32>().ok());
    assert!(port.is_some(), "{line}");
    stream
}

/// Asks for a connection to `port` of the guest.
///
/// # Panics
/// When nobody listens on the host's side.
pub fn ask(socket: &Path, port: u32) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("a listener");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (&stream)
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .expect("a reader");
    stream
}

/// Sends `bytes` and expects them back, and then the end.
///
/// # Panics
/// When something else comes.
pub fn echoed(stream: &UnixStream, bytes: &[u8]) {
    let got = thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            writer.write_all(bytes).expect("a reader");
            stream.shutdown(Shutdown::Write).expect("a connection");
        });
        let (mut reader, mut got) = (stream, Vec::new());
        reader.read_to_end(&mut got).expect("an echo");
        got
    });
    assert!(
        got == bytes,
        "sent {} bytes, got {}",
        bytes.len(),
        got.len()
    );
}

/// Answers every connection at `path` with what it gets, to the end of this
/// process.
///
/// # Panics
/// When the socket cannot be made.
pub fn serve(path: &Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
}
