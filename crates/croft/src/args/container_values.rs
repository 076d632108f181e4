//! Values of a container's options, checked.

use std::path::PathBuf;
use std::str::FromStr;

use croft_api::container::{CPU, Device, Seccomp, Tmpfs, Volume, VolumeSource};
use nix::sys::signal::Signal;

use crate::size;

/// Most processors' time, in thousandths.
const CPUS_MAX: u64 = 1_024_000;
/// Longest host name (HOST_NAME_MAX, hostname(7)).
const HOSTNAME_MAX: usize = 64;
/// The first and the last real-time signal, as the C library counts (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
/// What has no limit (getrlimit(2), RLIM_INFINITY).
const UNLIMITED: u64 = u64::MAX;

/// Processors' time in thousandths of one: `1.5`.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    let wrong = || "give a number of processors, 0.001 or more, as 1.5".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(wrong());
    }
    let number = |text: &str| match text {
        "" => Ok(0),
        text => u64::from_str(text).map_err(|_| wrong()),
    };
    let thousandths = number(&format!("{part:0<3}"))?;
    let all = number(whole)?
        .checked_mul(u64::from(CPU))
        .and_then(|all| all.checked_add(thousandths))
        .filter(|all| (1..=CPUS_MAX).contains(all));
    all.and_then(|all| u32::try_from(all).ok())
        .ok_or_else(wrong)
}

/// A share: 1 to 10000.
pub fn parse_weight(text: &str) -> Result<u16, String> {
    let weight = text
        .parse()
        .ok()
        .filter(|weight| (1..=10_000).contains(weight));
    weight.ok_or_else(|| "give a number from 1 to 10000; 100 is usual".to_owned())
}

/// A list of processors: `0-3,6`.
pub fn parse_cpuset(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u16>().ok();
    let part = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(a, b)| a <= b),
        None => number(part).is_some(),
    };
    if text.split(',').all(part) {
        Ok(text.to_owned())
    } else {
        Err("give numbers and ranges of processors, as 0-3,6".to_owned())
    }
}

/// Swap: a size, and 0 is one too.
pub fn parse_swap(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        text => size::parse(text),
    }
}

/// A variable; one without a value is croft's own.
pub fn parse_env(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("", _)) => Err("give NAME=VALUE".to_owned()),
        Some(_) => Ok(text.to_owned()),
        None if text.is_empty() => Err("give NAME=VALUE, or the NAME of one to pass on".to_owned()),
        // As docker: what is not set here is not set there.
        None => {
            Ok(std::env::var(text)
                .map_or_else(|_| text.to_owned(), |value| format!("{text}={value}")))
        }
    }
}

/// A user and perhaps a group.
pub fn parse_user(text: &str) -> Result<String, String> {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    if text.is_empty() || !text.chars().all(plain) || text.matches(':').count() > 1 {
        return Err("give a user, or a user and a group: web, 33, web:www, 33:33".to_owned());
    }
    Ok(text.to_owned())
}

/// A host's name.
pub fn parse_hostname(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let fits = (1..=HOSTNAME_MAX).contains(&text.len()) && text.chars().all(plain);
    if fits && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "use 1 to {HOSTNAME_MAX} letters, digits, '-' and '.', a letter or digit first"
    ))
}

/// A signal by its name or number: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| -> Option<i32> {
        let offset = match rest {
            "" => 0,
            rest => {
                let digits = rest.strip_prefix(if sign > 0 { '+' } else { '-' })?;
                i32::from(digits.parse::<u8>().ok()?)
            }
        };
        Some(base + sign * offset).filter(|number| REAL_TIME.contains(number))
    };
    let number = if let Ok(number) = short.parse::<i32>() {
        Some(number).filter(|number| (1..=*REAL_TIME.end()).contains(number))
    } else if let Some(rest) = short.strip_prefix("RTMIN") {
        real_time(rest, *REAL_TIME.start(), 1)
    } else if let Some(rest) = short.strip_prefix("RTMAX") {
        real_time(rest, *REAL_TIME.end(), -1)
    } else {
        Signal::from_str(&format!("SIG{short}"))
            .ok()
            .map(|signal| signal as i32)
    };
    number.ok_or_else(|| "give a signal: TERM, SIGHUP, 9, SIGRTMIN+3".to_owned())
}

/// A path in a container: absolute, and without going up.
fn inside(path: &str) -> Result<String, String> {
    let up = path.split('/').any(|part| part == "..");
    if !path.starts_with('/') || up || path.chars().any(char::is_control) {
        return Err(format!(
            "'{}' is no absolute path in the container",
            path.escape_debug()
        ));
    }
    if path.trim_matches('/').is_empty() {
        return Err("it cannot be the container's root".to_owned());
    }
    Ok(path.to_owned())
}

/// A volume: `SOURCE:PATH[:ro]`. What has a slash is a path of the host's,
/// else it is a volume's name.
pub fn parse_volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(destination), access, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(
            "give a source and a path in the container: /srv/data:/data, data:/data:ro".to_owned(),
        );
    };
    let read_only = match access {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => {
            return Err(format!("'{}' is neither ro nor rw", other.escape_debug()));
        }
    };
    let source = if source.contains('/') || source == "." {
        VolumeSource::Path(PathBuf::from(source))
    } else {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let starts = source.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || source.len() > 63 || !source.chars().all(plain) {
            return Err(
                "a volume's name has 1 to 63 letters, digits, '-', '_' and '.'; a path has a '/'"
                    .to_owned(),
            );
        }
        VolumeSource::Named(source.to_owned())
    };
    Ok(Volume {
        source,
        destination: inside(destination)?,
        read_only,
    })
}

/// A directory in memory: `PATH[:OPTION,...]`.
pub fn parse_tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let known = |option: &&str| {
        let name = option.split('=').next().unwrap_or_default();
        [
            "size",
            "mode",
            "nr_inodes",
            "ro",
            "rw",
            "noexec",
            "exec",
            "uid",
            "gid",
        ]
        .contains(&name)
    };
    let options: Vec<&str> = options
        .split(',')
        .filter(|option| !option.is_empty())
        .collect();
    if let Some(other) = options.iter().find(|option| !known(option)) {
        return Err(format!(
            "'{}' is no option of it; there are size, mode, nr_inodes, ro, noexec, uid and gid",
            other.escape_debug()
        ));
    }
    Ok(Tmpfs {
        destination: inside(path)?,
        options: options.into_iter().map(str::to_owned).collect(),
    })
}

/// A device: `SOURCE[:PATH[:rwm]]`.
pub fn parse_device(text: &str) -> Result<Device, String> {
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    let destination = parts.next().unwrap_or(source);
    let access = parts.next().unwrap_or("rwm");
    let known = !access.is_empty() && access.bytes().all(|byte| b"rwm".contains(&byte));
    if parts.next().is_some() || !known || access.len() > 3 {
        return Err("give a device, as /dev/fuse, /dev/sda:/dev/xvda:r".to_owned());
    }
    Ok(Device {
        source: PathBuf::from(inside(source)?),
        destination: inside(destination)?,
        access: access.to_owned(),
    })
}

/// A capability's name.
pub fn parse_capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let plain = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    if short.is_empty() || !short.bytes().all(plain) {
        return Err("give a capability's name, as NET_ADMIN (capabilities(7))".to_owned());
    }
    Ok(short.to_owned())
}

/// Which system calls.
pub fn parse_seccomp(text: &str) -> Result<Seccomp, String> {
    match text {
        "default" => Ok(Seccomp::Default),
        "unconfined" => Ok(Seccomp::Unconfined),
        "" => Err("give default, unconfined, or a file".to_owned()),
        path => Ok(Seccomp::Profile(PathBuf::from(path))),
    }
}

/// A limit of processes: `NAME=SOFT[:HARD]`.
pub fn parse_rlimit(text: &str) -> Result<(String, (u64, u64)), String> {
    let wrong = || "give a limit of processes, as nofile=1024:4096 or core=unlimited".to_owned();
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(UNLIMITED),
        text => text.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = (value(soft)?, value(hard)?);
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    if !plain || soft > hard {
        return Err(wrong());
    }
    Ok((name.to_owned(), (soft, hard)))
}

/// A kernel setting: `NAME=VALUE`, of those that are a namespace's own.
pub fn parse_sysctl(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("give NAME=VALUE, as net.core.somaxconn=1024")?;
    let own = [
        "net.",
        "fs.mqueue.",
        "kernel.msg",
        "kernel.sem",
        "kernel.shm",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if !own.iter().any(|prefix| name.starts_with(prefix))
        || !name.chars().all(plain)
        || name.contains("..")
    {
        return Err(format!(
            "'{}' is not a container's own; net.*, fs.mqueue.* and kernel.{{msg,sem,shm}}* are",
            name.escape_debug()
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_thousandths() {
        for (text, expected) in [
            ("1", 1000),
            ("1.5", 1500),
            (".25", 250),
            ("0.001", 1),
            ("12.", 12_000),
        ] {
            assert_eq!(parse_cpus(text), Ok(expected), "{text}");
        }
        for bad in [
            "", ".", "0", "0.0", "-1", "1.2345", "1e3", "99999", "x", "1.x",
        ] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("sighup", 1),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for bad in [
            "", "0", "65", "-9", "SIGNONE", "RTMIN+31", "RTMAX+1", "RTMIN3", "RTMIN-1",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_are_paths_or_names() {
        let volume = parse_volume("/srv/a:/data:ro").unwrap();
        assert!(volume.read_only && volume.source == VolumeSource::Path("/srv/a".into()));
        let volume = parse_volume("db:/var/lib/db").unwrap();
        assert_eq!(volume.source, VolumeSource::Named("db".to_owned()));
        for bad in [
            "",
            "/a",
            "/a:b",
            "/a:/../b",
            "/a:/",
            ":/b",
            "/a:/b:rx",
            "/a:/b:ro:x",
            "-a:/b",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_values_are_checked() {
        assert!(parse_tmpfs("/run:size=1m,mode=700").is_ok());
        assert!(parse_tmpfs("/run:suid").is_err());
        assert_eq!(parse_device("/dev/fuse").unwrap().destination, "/dev/fuse");
        assert_eq!(parse_device("/dev/a:/dev/b:r").unwrap().access, "r");
        for bad in ["fuse", "/dev/a:/dev/b:x", "/dev/a:/b:r:w", "/dev/a:/b:"] {
            assert!(parse_device(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_capability("cap_net_admin").unwrap(), "NET_ADMIN");
        assert!(parse_capability("net-admin").is_err());
        assert_eq!(
            parse_rlimit("nofile=1:2"),
            Ok(("nofile".to_owned(), (1, 2)))
        );
        assert_eq!(
            parse_rlimit("core=unlimited").unwrap().1,
            (u64::MAX, u64::MAX)
        );
        for bad in ["nofile", "nofile=2:1", "=1", "nofile=x"] {
            assert!(parse_rlimit(bad).is_err(), "{bad}");
        }
        assert!(parse_sysctl("net.core.somaxconn=1").is_ok());
        for bad in [
            "kernel.core_pattern=x",
            "net.a",
            "net...=1",
            "kernel.panic=1",
        ] {
            assert!(parse_sysctl(bad).is_err(), "{bad}");
        }
        assert!(parse_cpuset("0-3,6").is_ok());
        for bad in ["", "3-0", "a", "1,"] {
            assert!(parse_cpuset(bad).is_err(), "{bad}");
        }
        assert!(parse_user("web:www").is_ok());
        for bad in ["", "a b", "a:b:c", "a/b"] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
        assert!(parse_hostname("web-1.test").is_ok() && parse_hostname("-a").is_err());
        assert_eq!(parse_env("A=b=c"), Ok("A=b=c".to_owned()));
        assert!(parse_env("=b").is_err());
        assert_eq!((parse_swap("0"), parse_swap("1M")), (Ok(0), Ok(1 << 20)));
    }
}
