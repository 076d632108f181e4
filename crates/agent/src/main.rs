//! `croft-agent`: serves the host in a machine's guest, as root.
//!
//! Started by systemd (`croft-agent.service`). `--listen unix:PATH` and
//! `--ready unix:PATH` put sockets of the file system in place of vsock, for
//! tests.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::thread;

use croft_agent::guest::{self, Listener};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("croft-agent: {message}");
            return ExitCode::from(2);
        }
    };
    if options.version {
        println!("croft-agent {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    guest::thaw_left_over();
    match options.listen {
        Some(path) => match UnixListener::bind(&path) {
            Ok(listener) => {
                announce(options.ready);
                guest::listen(move || listener.accept().map(|(stream, _)| stream.into()))
            }
            Err(error) => {
                eprintln!("croft-agent: {path}: {error}");
                ExitCode::FAILURE
            }
        },
        None => {
            let listener = Listener::bind();
            announce(options.ready);
            guest::listen(move || listener.accept())
        }
    }
}

/// Tells the host that the guest is up, on a thread of its own.
fn announce(path: Option<String>) {
    let connect = move || -> io::Result<OwnedFd> {
        match &path {
            Some(path) => UnixStream::connect(path).map(OwnedFd::from),
            None => guest::connect_ready(),
        }
    };
    let started = thread::Builder::new()
        .name("ready".to_owned())
        .spawn(move || guest::announce(connect));
    if let Err(error) = started {
        eprintln!("croft-agent: the host is not told that the guest is up: {error}");
    }
}

#[derive(Default)]
struct Options {
    version: bool,
    listen: Option<String>,
    ready: Option<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Options::default();
        while let Some(argument) = arguments.next() {
            let mut path = || {
                let value = arguments.next();
                let path = value
                    .as_deref()
                    .and_then(|value| value.strip_prefix("unix:"));
                path.map(str::to_owned)
                    .ok_or_else(|| format!("{argument} takes unix:PATH"))
            };
            match argument.as_str() {
                "--version" => options.version = true,
                "--listen" => options.listen = Some(path()?),
                "--ready" => options.ready = Some(path()?),
                other => return Err(format!("'{other}' is no option of this program")),
            }
        }
        Ok(options)
    }
}
