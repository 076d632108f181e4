//! Values of options, checked.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use croft_api::monitor::{GdbAddress, RunShare};
use croft_host::{InstanceName, NameError};

use crate::size;

/// Longest command line that the boot protocols in use can carry is far
/// above Linux's own limit of 2048 on x86 (COMMAND_LINE_SIZE).
const APPEND_MAX: usize = 2047;
/// Most vCPUs that can be asked for; APIC ids are 8 bits wide and 255 is the
/// broadcast. Engines may allow fewer.
const CPUS_MAX: u32 = 254;

/// A kernel command line.
pub fn parse_append(text: &str) -> Result<String, String> {
    if text.len() > APPEND_MAX {
        Err(format!(
            "{} bytes, Linux takes at most {APPEND_MAX}; shorten it",
            text.len()
        ))
    } else if text.chars().any(char::is_control) {
        Err("it has control characters; remove them".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Room for translated code in bytes.
pub fn parse_code_cache(text: &str) -> Result<u64, String> {
    size::parse(text).and_then(|size| {
        let fits = (1 << 20..=1 << 30).contains(&size);
        fits.then_some(size)
            .ok_or_else(|| "give 1M to 1G".to_owned())
    })
}

/// A number of vCPUs.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=CPUS_MAX).contains(count))
        .ok_or_else(|| format!("give a number from 1 to {CPUS_MAX}"))
}

/// Most bytes of a share's tag (virtio 1.2, 5.11.4).
const TAG_MAX: usize = 36;

/// A share: `HOST:TAG[,readonly]`.
pub fn parse_share(text: OsString) -> Result<RunShare, String> {
    let bytes = text.as_bytes();
    let (rest, read_only) = match bytes.strip_suffix(b",readonly") {
        Some(rest) => (rest, true),
        None => (bytes, false),
    };
    let colon = rest.iter().rposition(|byte| *byte == b':');
    let (path, tag) = match colon.map(|at| rest.split_at(at)) {
        Some((path, [_, tag @ ..])) if !path.is_empty() => (path, tag),
        _ => return Err("give a directory, a colon and a tag, as in /srv/data:data".to_owned()),
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if tag.is_empty() || tag.len() > TAG_MAX || !tag.iter().all(plain) {
        return Err(format!(
            "the tag has 1 to {TAG_MAX} letters, digits, '-', '_' and '.'"
        ));
    }
    Ok(RunShare {
        path: OsStr::from_bytes(path).to_owned(),
        tag: String::from_utf8_lossy(tag).into_owned(),
        read_only,
    })
}

/// An instance's name.
pub fn parse_name(text: &str) -> Result<String, NameError> {
    text.parse::<InstanceName>().map(|name| name.to_string())
}

/// A port or the path of a socket.
pub fn parse_gdb(text: &str) -> Result<GdbAddress, String> {
    if text.is_empty() {
        Err("give a port or the path of a socket".to_owned())
    } else if text.chars().all(|c| c.is_ascii_digit()) {
        text.parse()
            .map(GdbAddress::Port)
            .map_err(|_| "give a port from 0 to 65535".to_owned())
    } else {
        Ok(GdbAddress::Socket(text.into()))
    }
}

/// A console port's name and the path of its socket.
pub fn parse_port(text: OsString) -> Result<(String, OsString), String> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let (name, path) = at.map_or((bytes, &b""[..]), |at| {
        let (name, rest) = bytes.split_at(at);
        (name, rest.get(1..).unwrap_or_default())
    });
    let name = str::from_utf8(name).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !name.chars().all(plain) || path.is_empty() {
        return Err(
            "give a name of letters, digits, '.', '-' and '_', then '=' and the path of a socket"
                .to_owned(),
        );
    }
    Ok((name.to_owned(), OsStr::from_bytes(path).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert!(parse_cpus("1").is_ok());
        for bad in ["0", "-1", "255", "4294967297", "x", ""] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_code_cache("2M"), Ok(2 << 20));
        for bad in ["0M", "1023K", "1025M", "64", ""] {
            assert!(parse_code_cache(bad).is_err(), "{bad}");
        }
        assert!(parse_name("web-1.test").is_ok());
        for bad in ["", "-x", "a b", "a/b", "ü"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_gdb("1234"), Ok(GdbAddress::Port(1234)));
        assert_eq!(parse_gdb("./gdb"), Ok(GdbAddress::Socket("./gdb".into())));
        assert!(parse_gdb("70000").is_err());
        let share = |text: &str| parse_share(text.into());
        let given = share("/a:b:c-1,readonly").unwrap();
        assert!(given.read_only && given.path == "/a:b" && given.tag == "c-1");
        assert!(!share("a:b").unwrap().read_only);
        let long = format!("/a:{}", "x".repeat(37));
        for bad in ["", "/a", ":b", "/a:", "/a:b c", "/a:b,ro", &long] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert!(parse_append(&"x".repeat(2048)).is_err());
        assert!(parse_append("a\nb").is_err());
    }
}
