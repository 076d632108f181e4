//! Programs that other people make and Croft uses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::finding::{Finding, Part};

/// A program.
struct Tool {
    part: Part,
    /// The first that is there counts.
    commands: &'static [&'static str],
    /// Debian's package.
    package: &'static str,
    /// What is not to be had without it.
    purpose: &'static str,
}

const TOOLS: [Tool; 8] = [
    Tool {
        part: Part::Networking,
        commands: &["nft"],
        package: "nftables",
        purpose: "address translation and firewalls of networks",
    },
    Tool {
        part: Part::Networking,
        commands: &["dnsmasq"],
        package: "dnsmasq-base",
        purpose: "addresses and names in networks",
    },
    Tool {
        part: Part::Tools,
        commands: &["qemu-img"],
        package: "qemu-utils",
        purpose: "conversion of disk images",
    },
    Tool {
        part: Part::Tools,
        commands: &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"],
        package: "virtiofsd (Debian 12: qemu-system-common)",
        purpose: "directories of the host in machines",
    },
    Tool {
        part: Part::Tools,
        commands: &["mmdebstrap"],
        package: "mmdebstrap",
        purpose: "building Debian images",
    },
    Tool {
        part: Part::Tools,
        commands: &["newuidmap"],
        package: "uidmap",
        purpose: "containers of users without privilege",
    },
    Tool {
        part: Part::Tools,
        commands: &["criu"],
        package: "criu",
        purpose: "saving and moving containers",
    },
    Tool {
        part: Part::Tools,
        commands: &["mke2fs"],
        package: "e2fsprogs",
        purpose: "making file systems on volumes",
    },
];

/// Directories of system programs that are not in every user's path.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Looks at this host.
pub fn findings() -> Vec<Finding> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(SYSTEM.iter().map(PathBuf::from))
        .collect();
    let mut found = vec![tun()];
    found.extend(TOOLS.iter().map(|tool| tool.finding(&places)));
    found
}

impl Tool {
    fn finding(&self, places: &[PathBuf]) -> Finding {
        let name = self
            .commands
            .first()
            .map_or("", |command| command.rsplit('/').next().unwrap_or(command));
        let found = self
            .commands
            .iter()
            .flat_map(|command| places.iter().map(move |place| place.join(command)))
            .find(|path| is_program(path));
        match found {
            Some(path) => Finding::ok(
                self.part,
                name,
                format!("{}: {}", path.display(), self.purpose),
            ),
            None => Finding::missing(
                self.part,
                name,
                format!("for {}", self.purpose),
                format!("apt-get install {}", self.package),
            ),
        }
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Taps come from here.
fn tun() -> Finding {
    const DEVICE: &str = "/dev/net/tun";
    const NAME: &str = "tun";
    match open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Finding::ok(
            Part::Networking,
            NAME,
            format!("{DEVICE}: machines on networks"),
        ),
        Err(error) => {
            let remedy = match error {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                    "as root: modprobe tun; in a container, hand it in"
                }
                _ => "as root: chmod 666 /dev/net/tun, which is how Linux has it by default",
            };
            let text = format!("{DEVICE}: {error}");
            Finding::missing(Part::Networking, NAME, text, remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let directory = tempfile::tempdir().unwrap();
        let places = [directory.path().to_owned()];
        let tool = &TOOLS[0];
        let finding = tool.finding(&places);
        assert_eq!(finding.state, State::Missing);
        assert_eq!(finding.remedy.as_deref(), Some("apt-get install nftables"));

        let file = directory.path().join("nft");
        fs::write(&file, "").unwrap();
        assert_eq!(tool.finding(&places).state, State::Missing);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let finding = tool.finding(&places);
        assert_eq!(finding.state, State::Ok);
        assert!(finding.text.contains(&*file.to_string_lossy()));
    }
}
