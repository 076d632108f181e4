//! Options of mounts (runtime-spec, `config.md`, Linux mount options;
//! mount(8)): attributes of the mount, flags of the file system, and what only
//! the file system understands.

use crate::sys::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME, MountAttr,
};

/// What a mount's options ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// It shows a part of another mount; with those beneath.
    pub bind: Option<bool>,
    /// Attributes of the mount.
    pub set: u64,
    /// Attributes that it must not have.
    pub clear: u64,
    /// Attributes of it and of all mounts beneath.
    pub set_all: u64,
    /// Attributes that none of them may have.
    pub clear_all: u64,
    /// Kind of propagation, and whether of all beneath too.
    pub propagation: Vec<(u64, bool)>,
    /// Parameters of the file system.
    pub data: Vec<(String, Option<String>)>,
    /// A tmpfs begins with what was there.
    pub copy_up: bool,
    /// Its ids are mapped; those of all mounts beneath too.
    pub id_map: Option<bool>,
    /// An existing mount is changed.
    pub remount: bool,
}

/// Attributes by name; `false` takes them away.
const ATTRIBUTES: [(&str, u64, bool); 18] = [
    ("ro", ATTR_RDONLY, true),
    ("rw", ATTR_RDONLY, false),
    ("nosuid", ATTR_NOSUID, true),
    ("suid", ATTR_NOSUID, false),
    ("nodev", ATTR_NODEV, true),
    ("dev", ATTR_NODEV, false),
    ("noexec", ATTR_NOEXEC, true),
    ("exec", ATTR_NOEXEC, false),
    ("nodiratime", ATTR_NODIRATIME, true),
    ("diratime", ATTR_NODIRATIME, false),
    ("nosymfollow", ATTR_NOSYMFOLLOW, true),
    ("symfollow", ATTR_NOSYMFOLLOW, false),
    // Times of access are one field of three values, of which relatime is 0.
    ("noatime", ATTR_NOATIME, true),
    ("strictatime", ATTR_STRICTATIME, true),
    ("relatime", 0, true),
    ("atime", 0, true),
    // The kernel's own choice again, which is relatime.
    ("norelatime", 0, true),
    ("nostrictatime", 0, true),
];

const PROPAGATIONS: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Options that change nothing here: `defaults`, `loud`, and those of
/// mount(8)'s own files.
const IGNORED: [&str; 8] = [
    "defaults", "loud", "auto", "noauto", "user", "nouser", "nofail", "_netdev",
];

fn is_time(name: &str) -> bool {
    name.ends_with("atime") && !name.ends_with("diratime")
}

/// A kind of propagation by name, with `r` in front for a whole tree.
pub fn propagation(name: &str) -> Option<(u64, bool)> {
    let find = |name: &str| PROPAGATIONS.iter().find(|(one, _)| *one == name);
    if let Some((_, flag)) = find(name) {
        return Some((*flag, false));
    }
    let (_, flag) = find(name.strip_prefix('r')?)?;
    Some((*flag, true))
}

impl Options {
    /// Reads a list.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Self {
        let mut options = Options::default();
        for name in list {
            options.add(name);
        }
        options
    }

    fn add(&mut self, name: &str) {
        if let Some((_, bits, on)) = ATTRIBUTES.iter().find(|(one, ..)| *one == name) {
            Self::change(&mut self.set, &mut self.clear, name, *bits, *on);
            return;
        }
        let all = name
            .strip_prefix('r')
            .and_then(|rest| ATTRIBUTES.iter().find(|(one, ..)| *one == rest));
        if let Some((rest, bits, on)) = all {
            Self::change(&mut self.set_all, &mut self.clear_all, rest, *bits, *on);
            return;
        }
        if let Some(found) = propagation(name) {
            self.propagation.push(found);
            return;
        }
        match name {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "remount" => self.remount = true,
            _ if name.is_empty() || IGNORED.contains(&name) || name.starts_with("x-") => {}
            _ => {
                let (key, value) = match name.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (name, None),
                };
                self.data.push((key.to_owned(), value));
            }
        }
    }

    fn change(set: &mut u64, clear: &mut u64, name: &str, bits: u64, on: bool) {
        if is_time(name) {
            *set &= !ATTR_ATIME;
            *clear |= ATTR_ATIME;
            *set |= bits;
        } else if on {
            *set |= bits;
            *clear &= !bits;
        } else {
            *clear |= bits;
            *set &= !bits;
        }
    }

    /// What to do to the mount itself.
    pub fn attr(&self) -> MountAttr {
        MountAttr {
            set: self.set,
            clear: self.clear,
            ..MountAttr::default()
        }
    }

    /// What to do to it and all beneath.
    pub fn attr_all(&self) -> MountAttr {
        MountAttr {
            set: self.set_all,
            clear: self.clear_all,
            ..MountAttr::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_propagation_and_data() {
        let options = Options::parse([
            "rbind",
            "ro",
            "nosuid",
            "rw",
            "rro",
            "rprivate",
            "slave",
            "noatime",
            "relatime",
            "mode=755",
            "newinstance",
            "x-systemd.automount",
            "defaults",
        ]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.set, ATTR_NOSUID);
        assert_eq!(options.clear, ATTR_RDONLY | ATTR_ATIME);
        assert_eq!(options.set_all, ATTR_RDONLY);
        assert_eq!(
            options.propagation,
            [(libc::MS_PRIVATE, true), (libc::MS_SLAVE, false)]
        );
        assert_eq!(
            options.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("newinstance".to_owned(), None)
            ]
        );
    }

    #[test]
    fn a_plain_bind_does_not_undo_a_recursive_one() {
        assert_eq!(Options::parse(["rbind", "bind"]).bind, Some(true));
        assert_eq!(Options::parse(["bind"]).bind, Some(false));
    }

    #[test]
    fn whole_trees_have_an_r() {
        assert_eq!(propagation("rshared"), Some((libc::MS_SHARED, true)));
        assert_eq!(propagation("r"), None);
        assert_eq!(Options::parse(["rnoatime"]).set_all, ATTR_NOATIME);
        assert_eq!(Options::parse(["rrw"]).clear_all, ATTR_RDONLY);
        // Not a tree's of "elatime".
        assert_eq!(Options::parse(["relatime"]).clear, ATTR_ATIME);
    }
}
