//! A console of an instance: what it printed, who looks at it, who types.
//!
//! ```text
//!                 ┌──► log (two files)
//! guest ──output──┼──► scrollback ──first──┐
//!                 └──► viewer's queue ─────┴──► viewer's socket
//! guest ◄──input── queue ◄── the one writer's socket
//! ```
//!
//! The guest is never held up by who looks: a viewer whose queue is full loses
//! what is in it, and is told so. Only a viewer that waits for all of it, as
//! whoever runs a container in the foreground does, holds it up.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use croft_api::control::Writing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::log::Log;
use crate::wait::{asked, ready};

/// What a new viewer sees of the past, in bytes.
const SCROLLBACK: usize = 64 * 1024;
/// Most bytes that wait for a viewer.
const BEHIND: usize = 256 * 1024;
/// Most bytes that wait for the guest.
const INPUT: usize = 16 * 1024;
/// Bytes moved at once.
const PIECE: usize = 16 * 1024;
/// Most viewers of a console.
const VIEWERS_MAX: usize = 32;

/// A console.
#[derive(Debug)]
pub struct Console {
    log: Option<Log>,
    scrollback: VecDeque<u8>,
    viewers: Vec<Viewer>,
    /// Numbers the viewers.
    next: u64,
    writer: Option<u64>,
    input: VecDeque<u8>,
    /// A writer has said that there is no more.
    input_ended: bool,
}

#[derive(Debug)]
struct Viewer {
    number: u64,
    socket: OwnedFd,
    queue: VecDeque<u8>,
    /// It gets everything, and the guest waits for it.
    patient: bool,
    /// It has no more to type.
    silent: bool,
    /// Bytes lost since the queue was last empty.
    skipped: usize,
    gone: bool,
}

impl Console {
    /// One whose output is appended to `log`.
    pub fn new(log: Option<Log>) -> Self {
        Console {
            log,
            scrollback: VecDeque::new(),
            viewers: Vec::new(),
            next: 0,
            writer: None,
            input: VecDeque::new(),
            input_ended: false,
        }
    }

    /// Adds a viewer, who sees so many lines of the past at most; whether it is
    /// the writer, or why not.
    pub fn attach(
        &mut self,
        socket: OwnedFd,
        writing: Writing,
        lines: Option<u32>,
    ) -> Result<bool, String> {
        if self.viewers.len() >= VIEWERS_MAX {
            return Err(format!(
                "{VIEWERS_MAX} look at this console already; close one of them"
            ));
        }
        self.next += 1;
        let number = self.next;
        let writer = match (writing, self.writer) {
            (Writing::No, _) | (Writing::IfFree, Some(_)) => false,
            (Writing::IfFree, None) | (Writing::Take, _) => true,
        };
        if writer {
            self.writer = Some(number);
        }
        self.viewers.push(Viewer {
            number,
            socket,
            queue: self.past(lines),
            patient: false,
            silent: false,
            skipped: 0,
            gone: false,
        });
        Ok(writer)
    }

    /// Adds a viewer who sees everything from now on, and writes: whoever runs
    /// the guest.
    pub fn attach_starter(&mut self, socket: OwnedFd) {
        self.next += 1;
        self.writer = Some(self.next);
        self.viewers.push(Viewer {
            number: self.next,
            socket,
            queue: VecDeque::new(),
            patient: true,
            silent: false,
            skipped: 0,
            gone: false,
        });
    }

    /// Whether the guest is to wait until somebody has read.
    pub fn is_full(&self) -> bool {
        let mut viewers = self.viewers.iter();
        viewers.any(|viewer| viewer.patient && viewer.queue.len() > BEHIND / 2)
    }

    /// What is known of the past.
    fn past(&self, lines: Option<u32>) -> VecDeque<u8> {
        let Some(lines) = lines.and_then(|lines| usize::try_from(lines).ok()) else {
            return self.scrollback.clone();
        };
        // The end of the last line begins no other one.
        let last = self.scrollback.len().saturating_sub(1);
        let ends = self.scrollback.iter().enumerate().rev();
        let mut ends = ends.filter(|(at, byte)| **byte == b'\n' && *at != last);
        let start = match lines.checked_sub(1) {
            None => self.scrollback.len(),
            Some(before) => ends.nth(before).map_or(0, |(at, _)| at.saturating_add(1)),
        };
        self.scrollback.iter().skip(start).copied().collect()
    }

    /// What is worth waiting for.
    pub fn sources(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>, PollFlags)> {
        self.viewers.iter().map(|viewer| {
            let mut flags = PollFlags::empty();
            let writes = self.writer == Some(viewer.number);
            let reads = !viewer.silent && (!writes || self.input.len() < INPUT);
            flags.set(PollFlags::IN, reads);
            flags.set(PollFlags::OUT, !viewer.queue.is_empty());
            // Of one that has no more to type, that it has gone.
            flags.set(PollFlags::PRI, viewer.silent);
            (viewer.number, viewer.socket.as_fd(), flags)
        })
    }

    /// Takes what the guest prints; false at its end.
    pub fn take_output(&mut self, guest: impl AsFd) -> bool {
        let mut buffer = [0; PIECE];
        match recv(guest, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => {
                self.output(buffer.get(..count).unwrap_or_default());
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(_) | Err(_) => false,
        }
    }

    /// Takes what the guest has printed.
    pub fn output(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.append(bytes);
        }
        self.scrollback.extend(bytes);
        let surplus = self.scrollback.len().saturating_sub(SCROLLBACK);
        self.scrollback.drain(..surplus);
        for viewer in &mut self.viewers {
            viewer.push(bytes);
        }
    }

    /// Whether there is something for the guest.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Gives the guest what it takes.
    pub fn give_input(&mut self, guest: impl AsFd) {
        self.give_input_by(|bytes| send(guest, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
    }

    /// As [`give_input`](Self::give_input), by other means than a socket.
    pub fn give_input_by(&mut self, give: impl FnOnce(&[u8]) -> Result<usize, Errno>) {
        let (first, _) = self.input.as_slices();
        match give(first) {
            Ok(count) => drop(self.input.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // It is ending.
            Err(_) => self.input.clear(),
        }
    }

    /// What was typed to a guest that is gone is not for the next one.
    pub fn forget_input(&mut self) {
        self.input.clear();
        self.input_ended = false;
    }

    /// Whether a writer has said that there is no more, and all is given.
    pub fn is_input_ended(&self) -> bool {
        self.input_ended && self.input.is_empty()
    }

    /// A viewer can be read from or written to.
    pub fn serve(&mut self, number: u64) {
        let writes = self.writer == Some(number);
        if let Some(viewer) = self.viewers.iter_mut().find(|v| v.number == number) {
            if !writes || self.input.len() < INPUT {
                let input = writes.then_some(&mut self.input);
                viewer.read(input);
            }
            self.input_ended |= writes && viewer.silent && !viewer.gone;
            viewer.write();
        }
        self.viewers.retain(|viewer| !viewer.gone);
        let types = |viewer: &&Viewer| !viewer.silent;
        let there = |writer: &u64| {
            let mut viewers = self.viewers.iter().filter(types);
            viewers.any(|viewer| viewer.number == *writer)
        };
        self.writer = self.writer.filter(there);
    }

    /// Whether all viewers have seen everything.
    pub fn is_seen(&self) -> bool {
        self.viewers.iter().all(|viewer| viewer.queue.is_empty())
    }

    /// Parts from viewers who have seen everything.
    pub fn part(&mut self) {
        let viewers: Vec<u64> = self.sources().map(|(number, ..)| number).collect();
        for number in viewers {
            self.serve(number);
        }
        self.viewers.retain(|viewer| !viewer.queue.is_empty());
    }

    /// Lets the viewers read what is left, until `end` at most; one that waits
    /// for all of it is waited for.
    pub fn finish(&mut self, end: Instant) {
        loop {
            let viewers: Vec<u64> = self.sources().map(|(number, ..)| number).collect();
            for number in viewers {
                self.serve(number);
            }
            if self.is_seen() {
                return;
            }
            let waits = |viewer: &Viewer| viewer.patient && !viewer.queue.is_empty();
            let left = end.saturating_duration_since(Instant::now());
            let left = (!self.viewers.iter().any(waits)).then_some(left);
            let interests = self.sources();
            let interests =
                interests.map(|(number, fd, flags)| (number, fd, flags & PollFlags::OUT));
            let interests: Vec<_> = interests.filter(asked).collect();
            match ready(&interests, left) {
                Ok(ready) if !ready.is_empty() => {}
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

impl Viewer {
    fn push(&mut self, bytes: &[u8]) {
        if !self.patient && self.queue.len().saturating_add(bytes.len()) > BEHIND {
            self.skipped = self.skipped.saturating_add(self.queue.len());
            self.queue.clear();
            let notice = format!("\r\n[croft: {} bytes were skipped]\r\n", self.skipped);
            self.queue.extend(notice.as_bytes());
        }
        self.queue.extend(bytes);
    }

    /// Reads what it types, to nowhere if it does not write.
    fn read(&mut self, input: Option<&mut VecDeque<u8>>) {
        if self.silent {
            self.gone |= self.is_closed();
            return;
        }
        let mut buffer = [0; 4096];
        match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((count @ 1.., _)) => {
                if let Some(input) = input {
                    input.extend(buffer.iter().take(count));
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // It may still read.
            Ok(_) => {
                self.silent = true;
                self.gone = self.is_closed();
            }
            Err(_) => self.gone = true,
        }
    }

    /// Whether the other end is closed in both directions.
    fn is_closed(&self) -> bool {
        let mut wait = [PollFd::new(&self.socket, PollFlags::PRI)];
        match poll(&mut wait, Some(&Timespec::default())) {
            Ok(_) => wait
                .iter()
                .any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)),
            Err(_) => false,
        }
    }

    fn write(&mut self) {
        while !self.queue.is_empty() {
            let (first, _) = self.queue.as_slices();
            let first = first.get(..PIECE).unwrap_or(first);
            match send(
                &self.socket,
                first,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        self.skipped = 0;
    }
}

#[cfg(test)]
mod tests {
    use croft_api::pair;

    use super::*;

    fn console(place: &tempfile::TempDir) -> Console {
        Console::new(Some(Log::new(place.path(), "console.log", 1 << 20)))
    }

    fn read(socket: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; PIECE];
        while let Ok((count @ 1.., _)) = recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            all.extend(&buffer[..count]);
        }
        all
    }

    fn serve_all(console: &mut Console) {
        let all: Vec<u64> = console.sources().map(|(number, _, _)| number).collect();
        for number in all {
            console.serve(number);
        }
    }

    #[test]
    fn many_look_and_one_writes() {
        let place = tempfile::tempdir().unwrap();
        let mut console = console(&place);
        console.output(b"before ");
        let (a, far_a) = pair().unwrap();
        let (b, far_b) = pair().unwrap();
        let (c, far_c) = pair().unwrap();
        assert_eq!(console.attach(a, Writing::IfFree, None), Ok(true));
        assert_eq!(console.attach(b, Writing::IfFree, None), Ok(false));
        console.output(b"after");
        let type_all = || {
            for (far, text) in [(&far_a, b"a"), (&far_b, b"b")] {
                send(far, text, SendFlags::empty()).unwrap();
            }
        };
        type_all();
        serve_all(&mut console);
        assert_eq!(read(&far_a), b"before after");
        assert_eq!(read(&far_b), b"before after");
        assert_eq!(console.input, b"a");
        assert_eq!(console.attach(c, Writing::Take, None), Ok(true));
        type_all();
        send(&far_c, b"c", SendFlags::empty()).unwrap();
        serve_all(&mut console);
        assert_eq!(console.input, b"ac");
        // The writer's place is free when it has gone.
        drop(far_c);
        serve_all(&mut console);
        let (d, _far_d) = pair().unwrap();
        assert_eq!(console.attach(d, Writing::IfFree, None), Ok(true));
    }

    #[test]
    fn who_does_not_read_misses_some_and_holds_up_nobody() {
        let place = tempfile::tempdir().unwrap();
        let mut console = console(&place);
        let (slow, far_slow) = pair().unwrap();
        let (fast, far_fast) = pair().unwrap();
        console.attach(slow, Writing::No, None).unwrap();
        console.attach(fast, Writing::No, None).unwrap();
        let mut seen = 0;
        for _ in 0..200 {
            console.output(&[b'x'; PIECE]);
            serve_all(&mut console);
            seen += read(&far_fast).len();
            assert!(console.viewers.iter().all(|v| v.queue.len() <= BEHIND));
        }
        assert_eq!(seen, 200 * PIECE);
        assert!(console.scrollback.len() <= SCROLLBACK);
        let mut late = Vec::new();
        while !console.is_seen() {
            late.extend(read(&far_slow));
            serve_all(&mut console);
        }
        late.extend(read(&far_slow));
        let text = String::from_utf8(late).unwrap();
        assert!(text.contains("bytes were skipped]"));
        assert!(text.len() < seen);
    }

    #[test]
    fn the_past_is_cut_at_lines() {
        let place = tempfile::tempdir().unwrap();
        let mut console = console(&place);
        console.output(b"a\nb\nc\nd");
        for (lines, expected) in [(0, ""), (1, "d"), (2, "c\nd"), (9, "a\nb\nc\nd")] {
            assert_eq!(console.past(Some(lines)), expected.as_bytes(), "{lines}");
        }
        console.output(b"\n");
        assert_eq!(console.past(Some(1)), b"d\n");
    }

    #[test]
    fn there_is_no_crowd() {
        let place = tempfile::tempdir().unwrap();
        let mut console = console(&place);
        let mut far = Vec::new();
        for _ in 0..VIEWERS_MAX {
            let (near, other) = pair().unwrap();
            console.attach(near, Writing::No, None).unwrap();
            far.push(other);
        }
        let (near, _other) = pair().unwrap();
        assert!(console.attach(near, Writing::No, None).is_err());
        far.clear();
        serve_all(&mut console);
        assert!(console.viewers.is_empty());
    }
}
