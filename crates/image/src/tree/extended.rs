//! Extended headers of tar archives: pax's, and GNU's long names.
//!
//! The library's own handling of them takes as much memory as an archive says
//! it should, and no binary values; this takes a mebibyte at most.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Longest extended header in bytes.
const LONGEST: u64 = 1 << 20;
/// What pax has before the names of extended attributes.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// What the next entry's own header does not say.
#[derive(Debug, Default)]
pub struct Extended {
    /// Its path.
    pub path: Option<PathBuf>,
    /// Where it links to.
    pub link: Option<PathBuf>,
    /// Its length.
    pub size: Option<u64>,
    /// Its owner.
    pub uid: Option<u64>,
    /// Its group.
    pub gid: Option<u64>,
    /// When its contents were changed: seconds since 1970 and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Its extended attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// If it is a sparse file in one of pax's ways, what that says.
    pub sparse: Option<Sparse>,
}

/// What pax headers say of a sparse file (GNU tar's manual, "Storing Sparse
/// Files").
#[derive(Debug, Default)]
pub struct Sparse {
    /// Version of the format; from 1 on the map is before the data.
    pub major: u64,
    /// The file's path.
    pub name: Option<PathBuf>,
    /// Its length in bytes with its holes.
    pub size: Option<u64>,
    /// Where there is data, and how much: in turn.
    pub map: Vec<u64>,
}

impl Sparse {
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        let wrong = || "a sparse file's map is not made of numbers".to_owned();
        match key {
            "major" => self.major = number(value).ok_or_else(wrong)?,
            "name" => self.name = Some(path(value)),
            "size" | "realsize" => self.size = Some(number(value).ok_or_else(wrong)?),
            "offset" | "numbytes" => self.map.push(number(value).ok_or_else(wrong)?),
            "map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                self.map = numbers.collect::<Option<_>>().ok_or_else(wrong)?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Extended {
    /// Takes a pax header.
    pub fn pax(&mut self, reader: impl Read) -> Result<(), String> {
        let bytes = bounded(reader)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, after) = record(rest).ok_or("a pax header is not made of records")?;
            rest = after;
            match key {
                "path" => self.path = Some(path(value)),
                "linkpath" => self.link = Some(path(value)),
                "size" => self.size = number(value),
                "uid" => self.uid = number(value),
                "gid" => self.gid = number(value),
                "mtime" => self.mtime = time(value),
                _ => {
                    if let Some(field) = key.strip_prefix("GNU.sparse.") {
                        self.sparse.get_or_insert_default().set(field, value)?;
                    } else if let Some(name) = key.strip_prefix(ATTRIBUTE)
                        && kept(name)
                    {
                        self.attributes.insert(name.to_owned(), value.to_owned());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes GNU's long path.
    pub fn gnu_path(&mut self, reader: impl Read) -> Result<(), String> {
        self.path = Some(path(&until_zero(bounded(reader)?)));
        Ok(())
    }

    /// Takes GNU's long link.
    pub fn gnu_link(&mut self, reader: impl Read) -> Result<(), String> {
        self.link = Some(path(&until_zero(bounded(reader)?)));
        Ok(())
    }
}

/// The first record of a pax header - key and value - and what comes after it:
/// its own length in decimal, a space, key, `=`, value, a line feed (POSIX
/// pax, "pax Extended Header"). The value can be any bytes, so the library's
/// parser, which looks for line feeds, does not do.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    // Twenty digits are more than any length in memory has.
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let (digits, _) = bytes.split_at_checked(space)?;
    let length = usize::try_from(number(digits)?).ok()?;
    let (whole, after) = bytes.split_at_checked(length)?;
    let whole = whole.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = whole.iter().position(|byte| *byte == b'=')?;
    let (key, value) = whole.split_at_checked(equals)?;
    Some((str::from_utf8(key).ok()?, value.get(1..)?, after))
}

/// A time in decimal, as `1700000000.25`.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // Of a time before 1970 the fraction goes the other way; it is left out.
    let before = whole.starts_with('-');
    Some((seconds, if before { 0 } else { nanoseconds }))
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether an extended attribute means the same on every host: capabilities,
/// and what users set. Labels and what overlays leave do not.
fn kept(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 255
        && name.chars().all(plain)
        && (name == "security.capability"
            || (name.starts_with("user.") && !name.starts_with("user.overlay.")))
}

fn bounded(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reader
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("an extended header: {error}"))?;
    if bytes.len() as u64 > LONGEST {
        return Err("an extended header is longer than a mebibyte".to_owned());
    }
    Ok(bytes)
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_long_as_they_say() {
        let bytes = b"8 k=a\nb\n6 x=y\n";
        let (key, value, rest) = record(bytes).unwrap();
        assert_eq!((key, value, rest), ("k", &b"a\nb"[..], &b"6 x=y\n"[..]));
        for bad in [
            &b"9 k=a\n"[..],
            b"0 k=a\n",
            b"3 k\n",
            b"4 k\n=",
            b"x k=a\n",
            b"99999999999999999999 k=a\n",
            b"6k=ab\n",
            b"\n",
        ] {
            assert_eq!(record(bad), None, "{bad:?}");
        }
    }
}
