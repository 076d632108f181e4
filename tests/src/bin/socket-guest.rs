//! What the tests' guests do with sockets (vsock, and UDP).
//!
//! | arguments              | what                                           |
//! |------------------------|------------------------------------------------|
//! | `echo PORT`            | answers every connection with what it gets     |
//! | `call PORT COUNT SIZE` | so many connections to the host, one after the other: sends so many bytes, and expects them back |
//! | `many PORT COUNT`      | the same, all at once, with a few bytes each   |
//! | `hold PORT`            | connects to the host and says how that ended   |
//! | `write PORT DISK`      | numbers 16 blocks of a disk in turn, and tells the host of each number that was flushed |
//! | `datagrams PORT`       | answers every datagram with what it gets, by both versions of IP |
//! | `ask TO COUNT SIZE`    | so many datagrams of so many bytes, each until it comes back |

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

fn main() -> io::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize| {
        let word = words.get(at).and_then(|word| word.parse::<u32>().ok());
        word.ok_or_else(|| io::Error::other("a number is missing"))
    };
    match words.first().map(String::as_str) {
        Some("echo") => echo(number(1)?),
        Some("call") => {
            let (port, count, size) = (number(1)?, number(2)?, number(3)?);
            for round in 0..count {
                call(port, round, size as usize)?;
            }
            println!("called {count} times");
            Ok(())
        }
        Some("many") => many(number(1)?, number(2)?),
        Some("hold") => hold(number(1)?),
        Some("write") => {
            let disk = words.get(2).ok_or(io::ErrorKind::InvalidInput)?;
            write(number(1)?, disk)
        }
        Some("datagrams") => datagrams(number(1)?),
        Some("ask") => {
            let to = words.get(1).and_then(|to| to.parse().ok());
            let to: SocketAddr = to.ok_or(io::ErrorKind::InvalidInput)?;
            ask(to, number(2)?, number(3)? as usize)
        }
        _ => Err(io::Error::other(
            "echo, call, many, hold, write, datagrams or ask",
        )),
    }
}

fn echo(port: u32) -> io::Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("listening at {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            let copied = io::copy(&mut &stream, &mut &stream);
            let ended = stream.shutdown(Shutdown::Write);
            if let Err(error) = copied.and(ended) {
                println!("a connection failed: {error}");
            }
        });
    }
    Ok(())
}

/// A connection to the host. The kernel gives one up after two seconds, within
/// which a busy host may not have answered.
fn connect(port: u32) -> io::Result<VsockStream> {
    loop {
        match VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            result => return result,
        }
    }
}

fn pattern(round: u32, size: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(31) ^ (n >> 11)) as u8 ^ round as u8;
    (0..size).map(byte).collect()
}

fn call(port: u32, round: u32, size: usize) -> io::Result<()> {
    let stream = connect(port)?;
    let sent = pattern(round, size);
    let got = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got)?;
        writer.join().expect("the writer")?;
        Ok::<_, io::Error>(got)
    })?;
    if got == sent {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "sent {size} bytes, got {} others",
            got.len()
        )))
    }
}

fn many(port: u32, count: u32) -> io::Result<()> {
    let streams: Vec<_> = (0..count)
        .map(|_| connect(port))
        .collect::<io::Result<_>>()?;
    for (stream, n) in streams.iter().zip(0u32..) {
        (&mut &*stream).write_all(&n.to_le_bytes())?;
    }
    for (stream, n) in streams.iter().zip(0u32..) {
        let mut bytes = [0; 4];
        (&mut &*stream).read_exact(&mut bytes)?;
        if u32::from_le_bytes(bytes) != n {
            return Err(io::Error::other("an answer came to another connection"));
        }
    }
    println!("all {count} answered");
    Ok(())
}

fn hold(port: u32) -> io::Result<()> {
    let stream = connect(port)?;
    println!("connected and waiting");
    match (&stream).read(&mut [0]) {
        Ok(count) => println!("ended after {count} bytes"),
        Err(error) => println!("broken: {:?}", error.kind()),
    }
    Ok(())
}

fn write(port: u32, disk: &str) -> io::Result<()> {
    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 16;
    let stream = connect(port)?;
    let disk = File::options().write(true).open(disk)?;
    for number in 1u64.. {
        let block = number.to_le_bytes().repeat(BLOCK / size_of::<u64>());
        disk.write_all_at(&block, number % BLOCKS * BLOCK as u64)?;
        disk.sync_data()?;
        (&stream).write_all(&number.to_le_bytes())?;
    }
    Ok(())
}

fn datagrams(port: u32) -> io::Result<()> {
    let port = u16::try_from(port).map_err(io::Error::other)?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    println!("datagrams at {port}");
    let mut bytes = vec![0; 1 << 16];
    loop {
        let (count, from) = socket.recv_from(&mut bytes)?;
        socket.send_to(bytes.get(..count).unwrap_or_default(), from)?;
    }
}

fn ask(to: SocketAddr, count: u32, size: usize) -> io::Result<()> {
    // Each after a second without an answer: minutes on a host that stalls.
    const TIMES: u32 = 300;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut bytes = vec![0; 1 << 16];
    for round in 0..count {
        let sent = pattern(round, size);
        let comes_back = |_| {
            if socket.send(&sent).is_err() {
                thread::sleep(Duration::from_millis(100));
                return false;
            }
            // A late answer is of an earlier round, and passed over.
            while let Ok(count) = socket.recv(&mut bytes) {
                if bytes.get(..count) == Some(&*sent) {
                    return true;
                }
            }
            false
        };
        if !(0..TIMES).any(comes_back) {
            return Err(io::Error::other(format!("{size} bytes do not come back")));
        }
    }
    println!("{count} of {size} bytes came back");
    Ok(())
}
