//! How a distribution's packages are installed by somebody who is not root.

use std::fmt;
use std::fs;
use std::str::FromStr;

use rustix::process::geteuid;

use super::recipe::Release;
use crate::{Error, program};

/// A way for mmdebstrap to be root, or to seem so to packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Root,
    /// In a user namespace with subordinate ids.
    Unshare,
    /// By preloaded libraries, which works for releases with the host's own C
    /// library.
    Fakechroot,
}

impl Mode {
    /// The first that works here for a release; otherwise what would make one
    /// work.
    pub fn choose(release: Release) -> Result<Mode, Error> {
        if geteuid().is_root() {
            return Ok(Mode::Root);
        }
        if has_subordinate_ids() && program::find("newuidmap").is_some() {
            return Ok(Mode::Unshare);
        }
        let preload = ["fakechroot", "fakeroot"];
        let same = host_suite().as_deref() == Some(release.suite);
        if same && preload.iter().all(|name| program::find(name).is_some()) {
            return Ok(Mode::Fakechroot);
        }
        let suite = release.suite;
        let remedy = if same {
            "as root, once: apt-get install fakechroot fakeroot".to_owned()
        } else {
            format!(
                "as root, once: apt-get install uidmap && usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 {}",
                std::env::var("USER").unwrap_or_else(|_| "USER".to_owned())
            )
        };
        Err(Error::Unfit(format!(
            "packages of {suite} cannot be installed by this user here; {remedy}; or build as \
             root, 'croft image export' the image, and import it as this user"
        )))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Root => "root",
            Mode::Unshare => "unshare",
            Mode::Fakechroot => "fakechroot",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        [Mode::Root, Mode::Unshare, Mode::Fakechroot]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| "give root, unshare or fakechroot".to_owned())
    }
}

/// Whether this user has subordinate user and group ids, by name or number.
fn has_subordinate_ids() -> bool {
    let uid = geteuid().as_raw();
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|passwd| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
    });
    let listed = |path: &str| {
        fs::read_to_string(path).is_ok_and(|text| {
            text.lines().any(|line| {
                let owner = line.split(':').next();
                owner.is_some() && (owner == name.as_deref() || owner == Some(&uid.to_string()))
            })
        })
    };
    listed("/etc/subuid") && listed("/etc/subgid")
}

/// The host's release, if it is Debian's.
fn host_suite() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let (mut debian, mut suite) = (false, None);
    for line in text.lines() {
        debian |= line == "ID=debian";
        if let Some(name) = line.strip_prefix("VERSION_CODENAME=") {
            suite = Some(name.trim_matches('"').to_owned());
        }
    }
    suite.filter(|_| debian)
}
