//! Commands that the agent in an instance's guest carries out.

mod copy;
mod exec;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use croft_agent::AgentError;
use croft_agent::client::Client;
use croft_api::agent::PORT;
use croft_host::{InstanceName, Instances, socket};

pub use self::copy::copy;
pub use self::exec::{exec, shell};
use super::Fault;

/// How long the agent may take to answer a greeting.
const GREETING: Duration = Duration::from_secs(10);
/// Longest answer of the monitor to what port is wanted: `OK <port>`.
const ANSWER_MAX: usize = 32;

/// Connects to the agent in an instance.
pub fn connect(instances: &Instances, name: &InstanceName) -> Result<Client, Fault> {
    // Names what is no instance, and what does not run.
    let status = instances.status(name)?;
    if !status.phase.is_live() {
        return Err(Fault::failed(format!(
            "it is {}; 'croft start {name}' starts it",
            status.phase
        )));
    }
    let deaf = |error: &dyn std::fmt::Display| {
        Fault::failed(format!(
            "its agent does not answer ({error}); it may not be up yet ('croft wait {name}' \
             waits for it), or there is none in the image"
        ))
    };
    let stream = open_port(instances, name).map_err(|error| deaf(&error))?;
    let timed = stream.try_clone().map_err(|error| deaf(&error))?;
    let client = Client::connect(OwnedFd::from(stream)).map_err(|error| deaf(&error))?;
    // From here on it may take its time.
    timed.set_read_timeout(None).map_err(|error| deaf(&error))?;
    Ok(client)
}

/// A stream to the agent's port, by the monitor.
fn open_port(instances: &Instances, name: &InstanceName) -> io::Result<UnixStream> {
    let mut stream = socket::connect(&instances.directories().vsock(name))?;
    stream.set_read_timeout(Some(GREETING))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    // Byte by byte: what follows the line is the agent's.
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < ANSWER_MAX && stream.read(&mut byte)? == 1 {
        match byte {
            [b'\n'] if answer.starts_with(b"OK ") => return Ok(stream),
            [b'\n'] => break,
            [other] => answer.push(other),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "nobody listens in the guest",
    ))
}

impl From<AgentError> for Fault {
    fn from(error: AgentError) -> Self {
        Fault::failed(error.to_string())
    }
}
