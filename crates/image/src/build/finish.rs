//! What makes a system of packages an image: its configuration, and nothing
//! that two servers must not share.

use std::fs;
use std::path::Path;

use super::recipe::Recipe;
use crate::Error;
use crate::tree::{Attributes, Kind, Tree};

/// Where units lie and are linked to.
const UNITS: &str = "etc/systemd/system";

/// Units that a server without hardware has no use for; each costs time at
/// every boot.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "systemd-rfkill.service",
    "systemd-rfkill.socket",
    "systemd-vconsole-setup.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
];

/// Units that are enabled by their packages and are not wanted here: there is
/// no screen, sshd is started when somebody comes, and a hundred servers need
/// not wake up to look for updates, or for snapshots of LVM, that nobody asked
/// for.
const DISABLED: &[&str] = &[
    "getty@tty1.service",
    "ssh.service",
    "sshd.service",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "systemd-networkd-wait-online.service",
    "remote-fs.target",
];

/// Units that are wanted by a target.
const ENABLED: &[(&str, &str, &str)] = &[
    (
        "sockets.target",
        "ssh.socket",
        "/lib/systemd/system/ssh.socket",
    ),
    (
        "multi-user.target",
        "croft-first-boot.service",
        "/etc/systemd/system/croft-first-boot.service",
    ),
    (
        "multi-user.target",
        "croft-agent.service",
        "/etc/systemd/system/croft-agent.service",
    ),
];

/// Files that would be the same in all instances, or that say where the image
/// was made. Directories lose what is in them.
const REMOVED: &[&str] = &[
    "etc/resolv.conf",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/mailname",
    "etc/.pwd.lock",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/dbus/machine-id",
    "var/log/bootstrap.log",
    "var/log/apt",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "root/.bash_history",
    "root/.ssh",
];

/// Directories of which only the contents go.
const EMPTIED: &[&str] = &[
    "dev",
    "tmp",
    "run",
    "var/tmp",
    "var/cache/apt",
    "var/lib/apt/lists",
    // Its group is the journal's, which the first boot sees to.
    "var/log/journal",
    // What an older kernel's links would point to.
    "lost+found",
];

/// Finishes a tree. `agent` is Croft's guest agent on this host. `warn` hears
/// what is missing.
pub fn finish(
    tree: &mut Tree,
    recipe: &Recipe,
    agent: Option<&Path>,
    warn: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    clean(tree)?;
    configure(tree, recipe)?;
    services(tree)?;
    if let Some(agent) = agent {
        let bytes = fs::read(agent).map_err(Error::io("read", agent))?;
        tree.write("usr/lib/croft/croft-agent", 0o755, &bytes)?;
    } else {
        warn(
            "croft-agent is not installed beside croft: the image gets none, so 'croft exec', \
             'shell' and 'cp' will not work in its instances",
        );
    }
    lock_passwords(tree)
}

fn clean(tree: &mut Tree) -> Result<(), Error> {
    for path in REMOVED {
        tree.remove(path)?;
    }
    for path in EMPTIED {
        tree.empty(path)?;
    }
    for name in tree.names("etc/ssh") {
        if name.starts_with("ssh_host_") {
            tree.remove(&format!("etc/ssh/{name}"))?;
        }
    }
    // What packages keep of a file before they change it, and links to what a
    // kernel before the first one would be.
    for name in [
        "passwd-", "group-", "shadow-", "gshadow-", "subuid-", "subgid-",
    ] {
        tree.remove(&format!("etc/{name}"))?;
    }
    for name in ["vmlinuz.old", "initrd.img.old"] {
        tree.remove(name)?;
    }
    Ok(())
}

fn configure(tree: &mut Tree, recipe: &Recipe) -> Result<(), Error> {
    let sources = recipe.sources();
    let files: &[(&str, u32, &str)] = &[
        // Empty, not missing: an identity is made at every first boot, without
        // the questions and presets of an installation.
        ("etc/machine-id", 0o444, ""),
        // As new as the newest package: nothing that packages have done has to
        // be done again when an instance boots (ConditionNeedsUpdate=).
        ("etc/.updated", 0o644, ""),
        ("var/.updated", 0o644, ""),
        ("etc/hostname", 0o644, "debian\n"),
        (
            "etc/hosts",
            0o644,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        ),
        // Croft's first disk has the root, whatever other disks have the same
        // UUID and label.
        (
            "etc/fstab",
            0o644,
            "/dev/vda / ext4 errors=remount-ro,x-systemd.growfs 0 1\n",
        ),
        ("etc/default/locale", 0o644, "LANG=C.UTF-8\n"),
        ("etc/apt/sources.list", 0o644, &sources),
        (
            "etc/systemd/journald.conf.d/croft.conf",
            0o644,
            "[Journal]\nSystemMaxUse=64M\n",
        ),
        (
            "etc/systemd/logind.conf.d/croft.conf",
            0o644,
            "[Login]\n# There are no virtual terminals.\nNAutoVTs=0\nReserveVT=0\n",
        ),
        (
            "etc/systemd/network/90-croft.network",
            0o644,
            include_str!("../../assets/croft.network"),
        ),
        (
            "etc/udev/rules.d/60-croft.rules",
            0o644,
            include_str!("../../assets/60-croft.rules"),
        ),
    ];
    for (path, mode, contents) in files {
        tree.write(path, *mode, contents.as_bytes())?;
    }
    tree.empty("etc/apt/sources.list.d")?;
    if tree.has("usr/lib/systemd/systemd-resolved") {
        tree.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;
    } else {
        tree.write("etc/resolv.conf", 0o644, b"")?;
    }
    Ok(())
}

fn services(tree: &mut Tree) -> Result<(), Error> {
    for (name, contents) in [
        (
            "croft-first-boot.service",
            include_str!("../../assets/croft-first-boot.service"),
        ),
        (
            "croft-user-script.service",
            include_str!("../../assets/croft-user-script.service"),
        ),
        (
            "croft-agent.service",
            include_str!("../../../agent/croft-agent.service"),
        ),
    ] {
        tree.write(&format!("{UNITS}/{name}"), 0o644, contents.as_bytes())?;
    }
    let script = include_str!("../../assets/first-boot");
    tree.write("usr/lib/croft/first-boot", 0o755, script.as_bytes())?;
    // sshd's keys are made by the first boot.
    for unit in ["ssh@.service", "ssh.service"] {
        tree.write(
            &format!("{UNITS}/{unit}.d/croft.conf"),
            0o644,
            b"[Unit]\nAfter=croft-first-boot.service\n",
        )?;
    }
    // Without an interface there is nothing for them to do; a rule of udev
    // starts them when one comes.
    for unit in ["systemd-networkd.service", "systemd-resolved.service"] {
        tree.write(
            &format!("{UNITS}/{unit}.d/croft.conf"),
            0o644,
            b"[Unit]\nConditionPathExistsGlob=/sys/class/net/e*\n",
        )?;
    }
    let wants: Vec<String> = tree
        .names(UNITS)
        .into_iter()
        .filter(|name| name.ends_with(".wants") || name.ends_with(".requires"))
        .collect();
    for unit in DISABLED {
        for directory in &wants {
            tree.remove(&format!("{UNITS}/{directory}/{unit}"))?;
        }
        tree.remove(&format!("{UNITS}/{unit}"))?;
    }
    for unit in MASKED {
        for directory in &wants {
            tree.remove(&format!("{UNITS}/{directory}/{unit}"))?;
        }
        tree.link(&format!("{UNITS}/{unit}"), "/dev/null")?;
    }
    // Not the graphical one, which is Debian's.
    tree.link(
        &format!("{UNITS}/default.target"),
        "/lib/systemd/system/multi-user.target",
    )?;
    for (target, unit, path) in ENABLED {
        tree.link(&format!("{UNITS}/{target}.wants/{unit}"), path)?;
    }
    Ok(())
}

/// Nobody can log in with a password that two servers share.
fn lock_passwords(tree: &mut Tree) -> Result<(), Error> {
    const SHADOW: &str = "etc/shadow";
    let Some(bytes) = tree.read(SHADOW) else {
        return Ok(());
    };
    let mut text = String::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(password) = fields.get_mut(1)
            && !password.starts_with(['*', '!'])
        {
            *password = "!";
        }
        text.push_str(&fields.join(":"));
        text.push('\n');
    }
    let former = tree.ledger().get(Path::new(SHADOW)).cloned();
    tree.write(SHADOW, 0o640, text.as_bytes())?;
    if let (Some(former), Some(now)) = (former, tree.ledger_mut().get_mut(Path::new(SHADOW))) {
        *now = Attributes {
            kind: Kind::File,
            ..former
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_servers_must_not_share_is_left() {
        let outer = tempfile::tempdir().unwrap();
        let mut tree = Tree::create(&outer.path().join("tree")).unwrap();
        for (path, contents) in [
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("etc/ssh/ssh_host_rsa_key", "secret"),
            ("etc/ssh/ssh_host_ed25519_key.pub", "public"),
            ("etc/ssh/sshd_config", "stays"),
            ("etc/hostname", "builder\n"),
            ("etc/resolv.conf", "nameserver 192.0.2.1\n"),
            (
                "etc/apt/sources.list",
                "deb http://mirror.example/debian x main\n",
            ),
            (
                "etc/apt/sources.list.d/m.list",
                "deb http://mirror.example/debian x main\n",
            ),
            (
                "etc/shadow",
                "root:$y$hash:1:0:::::\nsshd:!:1::::::\nx::1::::::\n",
            ),
            ("var/lib/systemd/random-seed", "seed"),
            ("var/log/apt/history.log", "x"),
            (
                "etc/systemd/system/multi-user.target.wants/ssh.service",
                "x",
            ),
            ("usr/lib/systemd/systemd-resolved", "x"),
        ] {
            tree.write(path, 0o600, contents.as_bytes()).unwrap();
        }
        let recipe = Recipe::new("debian:12").unwrap();
        let mut warnings = Vec::new();
        finish(&mut tree, &recipe, None, &mut |text| {
            warnings.push(text.to_owned())
        })
        .unwrap();
        assert!(warnings[0].contains("croft-agent"));
        assert_eq!(tree.read("etc/machine-id").unwrap(), b"");
        assert_eq!(tree.names("etc/ssh"), ["sshd_config"]);
        let shadow = String::from_utf8(tree.read("etc/shadow").unwrap()).unwrap();
        assert_eq!(shadow, "root:!:1:0:::::\nsshd:!:1::::::\nx:!:1::::::\n");
        for gone in [
            "var/lib/systemd/random-seed",
            "var/log/apt/history.log",
            "etc/systemd/system/multi-user.target.wants/ssh.service",
        ] {
            assert!(!tree.has(gone), "{gone}");
        }
        let about = tree.ledger().get(Path::new("etc/shadow")).unwrap();
        assert_eq!(about.mode, 0o600);
        // Nowhere is a word of where it was made.
        let paths: Vec<String> = tree
            .ledger()
            .iter()
            .filter(|(_, about)| about.kind == Kind::File)
            .map(|(path, _)| path.to_str().unwrap().to_owned())
            .collect();
        for path in paths {
            let text = String::from_utf8_lossy(&tree.read(&path).unwrap()).into_owned();
            for word in ["mirror.example", "builder", "192.0.2.1"] {
                assert!(!text.contains(word), "{path}: {word}");
            }
        }
        assert!(tree.has("etc/systemd/system/sockets.target.wants/ssh.socket"));
    }
}
