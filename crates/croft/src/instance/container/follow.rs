//! `croft logs` and `croft wait` of containers.
//!
//! What a container prints is in two files of records, of which the older one
//! goes when the newer one is full (the monitor's `records.rs` has the form).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use croft_api::Outcome;
use croft_api::control::Event;
use croft_host::{Client, ClientError, InstanceName, Instances};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::args::instance::LogsOptions;
use crate::exit::Exit;
use crate::instance::Fault;
use crate::print;

/// The newer file.
const LOG: &str = "console.log";
/// Bytes read at once.
const PIECE: usize = 64 << 10;
/// How often it is looked whether the container still lives.
const LOOK: Duration = Duration::from_secs(1);

/// Prints what a container has printed: each stream to its own.
pub fn logs(
    instances: &Instances,
    name: &InstanceName,
    options: &LogsOptions,
) -> Result<Exit, Fault> {
    let directory = instances.directories().instance(name);
    let failed = |error: io::Error| Fault::failed(format!("{LOG}: {error}")).of(name);
    // Watched before it is read, so that nothing is missed in between.
    let watch = match options.follow {
        true => Some(watch(&directory).map_err(failed)?),
        false => None,
    };
    let mut printer = Printer {
        timestamps: options.timestamps,
        continues: [false; 2],
    };
    let mut reader = Reader::new(directory);
    let past = reader.read().map_err(failed)?;
    let past = match options.lines {
        Some(lines) => last_lines(&past, lines),
        None => &past,
    };
    printer.print(past).map_err(failed)?;
    let Some(watch) = watch else {
        return Ok(Exit::PowerOff);
    };
    loop {
        // Asked first: what it printed last is read afterwards.
        let live = instances
            .status(name)
            .is_ok_and(|status| status.phase.is_live());
        let more = match reader.read() {
            Ok(more) => more,
            // It is deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Exit::PowerOff),
            Err(error) => return Err(failed(error)),
        };
        printer.print(&more).map_err(failed)?;
        if !live {
            return Ok(Exit::PowerOff);
        }
        if more.is_empty() {
            wait_for(&watch).map_err(failed)?;
        }
    }
}

fn watch(directory: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags)?;
    let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&watch, directory, what)?;
    Ok(watch)
}

/// Until something in the directory changes.
fn wait_for(watch: &OwnedFd) -> io::Result<()> {
    let timeout = Timespec::try_from(LOOK).unwrap_or_default();
    let mut wait = [PollFd::new(watch, PollFlags::IN)];
    match poll(&mut wait, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|count| count > 0) {}
    Ok(())
}

/// Reads records, whole ones, through both files.
struct Reader {
    directory: PathBuf,
    /// The newer file, and how far it is read.
    file: Option<File>,
    rest: Vec<u8>,
}

impl Reader {
    fn new(directory: PathBuf) -> Self {
        Reader {
            directory,
            file: None,
            rest: Vec::new(),
        }
    }

    /// What is new: all there is, the first time.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut text = std::mem::take(&mut self.rest);
        if self.file.is_none() {
            append(
                open(&self.directory.join(format!("{LOG}.1")))?.as_mut(),
                &mut text,
            )?;
            self.file = open(&self.directory.join(LOG))?;
        }
        loop {
            append(self.file.as_mut(), &mut text)?;
            // Another one has taken its place: this one does not grow any more.
            let next = open(&self.directory.join(LOG))?;
            match (&self.file, next) {
                (Some(file), Some(next)) if !is_same(file, &next)? => {
                    append(self.file.as_mut(), &mut text)?;
                    self.file = Some(next);
                }
                (None, Some(next)) => self.file = Some(next),
                _ => break,
            }
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end.saturating_add(1));
        self.rest = text.split_off(whole);
        Ok(text)
    }
}

fn open(path: &std::path::Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn append(file: Option<&mut File>, text: &mut Vec<u8>) -> io::Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
        // A file never shrinks; one that does is read from where it is.
        let at = file.stream_position()?;
        if file.metadata()?.len() < at {
            file.seek(SeekFrom::End(0))?;
        }
    }
}

/// The records of the last lines, of both streams together.
fn last_lines(records: &[u8], lines: usize) -> &[u8] {
    let all: Vec<&[u8]> = records.split_inclusive(|byte| *byte == b'\n').collect();
    let mut count = 0;
    let mut length = 0;
    for (index, record) in all.iter().rev().enumerate() {
        let ends = Record::new(record).is_some_and(|record| record.whole);
        // One that is not ended yet is a line too.
        if ends || index == 0 {
            count += 1;
        }
        if count > lines {
            break;
        }
        length += record.len();
    }
    records
        .get(records.len().saturating_sub(length)..)
        .unwrap_or_default()
}

/// A record.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a [u8],
    /// Of standard error.
    error: bool,
    /// It ends its line.
    whole: bool,
    text: &'a [u8],
}

impl<'a> Record<'a> {
    fn new(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = parts.next()?;
        let error = match parts.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Record {
            time,
            error,
            whole,
            text: parts.next()?,
        })
    }
}

/// Prints records as what they were.
struct Printer {
    timestamps: bool,
    /// A line of the stream is begun.
    continues: [bool; 2],
}

impl Printer {
    fn print(&mut self, records: &[u8]) -> io::Result<()> {
        let mut texts = [Vec::new(), Vec::new()];
        let mut last = 0;
        for line in records.split_inclusive(|byte| *byte == b'\n') {
            let Some(record) = Record::new(line) else {
                continue;
            };
            let stream = usize::from(record.error);
            if stream != last {
                // In the order in which they were printed.
                flush(&mut texts)?;
                last = stream;
            }
            let [out, err] = &mut texts;
            let text = if record.error { err } else { out };
            let [out, err] = &mut self.continues;
            let continues = if record.error { err } else { out };
            if self.timestamps && !*continues {
                text.extend_from_slice(record.time);
                text.push(b' ');
            }
            text.extend_from_slice(record.text);
            if record.whole {
                text.push(b'\n');
            }
            *continues = !record.whole;
        }
        flush(&mut texts)
    }
}

fn flush([out, err]: &mut [Vec<u8>; 2]) -> io::Result<()> {
    if !out.is_empty() {
        let mut stdout = io::stdout();
        stdout.write_all(out)?;
        stdout.flush()?;
        out.clear();
    }
    if !err.is_empty() {
        io::stderr().write_all(err)?;
        err.clear();
    }
    Ok(())
}

/// Waits until a container has ended, and prints its exit code.
pub fn wait(
    instances: &Instances,
    name: &InstanceName,
    patience: Option<Duration>,
) -> Result<Exit, Fault> {
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut status = instances.status(name)?;
    if status.phase.is_live()
        && let Ok(mut client) = Client::connect(&instances.directories().socket(name))
    {
        client.watch()?;
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match client.next(left) {
                Ok(Some(Event::Status(new))) => status = *new,
                Ok(Some(_)) => {}
                Ok(None) => return Err(Fault::timeout("it has not ended in time").of(name)),
                Err(ClientError::Gone) => break,
                Err(error) => return Err(Fault::from(error).of(name)),
            }
        }
    }
    if status.phase.is_live() {
        // It may have ended between the look at it and the connection.
        status = instances.status(name)?;
    }
    if status.phase.is_live() {
        return Err(Fault::failed("its monitor died").of(name));
    }
    let code = match status.outcome {
        Some(Outcome::Exited { status } | Outcome::NotExecuted { status, .. }) => status,
        Some(Outcome::Killed { signal, .. }) => signal.saturating_add(128),
        Some(Outcome::Invalid { .. } | Outcome::Failed { .. }) => {
            crate::instance::guest::NOT_STARTED
        }
        Some(_) | None => 0,
    };
    Ok(print(format!("{code}\n").as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const RECORDS: &[u8] = b"t1 stdout F one\nt2 stderr P tw\nt3 stderr F o\nt4 stdout P thr\n";

    #[test]
    fn records_are_read_and_nonsense_is_passed_by() {
        let record = Record::new(b"t stderr P a b\n").unwrap();
        assert!(record.error && !record.whole);
        assert_eq!(record.text, b"a b");
        assert_eq!(Record::new(b"t stdout F \n").unwrap().text, b"");
        for bad in [
            &b"t stdout X a\n"[..],
            b"t stdin F a\n",
            b"t stdout\n",
            b"\n",
        ] {
            assert_eq!(Record::new(bad), None);
        }
    }

    #[test]
    fn the_last_lines_are_whole_ones() {
        for (lines, skipped) in [(0, RECORDS.len()), (1, 45), (2, 16), (3, 0), (9, 0)] {
            assert_eq!(last_lines(RECORDS, lines), &RECORDS[skipped..], "{lines}");
        }
    }

    #[test]
    fn nothing_is_lost_when_a_file_is_full() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join(LOG);
        let mut reader = Reader::new(place.path().to_owned());
        assert!(reader.read().unwrap().is_empty());
        fs::write(&log, "a\nb").unwrap();
        assert_eq!(reader.read().unwrap(), b"a\n");
        fs::write(&log, "a\nb\nc\n").unwrap();
        fs::rename(&log, place.path().join("console.log.1")).unwrap();
        fs::write(&log, "d\n").unwrap();
        assert_eq!(reader.read().unwrap(), b"b\nc\nd\n");
        assert!(reader.read().unwrap().is_empty());
        let mut late = Reader::new(place.path().to_owned());
        assert_eq!(late.read().unwrap(), b"a\nb\nc\nd\n");
    }
}
