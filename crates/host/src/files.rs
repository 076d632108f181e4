//! Small files that are whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest file that is read, in bytes. Configurations are a few kilobytes.
const LENGTH_MAX: u64 = 1 << 20;

/// Writes `value` as JSON to `name` in `directory`: whoever looks sees what
/// was there before or all of it, after a power failure too.
pub fn write_json<T: Serialize>(directory: &Path, name: &str, value: &T) -> io::Result<()> {
    replace(directory, name, value, true)
}

/// The same, but for power failures: without waiting for the disk, for what is
/// no longer so after one.
pub fn write_passing_json<T: Serialize>(directory: &Path, name: &str, value: &T) -> io::Result<()> {
    replace(directory, name, value, false)
}

fn replace<T: Serialize>(directory: &Path, name: &str, value: &T, lasting: bool) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    // Whoever writes has the directory's lock: there is no second one.
    let new = directory.join(format!(".{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&json)?;
    if lasting {
        file.sync_data()?;
    }
    fs::rename(&new, directory.join(name))
}

/// Reads JSON.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut json = Vec::new();
    File::open(path)?.take(LENGTH_MAX).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Brings the names in a directory to stable storage.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Milliseconds after 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
