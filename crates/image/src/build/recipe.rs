//! What an image is built from.

use std::collections::BTreeSet;

use crate::Error;

/// Packages of every image beside those that Debian calls essential and
/// required.
const PACKAGES: &[&str] = &[
    // The kernel without drivers for hardware that no machine of ours has.
    "linux-image-cloud-amd64",
    "initramfs-tools",
    // Decompression of the initramfs is part of every boot.
    "lz4",
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "ca-certificates",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "iputils-ping",
    "less",
    "nano",
    "netbase",
    "procps",
];

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// As in `debian:12`.
    pub version: &'static str,
    /// As archives call it.
    pub suite: &'static str,
}

/// Those that can be built.
const RELEASES: [Release; 2] = [
    Release {
        version: "12",
        suite: "bookworm",
    },
    Release {
        version: "13",
        suite: "trixie",
    },
];

/// What to build, and how.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The release.
    pub release: Release,
    /// The name that the image gets.
    pub name: String,
    /// Further packages.
    pub packages: Vec<String>,
    /// Archives, as URLs or lines of sources.list; none: those of this host's
    /// apt, or else Debian's own.
    pub mirrors: Vec<String>,
    /// How mmdebstrap gets what it takes to be root; none: the first that
    /// works here.
    pub mode: Option<super::Mode>,
}

impl Recipe {
    /// The recipe of `debian:12` or `debian:13`.
    pub fn new(name: &str) -> Result<Recipe, Error> {
        let version = name.strip_prefix("debian:");
        let release = RELEASES
            .into_iter()
            .find(|release| version == Some(release.version) || version == Some(release.suite))
            .ok_or_else(|| {
                Error::Unfit(format!(
                    "'{}' cannot be built; 'debian:12' and 'debian:13' can, and other systems \
                     are taken by 'croft image import'",
                    name.escape_debug()
                ))
            })?;
        Ok(Recipe {
            release,
            name: format!("debian:{}", release.version),
            packages: Vec::new(),
            mirrors: Vec::new(),
            mode: None,
        })
    }

    /// All packages, checked: a name is passed on to apt, and must not be an
    /// option or an expression.
    pub fn all_packages(&self) -> Result<BTreeSet<&str>, Error> {
        let plain =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
        for package in &self.packages {
            let starts = package.starts_with(|c: char| c.is_ascii_alphanumeric());
            if !starts || !package.chars().all(plain) || package.len() > 100 {
                return Err(Error::Unfit(format!(
                    "'{}' is no package's name; give names like 'nginx'",
                    package.escape_debug()
                )));
            }
        }
        Ok(PACKAGES
            .iter()
            .copied()
            .chain(self.packages.iter().map(String::as_str))
            .collect())
    }

    /// Checks the archives that were named.
    pub fn check_mirrors(&self) -> Result<(), Error> {
        for mirror in &self.mirrors {
            let known = ["http://", "https://", "file:/", "copy:/", "deb "];
            if !known.iter().any(|start| mirror.starts_with(start))
                || mirror.chars().any(char::is_control)
            {
                return Err(Error::Unfit(format!(
                    "'{}' is no archive; give a URL, or a line of sources.list that begins with \
                     'deb '",
                    mirror.escape_debug()
                )));
            }
        }
        Ok(())
    }

    /// What apt in the image is to use: Debian's own archives, whatever the
    /// image was made from.
    pub fn sources(&self) -> String {
        let suite = self.release.suite;
        let parts = "main";
        format!(
            "deb http://deb.debian.org/debian {suite} {parts}\n\
             deb http://deb.debian.org/debian {suite}-updates {parts}\n\
             deb http://deb.debian.org/debian-security {suite}-security {parts}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_checked() {
        assert_eq!(Recipe::new("debian:bookworm").unwrap().name, "debian:12");
        for bad in ["debian", "debian:11", "ubuntu:24.04", ""] {
            assert!(Recipe::new(bad).is_err(), "{bad}");
        }
        let mut recipe = Recipe::new("debian:13").unwrap();
        assert!(recipe.sources().contains("trixie-security main"));
        recipe.packages = vec!["cloud-init".to_owned(), "g++".to_owned()];
        assert!(recipe.all_packages().unwrap().contains("cloud-init"));
        for bad in ["-x", "?essential", "a b", "a,b", "a/sid", "", "A"] {
            recipe.packages = vec![bad.to_owned()];
            assert!(recipe.all_packages().is_err(), "{bad}");
        }
        recipe.mirrors = vec![
            "http://x/debian".to_owned(),
            "deb http://x y main".to_owned(),
        ];
        recipe.check_mirrors().unwrap();
        for bad in ["x", "--help", "deb x\ny", "/x"] {
            recipe.mirrors = vec![bad.to_owned()];
            assert!(recipe.check_mirrors().is_err(), "{bad}");
        }
    }
}
