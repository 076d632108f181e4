//! A container's users, as its own `/etc/passwd` and `/etc/group` have them.
//!
//! Both files are the container's: they are bounded, and nothing in them leads
//! out of its root.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use croft_api::container::IdRange;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// Longest file that is read, in bytes.
const LENGTH_MAX: u64 = 4 << 20;
/// Most groups of a user.
const GROUPS_MAX: usize = 1024;
/// Between both files.
const END: u8 = 0;

/// A number of a user or group. The last one of 32 bits is none: to the kernel
/// it says that nothing changes, which would leave root's (setresuid(2)).
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// As whom a program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number in the container.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// Its directory.
    pub home: String,
}

impl User {
    /// This one, if a container with these ids has it. Other groups of its that
    /// the container does not have are left out.
    pub fn among(mut self, ids: Option<IdRange>) -> Result<Self, String> {
        let Some(IdRange { count, .. }) = ids else {
            return Ok(self);
        };
        for (what, number) in [("user", self.uid), ("group", self.gid)] {
            if number < count {
                continue;
            }
            return Err(if count == 1 {
                format!(
                    "it has no {what} {number}, only root: its maker had no subordinate ids; have \
                     some given by usermod --add-subuids and --add-subgids, and create it again"
                )
            } else {
                format!("it has no {what} {number}, only those below {count}")
            });
        }
        // Whoever has one group alone cannot set others (user_namespaces(7)).
        self.groups.retain(|group| *group < count && count > 1);
        Ok(self)
    }

    /// Where nobody says who root is.
    #[cfg(test)]
    pub fn root() -> Self {
        User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".to_owned(),
        }
    }
}

/// What a container says of its users.
#[derive(Debug, Default)]
pub struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// Of the roots of its layers, the topmost first.
    pub fn of_layers<'a>(layers: impl Iterator<Item = &'a Path>) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = layers.filter_map(|layer| open(layer, flags, Mode::empty()).ok());
        let layers: Vec<OwnedFd> = opened.collect();
        let find = |file: &str| {
            let mut found = layers.iter().map(|layer| read(layer, file));
            // Where a layer has taken it away those below it do not count.
            found.find_map(|found| match found {
                Found::There(text) => Some(text),
                Found::Removed => Some(String::new()),
                Found::Not => None,
            })
        };
        Users {
            passwd: find("etc/passwd").unwrap_or_default(),
            group: find("etc/group").unwrap_or_default(),
        }
    }

    /// Of the whole root of one that runs: a process of its own reads them, as
    /// what the container has mounted there may never answer.
    pub fn of_root(root: impl AsFd, patience: Duration) -> Result<Self, String> {
        let find = |file: &str| match read(&root, file) {
            Found::There(text) => text,
            Found::Removed | Found::Not => String::new(),
        };
        // What is no text becomes thrice as long.
        let most = usize::try_from(7 * LENGTH_MAX).unwrap_or(usize::MAX);
        let both = croft_container::aside(patience, most, || {
            let (passwd, group) = (find("etc/passwd"), find("etc/group"));
            // No text of a file has this byte in it that means something.
            [passwd.as_bytes(), group.as_bytes()].join(&END)
        });
        let both = both.map_err(|error| format!("its /etc/passwd and /etc/group: {error}"))?;
        let mut parts = both.splitn(2, |byte| *byte == END);
        let mut next = || {
            let part = parts.next().unwrap_or_default();
            String::from_utf8_lossy(part).into_owned()
        };
        Ok(Users {
            passwd: next(),
            group: next(),
        })
    }

    /// Who that is: `user`, `user:group`, names or numbers; root if empty.
    pub fn find(&self, text: &str) -> Result<User, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number = number(user);
        let line = self.passwd.lines().find_map(|line| {
            let line = Line::new(line)?;
            let is = line.name == user || Some(line.uid) == number;
            is.then_some(line)
        });
        let (name, uid, gid, home) = match (line, number) {
            (Some(line), _) => (Some(line.name), line.uid, line.gid, line.home),
            (None, Some(0)) => (None, 0, 0, "/root"),
            (None, Some(number)) => (None, number, 0, "/"),
            (None, None) => {
                return Err(format!(
                    "there is no user '{}' in the container; name one of its /etc/passwd, or a number",
                    user.escape_debug()
                ));
            }
        };
        let home = if home.is_empty() { "/" } else { home };
        let (gid, groups) = match group {
            Some(group) => (self.gid(group)?, Vec::new()),
            None => (gid, name.map_or_else(Vec::new, |name| self.groups_of(name))),
        };
        Ok(User {
            uid,
            gid,
            groups,
            home: home.to_owned(),
        })
    }

    fn gid(&self, group: &str) -> Result<u32, String> {
        let mut groups = self.group.lines().filter_map(group_line);
        let named = groups.find(|(name, ..)| *name == group);
        named
            .map(|(_, gid, _)| gid)
            .or_else(|| number(group))
            .ok_or_else(|| {
                format!(
                    "there is no group '{}' in the container; name one of its /etc/group, or a number",
                    group.escape_debug()
                )
            })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let groups = self.group.lines().filter_map(group_line);
        let with = groups.filter(|(_, _, members)| members.split(',').any(|one| one == user));
        with.map(|(_, gid, _)| gid).take(GROUPS_MAX).collect()
    }
}

/// A line of passwd(5).
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Line<'a> {
    fn new(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Line {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// Name, number and members of a line of group(5).
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

/// A file of a layer.
enum Found {
    There(String),
    /// The layer says that it is gone (overlayfs: a character device 0/0).
    Removed,
    Not,
}

fn read(root: impl AsFd, file: &str) -> Found {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let look = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(found) = openat2(&root, file, look, Mode::empty(), resolve) else {
        return Found::Not;
    };
    match fstat(&found) {
        Ok(about) => match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => {}
            FileType::CharacterDevice if about.st_rdev == 0 => return Found::Removed,
            _ => return Found::Not,
        },
        Err(_) => return Found::Not,
    }
    // The very file that was looked at: another may be in its place by now, to
    // open which does something. Nor is a lease of somebody's waited for.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    let opened = open(&path, flags, Mode::empty()).map(File::from);
    let read = opened.map(|file| file.take(LENGTH_MAX).read_to_end(&mut bytes));
    match read {
        Ok(Ok(_)) => Found::There(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Found::Not,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbad\nodd:x:y:z\n\
         last:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,web\nwww:x:34:\nstaff:x:50:web\n";

    fn users() -> Users {
        Users {
            passwd: PASSWD.to_owned(),
            group: GROUP.to_owned(),
        }
    }

    #[test]
    fn a_user_is_one_that_the_container_has() {
        let user = |uid, gid| User {
            uid,
            gid,
            groups: vec![0, 50, 70_000],
            home: "/".to_owned(),
        };
        let ids = |count| Some(IdRange { first: 1000, count });
        assert_eq!(user(33, 34).among(ids(65_536)).unwrap().groups, [0, 50]);
        assert_eq!(user(33, 34).among(None).unwrap(), user(33, 34));
        assert!(user(65_536, 0).among(ids(65_536)).is_err());
        assert!(user(0, 65_536).among(ids(65_536)).is_err());
        let why = user(33, 0).among(ids(1)).unwrap_err();
        assert!(why.contains("subordinate ids"), "{why}");
        assert!(user(0, 0).among(ids(1)).unwrap().groups.is_empty());
    }

    #[test]
    fn users_are_names_or_numbers_with_or_without_a_group() {
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, vec![], "/root"),
            ("web", 33, 34, vec![4, 50], "/var/www"),
            ("33", 33, 34, vec![4, 50], "/var/www"),
            ("web:staff", 33, 50, vec![], "/var/www"),
            ("1234", 1234, 0, vec![], "/"),
            ("1234:7", 1234, 7, vec![], "/"),
            (":4", 0, 4, vec![], "/root"),
        ] {
            let user = users().find(text).unwrap();
            assert_eq!(
                (user.uid, user.gid, user.home.as_str()),
                (uid, gid, home),
                "{text}"
            );
            assert_eq!(user.groups, groups, "{text}");
        }
        for bad in [
            "nobody",
            "odd",
            "web:none",
            "-1",
            "99999999999",
            "4294967295",
            "web:4294967295",
            "last",
        ] {
            assert!(users().find(bad).is_err(), "{bad}");
        }
        assert_eq!(Users::default().find("").unwrap(), User::root());
    }

    #[test]
    fn the_topmost_layer_counts_and_no_link_leads_out() {
        let place = tempfile::tempdir().unwrap();
        let (low, high) = (place.path().join("low"), place.path().join("high"));
        for layer in [&low, &high] {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        fs::write(low.join("etc/passwd"), PASSWD).unwrap();
        fs::write(low.join("etc/group"), GROUP).unwrap();
        let users = |layers: &[&Path]| Users::of_layers(layers.iter().copied());
        assert_eq!(users(&[&high, &low]).find("web").unwrap().gid, 34);
        fs::write(high.join("etc/passwd"), "web:x:1:2::/:\n").unwrap();
        assert_eq!(users(&[&high, &low]).find("web").unwrap().uid, 1);
        fs::remove_file(high.join("etc/passwd")).unwrap();
        fs::write(place.path().join("outside"), "web:x:7:7::/:\n").unwrap();
        symlink("../../outside", high.join("etc/passwd")).unwrap();
        assert_eq!(users(&[&high, &low]).find("web").unwrap().uid, 33);
        assert!(users(&[]).find("web").is_err());
    }
}
