//! The guest's users, from `/etc/passwd` and `/etc/group`. A static program
//! has no name service switch: who is known elsewhere only (LDAP) goes by
//! number.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest file read, in bytes.
const LENGTH_MAX: u64 = 16 << 20;
/// Most groups of a user (NGROUPS_MAX, limits.h).
const GROUPS_MAX: usize = 65536;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name, or its number.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// What `/etc` has to say of users.
#[derive(Debug)]
pub struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// Reads both files in `etc`; one that is missing is empty.
    pub fn read(etc: &Path) -> Self {
        Users {
            passwd: text(&etc.join("passwd")),
            group: text(&etc.join("group")),
        }
    }

    /// Whoever `wanted` names or numbers.
    pub fn find(&self, wanted: &str) -> Option<User> {
        let number = wanted.parse::<u32>().ok();
        let entries = self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            let (home, shell) = (fields.nth(1)?, fields.next().unwrap_or_default());
            Some(User {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                groups: Vec::new(),
                home: or(home, "/"),
                shell: or(shell, "/bin/sh"),
            })
        });
        let mut by_number = None;
        for mut user in entries {
            if user.name == wanted {
                user.groups = self.groups(&user);
                return Some(user);
            }
            if Some(user.uid) == number && by_number.is_none() {
                by_number = Some(user);
            }
        }
        if let Some(mut user) = by_number {
            user.groups = self.groups(&user);
            return Some(user);
        }
        // Not known here, but root is root, and a number is a number.
        let uid = match wanted {
            "root" => 0,
            _ => number?,
        };
        Some(User {
            name: wanted.to_owned(),
            uid,
            gid: uid,
            groups: vec![uid],
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        })
    }

    /// All groups of a user.
    fn groups(&self, user: &User) -> Vec<u32> {
        let others = self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2)?.parse().ok()?;
            let mut members = fields.next()?.split(',');
            members.any(|member| member == user.name).then_some(gid)
        });
        let mut groups: Vec<u32> = std::iter::once(user.gid).chain(others).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.truncate(GROUPS_MAX);
        groups
    }
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise } else { text }.to_owned()
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    // A file that cannot be read has nobody in it.
    let _ = File::open(path).and_then(|file| file.take(LENGTH_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            passwd: "root:x:0:0:root:/root:/bin/bash\n# broken\nx:y\n\
                     anna:x:1000:1000:Anna,,,:/home/anna:\nbert:x:12ab:1:::\n\
                     4711:x:1001:1001::/home/n:/bin/dash\n"
                .to_owned(),
            group: "root:x:0:\nsudo:x:27:bert,anna\nanna:x:1000:\naudio:x:29:annabel\nz:x:5:anna\n"
                .to_owned(),
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let anna = users().find("anna").unwrap();
        assert_eq!((anna.uid, anna.gid), (1000, 1000));
        assert_eq!(anna.groups, [5, 27, 1000]);
        assert_eq!(
            (anna.home.as_str(), anna.shell.as_str()),
            ("/home/anna", "/bin/sh")
        );
        assert_eq!(users().find("1000").unwrap(), anna);
        assert_eq!(users().find("4711").unwrap().uid, 1001);
        assert_eq!(users().find("12").unwrap().gid, 12);
        assert_eq!(users().find("root").unwrap().home, "/root");
        for nobody in ["bert", "x", "", "-1", "4294967296"] {
            assert!(users().find(nobody).is_none(), "{nobody}");
        }
        let none = Users::read(Path::new("/nonexistent"));
        assert_eq!(none.find("root").unwrap().uid, 0);
        assert!(none.find("anna").is_none());
    }
}
