//! Sockets on which debuggers come.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use gdbstub::conn::Connection;

/// A debugger that takes no answer for this long is taken for gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket on which debuggers connect, one at a time.
#[derive(Debug)]
pub enum GdbListener {
    /// TCP. Whoever can connect controls the guest: bind to a loopback
    /// address.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

impl GdbListener {
    /// The next debugger.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        let socket = match self {
            GdbListener::Tcp(listener) => {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(false)?;
                socket.set_nodelay(true)?;
                socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Socket::Tcp(socket)
            }
            GdbListener::Unix(listener) => {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(false)?;
                socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Socket::Unix(socket)
            }
        };
        Ok(Stream {
            socket,
            input: Vec::new(),
            read: 0,
            output: Vec::new(),
        })
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            GdbListener::Tcp(listener) => listener.set_nonblocking(true),
            GdbListener::Unix(listener) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for GdbListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            GdbListener::Tcp(listener) => listener.as_fd(),
            GdbListener::Unix(listener) => listener.as_fd(),
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One debugger's connection, buffered both ways.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    input: Vec<u8>,
    read: usize,
    output: Vec<u8>,
}

impl Stream {
    /// The next byte that was read already.
    pub fn buffered(&mut self) -> Option<u8> {
        let byte = self.input.get(self.read).copied();
        self.read += usize::from(byte.is_some());
        byte
    }

    /// Reads what the socket has; false at its end.
    pub fn fill(&mut self) -> io::Result<bool> {
        self.input.resize(4096, 0);
        self.read = 0;
        let result = match &mut self.socket {
            Socket::Tcp(socket) => socket.read(&mut self.input),
            Socket::Unix(socket) => socket.read(&mut self.input),
        };
        let count = match result {
            Ok(count) => count,
            Err(error) => {
                self.input.clear();
                return Err(error);
            }
        };
        self.input.truncate(count);
        Ok(count != 0)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Connection for Stream {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        match &mut self.socket {
            Socket::Tcp(socket) => Write::write_all(socket, &output),
            Socket::Unix(socket) => Write::write_all(socket, &output),
        }
    }
}
