//! Whether passt is there: a question that every passt answers, ARP's for the
//! gateway.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use croft_api::net::Mac;

use super::{GATEWAY, GUEST};

/// Longest frame that passt sends.
const FRAME_MAX: usize = 1 << 16;
/// Bytes of the question, and least of its answer: an Ethernet header, and
/// ARP for IPv4 (RFC 826).
const LENGTH: usize = 42;
/// EtherType of ARP, and ARP's operation of an answer.
const ARP: [u8; 2] = [0x08, 0x06];
const ANSWER: [u8; 2] = [0, 2];

/// Asks as the guest would and waits for the answer.
pub(super) fn wait(socket: &mut UnixStream, mac: Mac, patience: Duration) -> io::Result<()> {
    let end = Instant::now() + patience;
    let question = question(mac);
    // As many as 42 bytes behind their length fit into any socket.
    let mut message = Vec::with_capacity(4 + LENGTH);
    message.extend((LENGTH as u32).to_be_bytes());
    message.extend(question);
    socket.write_all(&message)?;
    loop {
        let mut length = [0; 4];
        read(socket, &mut length, end)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(io::Error::other("it does not speak as passt does"));
        }
        let mut frame = vec![0; length];
        read(socket, &mut frame, end)?;
        if is_answer(&frame) {
            return socket.set_read_timeout(None);
        }
    }
}

/// Fills the buffer, at most until `end`.
fn read(socket: &mut UnixStream, mut buffer: &mut [u8], end: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn question(mac: Mac) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    let parts: [&[u8]; 9] = [
        // To all, from the guest.
        &[0xFF; 6],
        &mac.bytes(),
        &ARP,
        // Ethernet, IPv4, lengths of their addresses.
        &[0, 1, 0x08, 0x00, 6, 4],
        // A question,
        &[0, 1],
        // of the guest,
        &mac.bytes(),
        &GUEST.octets(),
        // for the gateway.
        &[0; 6],
        &GATEWAY.octets(),
    ];
    let bytes = parts.into_iter().flatten();
    frame
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    frame
}

fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ARP[..]) && frame.get(20..22) == Some(&ANSWER[..])
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn mac() -> Mac {
        "02:c7:0f:01:02:03".parse().unwrap()
    }

    #[test]
    fn other_frames_do_not_answer() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let passt = thread::spawn(move || {
            let mut asked = [0; 4 + LENGTH];
            theirs.read_exact(&mut asked).unwrap();
            assert_eq!(asked[..4], [0, 0, 0, 42]);
            let mut frame = asked[4..].to_vec();
            assert!(!is_answer(&frame));
            for operation in [1, 2] {
                frame[21] = operation;
                theirs.write_all(&42u32.to_be_bytes()).unwrap();
                theirs.write_all(&frame).unwrap();
            }
        });
        wait(&mut ours, mac(), PATIENCE).unwrap();
        passt.join().unwrap();
        // Both frames were taken.
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn silence_and_nonsense_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let error = wait(&mut ours, mac(), Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        (&theirs).write_all(&[0xFF; 4]).unwrap();
        assert!(wait(&mut ours, mac(), PATIENCE).is_err());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let error = wait(&mut ours, mac(), PATIENCE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
