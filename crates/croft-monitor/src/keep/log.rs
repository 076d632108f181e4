//! A log that stays small: one file and the one before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that is appended to, and begun anew when it is full. What was in it
/// is then in a second file, `NAME.1`, until that is replaced in turn.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    before: PathBuf,
    /// Most bytes of each file.
    limit: u64,
    /// Open, and how long it is. None after a failure: the next line tries
    /// again.
    file: Option<(File, u64)>,
}

impl Log {
    /// At `name` in `directory`.
    pub fn new(directory: &Path, name: &str, limit: u64) -> Self {
        Log {
            path: directory.join(name),
            before: directory.join(format!("{name}.1")),
            limit,
            file: None,
        }
    }

    /// Appends, as far as the host lets it: a disk that is full is no reason
    /// to stop a machine.
    pub fn append(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(usize::try_from(self.limit).unwrap_or(usize::MAX).max(1)) {
            if self.try_append(piece).is_err() {
                self.file = None;
            }
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let added = bytes.len() as u64;
        let (file, length) = match self.file.take() {
            Some((file, length)) => (file, length),
            None => self.open()?,
        };
        let (mut file, length) = if length.saturating_add(added) > self.limit {
            drop(file);
            fs::rename(&self.path, &self.before)?;
            self.open()?
        } else {
            (file, length)
        };
        file.write_all(bytes)?;
        self.file = Some((file, length.saturating_add(added)));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_the_latest() {
        let place = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(place.path().join(name)).unwrap();
        for _ in 0..2 {
            let mut log = Log::new(place.path(), "log", 10);
            log.append(b"12345");
        }
        assert_eq!(read("log"), "1234512345");
        let mut log = Log::new(place.path(), "log", 10);
        log.append(b"abc");
        assert_eq!(
            (read("log.1").as_str(), read("log").as_str()),
            ("1234512345", "abc")
        );
        log.append(b"defghijklmnopqrstuvwxyz");
        assert_eq!(read("log.1").len(), 10);
        assert_eq!(read("log"), "xyz");
        // A directory that comes back is used again.
        let moved = place.path().join("moved");
        fs::create_dir(&moved).unwrap();
        let mut log = Log::new(&moved.join("later"), "log", 10);
        log.append(b"lost");
        fs::create_dir(moved.join("later")).unwrap();
        log.append(b"kept");
        assert_eq!(fs::read(moved.join("later/log")).unwrap(), b"kept");
    }
}
