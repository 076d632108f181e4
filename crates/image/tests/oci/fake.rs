//! A registry of a few lines, that does what no good one does.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was asked.
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// What it answers with: all of it, as it goes over the wire.
pub type Answer = Box<dyn FnOnce(&mut TcpStream) + Send>;

/// The server, and what it was asked.
pub struct Fake {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// Answers each request, on a connection of its own.
pub fn serve(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), log, answer) = (stream, Arc::clone(&log), Arc::clone(&answer))
            else {
                return;
            };
            thread::spawn(move || {
                let Some(request) = read(&stream) else { return };
                let line = format!("{} {}", request.method, request.path);
                log.lock().unwrap().push(line);
                answer(&request)(&mut stream);
            });
        }
    });
    Fake { address, asked }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((key, value)) = line.trim().split_once(": ") else {
            break;
        };
        headers.insert(key.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    std::io::Read::read_exact(&mut reader, &mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8(body).ok()?,
    })
}

/// A usual answer; `headers` each with its line's end.
pub fn answer(status: &str, headers: &str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    Box::new(move |stream| {
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
    })
}

/// An answer of which only a part comes.
pub fn part(status: &str, headers: &str, body: &[u8], length: usize) -> Answer {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    let body = body.to_vec();
    Box::new(move |stream| {
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
    })
}

/// An answer that does not end while somebody listens.
pub fn endless(headers: &str) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{headers}\r\n");
    Box::new(move |stream| {
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
    })
}
