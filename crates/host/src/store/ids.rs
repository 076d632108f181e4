//! Ids of the host's for containers, which nobody else has.
//!
//! A container has a user namespace of its own, whose ids 0 to 65535 are
//! these: what gets out of it is nobody on the host, and nobody in another
//! container. They come from what `/etc/subuid` and `/etc/subgid` give to the
//! user. Root has all ids, and where nothing is given to it, takes them from
//! the middle of those that systemd leaves to containers (its `UIDS-GIDS.md`:
//! 524288 to 1879048191), where neither distributions begin to give
//! subordinate ids nor systemd-nspawn does.
//!
//! All containers of a user have the same range, the first that is given: the
//! files of images and volumes have owners of it, and only root can map the ids
//! of a mount to others. What is behind it is that user's in any case. Root's
//! are never shared.
//!
//! A range belongs to an instance from the moment in which the file `ids` is
//! in its directory, which may be that of one that is being made, and until
//! that directory is gone.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use croft_api::container::{IDS, IdRange};
use nix::fcntl::{Flock, FlockArg};
use rustix::process::geteuid;
use thiserror::Error;

use super::NewInstance;
use crate::files;

/// In an instance's directory.
const FILE: &str = "ids";
/// Held by whoever looks for a range, in the directory of all instances.
const LOCK: &str = ".ids.lock";
/// Root's, where nothing is given to it.
const FIRST: u32 = 0x2000_0000;
/// So many: up to systemd's last.
const COUNT: u32 = 0x5000_0000;
/// Longest file of subordinate ids that is read, in bytes.
const SUBIDS_MAX: u64 = 1 << 20;

/// Why a container gets no ids.
#[derive(Debug, Error)]
pub enum IdsError {
    /// The host gives none.
    #[error(
        "user '{user}' has no {IDS} subordinate ids; give some: usermod --add-subuids 1000000-1065535 --add-subgids 1000000-1065535 {user}"
    )]
    NotGiven {
        /// Who has none.
        user: String,
    },
    /// All are in use.
    #[error("all of the host's ids for containers are in use; delete a container")]
    AllInUse,
    /// A file cannot be read or written.
    #[error("ids for a container: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the host answered.
        source: io::Error,
    },
}

impl NewInstance {
    /// Takes a range of the host's ids for this instance.
    pub fn allocate_ids(&self) -> Result<IdRange, IdsError> {
        let given = container_ids()?;
        let instances = self.instances.directories().instances();
        let failed = |what| move |source| IdsError::Io { what, source };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(instances.join(LOCK))
            .map_err(failed("cannot open their lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| failed("cannot lock them")(error.into()))?;
        let taken = taken(&instances).map_err(failed("cannot read those in use"))?;
        let range = match given.first() {
            Some(first) if !geteuid().is_root() => Some(IdRange {
                first: first.first,
                count: IDS,
            }),
            _ => free(&given, &taken),
        };
        let range = range.ok_or(IdsError::AllInUse)?;
        files::write_json(&self.directory, FILE, &range)
            .map_err(failed("cannot write them down"))?;
        Ok(range)
    }
}

/// The host's ids that this user's containers can have.
pub fn container_ids() -> Result<Vec<IdRange>, IdsError> {
    given(Path::new("/etc"))
}

/// Where no ids are given to a user, the own one: of a container that has but
/// its root, who is this user.
pub fn own_id() -> IdRange {
    IdRange {
        first: geteuid().as_raw(),
        count: 1,
    }
}

/// The ranges of all instances, and of those that are being made.
fn taken(instances: &Path) -> io::Result<Vec<IdRange>> {
    let mut taken = Vec::new();
    for entry in fs::read_dir(instances)? {
        let path: PathBuf = entry?.path().join(FILE);
        match files::read_json(&path) {
            Ok(range) => taken.push(range),
            // Another kind of instance, or one that is gone in this moment.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// The first that nobody has. Ranges given to somebody else are a multiple of
/// [`IDS`] apart only by chance: whoever is in the way is passed by.
fn free(given: &[IdRange], taken: &[IdRange]) -> Option<IdRange> {
    given.iter().find_map(|given| {
        let end = u64::from(given.first) + u64::from(given.count);
        let mut first = u64::from(given.first);
        loop {
            let range = IdRange {
                first: u32::try_from(first).ok()?,
                count: IDS,
            };
            if first.checked_add(IDS.into())? > end {
                return None;
            }
            match taken.iter().find(|other| other.overlaps(range)) {
                None => return Some(range),
                Some(other) => first = u64::from(other.first) + u64::from(other.count),
            }
        }
    })
}

/// What the host gives this user.
fn given(etc: &Path) -> Result<Vec<IdRange>, IdsError> {
    let uid = geteuid().as_raw();
    let user = user_name(etc, uid);
    let read = |file: &str| -> Vec<IdRange> {
        let text = read(&etc.join(file));
        subordinate(&text, &user, uid)
    };
    let given = common(&read("subuid"), &read("subgid"));
    if !given.is_empty() {
        return Ok(given);
    }
    if uid == 0 {
        return Ok(vec![IdRange {
            first: FIRST,
            count: COUNT,
        }]);
    }
    Err(IdsError::NotGiven { user })
}

/// A file of the host's that may not be there.
fn read(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    let file = fs::File::open(path);
    let read = file.and_then(|file| file.take(SUBIDS_MAX).read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

/// As `/etc/passwd` has it; the number where it does not.
fn user_name(etc: &Path, uid: u32) -> String {
    let text = read(&etc.join("passwd"));
    let mut users = text.lines().map(|line| line.split(':'));
    let name = users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

/// Those of a user in a file of `NAME:FIRST:COUNT` (subuid(5)).
fn subordinate(text: &str, user: &str, uid: u32) -> Vec<IdRange> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        let mine = owner == user || owner == uid;
        mine.then_some(IdRange { first, count })
    });
    ranges.collect()
}

/// What is in both: a container's users and groups have the same numbers.
fn common(uids: &[IdRange], gids: &[IdRange]) -> Vec<IdRange> {
    let both = uids.iter().flat_map(|uids| {
        gids.iter().filter_map(|gids| {
            let end = |range: &IdRange| range.first.saturating_add(range.count);
            let first = uids.first.max(gids.first);
            let count = end(uids).min(end(gids)).checked_sub(first)?;
            (count >= IDS).then_some(IdRange { first, count })
        })
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> IdRange {
        IdRange { first, count }
    }

    #[test]
    fn the_first_that_is_free() {
        let given = [range(100_000, IDS), range(1_000_000, 3 * IDS)];
        let mut taken = Vec::new();
        for first in [100_000, 1_000_000, 1_000_000 + IDS, 1_000_000 + 2 * IDS] {
            let found = free(&given, &taken).unwrap();
            assert_eq!(found, range(first, IDS));
            taken.push(found);
        }
        assert_eq!(free(&given, &taken), None);
        // One that is in the way of two.
        let odd = [range(100_000, IDS), range(1_000_100, IDS)];
        assert_eq!(free(&given, &odd), Some(range(1_000_100 + IDS, IDS)));
        assert_eq!(free(&[range(u32::MAX - 5, 5)], &[]), None);
    }

    #[test]
    fn subordinate_ids_are_the_users_and_in_both_files() {
        let text = "alice:100000:65536\nbob:165536:65536\n1000:231072:200\n\nalice:x:1\n";
        assert_eq!(subordinate(text, "alice", 1000).len(), 2);
        assert_eq!(subordinate(text, "carol", 7), []);
        let uids = [range(100_000, 2 * IDS)];
        assert_eq!(
            common(&uids, &[range(100_000 + 10, 2 * IDS)]),
            [range(100_010, 2 * IDS - 10)]
        );
        assert_eq!(common(&uids, &[range(900_000, IDS)]), []);
    }

    #[test]
    fn a_user_is_named_by_the_hosts_file() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        assert_eq!(user_name(etc.path(), 0), "root");
        assert_eq!(user_name(etc.path(), 12), "12");
    }
}
