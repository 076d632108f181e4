//! What a tree of a machine is changed to for containers: there is no disk, no
//! udev, and the network is there from the start.

use crate::Error;
use crate::tree::Tree;

/// Where units lie and are linked to.
const UNITS: &str = "etc/systemd/system";

/// Changes the tree, of which the machine form has been made already.
pub fn convert(tree: &mut Tree) -> Result<(), Error> {
    // Its root is mounted before it starts.
    tree.write(
        "etc/fstab",
        0o644,
        b"# This is a container: its root is mounted from outside.\n",
    )?;
    // In a machine a rule of udev starts it with the first interface.
    tree.link(
        &format!("{UNITS}/multi-user.target.wants/systemd-networkd.service"),
        "/lib/systemd/system/systemd-networkd.service",
    )?;
    for unit in ["systemd-networkd.service", "systemd-resolved.service"] {
        tree.write(
            &format!("{UNITS}/{unit}.d/croft.conf"),
            0o644,
            b"[Unit]\nConditionPathExistsGlob=|/sys/class/net/e*\n\
              ConditionPathExists=|/sys/class/net/host0\n",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_machines_disk_is_left() {
        let outer = tempfile::tempdir().unwrap();
        let mut tree = Tree::create(&outer.path().join("tree")).unwrap();
        tree.write("etc/fstab", 0o644, b"/dev/vda / ext4\n")
            .unwrap();
        convert(&mut tree).unwrap();
        let fstab = String::from_utf8(tree.read("etc/fstab").unwrap()).unwrap();
        assert!(fstab.lines().all(|line| line.starts_with('#')), "{fstab}");
        let wanted = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
        assert!(tree.has(wanted));
        let condition = "etc/systemd/system/systemd-networkd.service.d/croft.conf";
        let text = String::from_utf8(tree.read(condition).unwrap()).unwrap();
        assert!(
            text.contains("|/sys/class/net/e*") && text.contains("host0"),
            "{text}"
        );
    }
}
