//! AppArmor profiles, where the host's kernel has them.
//!
//! A profile is loaded by the host's own tools (apparmor_parser(8)); a process
//! takes one on when it executes the next program.

use std::fs;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};

/// Where the kernel says whether it is switched on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The list of what is loaded, `NAME (MODE)` on each line; root's alone.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where a thread says which profile it takes on: since Linux 5.8 AppArmor has
/// a directory of its own, besides the one that all security modules share.
const EXEC: [&str; 2] = [
    "/proc/thread-self/attr/apparmor/exec",
    "/proc/thread-self/attr/exec",
];
/// The longest name of a profile taken here: the kernel reads a page at most.
const LONGEST: usize = 1024;

/// A failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has none.
    #[error("the AppArmor profile {0:?} cannot be used: AppArmor is not enabled on this host")]
    Disabled(String),
    /// Nobody has loaded it.
    #[error(
        "the AppArmor profile {0:?} is not loaded on this host: load it with apparmor_parser -r"
    )]
    NotLoaded(String),
    /// No name of a profile.
    #[error("{0:?} is no name of an AppArmor profile")]
    Name(String),
}

/// A profile that can be taken on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `exec NAME`: what is written.
    line: Vec<u8>,
}

/// Whether the kernel has it and it is switched on.
pub fn enabled() -> bool {
    fs::read(ENABLED).is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// The profile of this name, if it can be used; `unconfined` can wherever
/// there is AppArmor.
pub fn profile(name: &str) -> Result<Profile, Error> {
    let odd = |letter: char| letter.is_control();
    if name.is_empty() || name.len() > LONGEST || name.contains(odd) {
        return Err(Error::Name(name.to_owned()));
    }
    if !enabled() {
        return Err(Error::Disabled(name.to_owned()));
    }
    // Who may not read the list learns it from the kernel, when the profile
    // is taken on.
    if name != "unconfined" && fs::read_to_string(PROFILES).is_ok_and(|list| !has(&list, name)) {
        return Err(Error::NotLoaded(name.to_owned()));
    }
    Ok(Profile {
        line: format!("exec {name}").into_bytes(),
    })
}

fn has(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let loaded = line.rsplit_once(" (").map_or(line, |(name, _)| name);
        loaded == name
    })
}

impl Profile {
    /// This thread takes it on with the next program that it executes. `/proc`
    /// has to be mounted. It allocates nothing.
    ///
    /// # Errors
    /// `ENOENT` for a profile that is not loaded, `EACCES` where the present
    /// one does not allow the change.
    pub fn on_exec(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let [new, old] = EXEC;
        let file = match openat(CWD, new, flags, Mode::empty()) {
            Err(Errno::NOENT) => openat(CWD, old, flags, Mode::empty())?,
            result => result?,
        };
        match write(&file, &self.line)? {
            written if written == self.line.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_looked_for() {
        let list = "docker-default (enforce)\n/usr/bin/man (x) (complain)\n";
        assert!(has(list, "docker-default") && has(list, "/usr/bin/man (x)"));
        assert!(!has(list, "docker"));
        assert!(matches!(profile("a\nb"), Err(Error::Name(_))));
        if !enabled() {
            let error = profile("docker-default").unwrap_err().to_string();
            assert!(error.contains("not enabled"), "{error}");
        }
    }
}
