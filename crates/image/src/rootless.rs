//! Files of several owners, made by a user who is not root: in a user namespace
//! of the user's subordinate ids (user_namespaces(7), subuid(5)).
//!
//! ```text
//! croft ──starts──► croft, itself again: a namespace ──"ready"──► croft
//!   newuidmap, newgidmap ─► maps ──work, as JSON──► does it ──result, as JSON──►
//! ```
//!
//! A namespace must be entered by a process of one thread, and what is done in
//! it takes memory and files: so the program that uses this crate is started
//! again, with [`WORD`] as its argument, and calls [`serve`] before anything
//! else. The maps have one id more than containers get: the user's own, so that
//! the user's directories can be worked in.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use crate::container::{IdMap, Owners};
use crate::layer::{self, Left, Rights, Source, Stack};
use crate::store::sweep;
use crate::tree::Limits;
use crate::{Error, program};

/// The argument that stands for all of this.
pub const WORD: &str = "image-namespace";
/// Ids of a container, as `croft_api::container::IDS` has it.
const IDS: u32 = 65_536;
/// What is said when the namespace is there.
const READY: &str = "ready\n";
/// Longest message in bytes.
const LONGEST: u64 = 1 << 20;

/// What is to be done in the namespace.
#[derive(Serialize, Deserialize)]
enum Work {
    /// See [`layer::unpack`].
    Unpack {
        blob: PathBuf,
        source: Source,
        tree: PathBuf,
        below: Vec<PathBuf>,
    },
    /// Removes a tree.
    Remove { tree: PathBuf },
    /// See [`crate::volume::fill`].
    Fill {
        data: PathBuf,
        lowers: Vec<PathBuf>,
        path: String,
    },
}

/// What came of it.
#[derive(Serialize, Deserialize)]
enum Outcome {
    /// What could not be made; whether anything was.
    Done { left: Left, any: bool },
    /// The words of why not, and whether it was refused.
    Failed { refused: bool, why: String },
}

/// The maps of this user, if there are subordinate ids and the programs that
/// give them.
pub fn maps() -> Option<Owners> {
    if geteuid().is_root() {
        return None;
    }
    program::find("newuidmap").and(program::find("newgidmap"))?;
    let (uids, gids) = (given("/etc/subuid")?, given("/etc/subgid")?);
    // A container's users and groups have the same numbers.
    let (first, end) = uids.iter().find_map(|uids| {
        gids.iter().find_map(|gids| {
            let first = uids.0.max(gids.0);
            let end = uids.1.min(gids.1);
            (end.checked_sub(first)? >= u64::from(IDS)).then_some((first, end))
        })
    })?;
    debug_assert!(first < end);
    let map = vec![IdMap {
        inside: 0,
        outside: u32::try_from(first).ok()?,
        count: IDS,
    }];
    Some(Owners::Mapped {
        uids: map.clone(),
        gids: map,
    })
}

/// First and end of this user's ranges in a file, by name or number.
fn given(path: &str) -> Option<Vec<(u64, u64)>> {
    let uid = geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    let text = fs::read_to_string(path).ok()?;
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let mine = Some(owner) == name || owner.parse() == Ok(uid);
        let first: u64 = fields.next()?.parse().ok()?;
        let count: u64 = fields.next()?.parse().ok()?;
        mine.then_some((first, first.checked_add(count)?))
    });
    Some(ranges.collect())
}

/// Unpacks a layer in the namespace.
pub(crate) fn unpack(
    owners: &Owners,
    blob: &Path,
    source: &Source,
    tree: &Path,
    below: &[PathBuf],
) -> Result<Left, Error> {
    let work = Work::Unpack {
        blob: blob.to_owned(),
        source: source.clone(),
        tree: tree.to_owned(),
        below: below.to_vec(),
    };
    run(owners, &work).map(|(left, _)| left)
}

/// Removes a tree of others' files.
pub(crate) fn remove(owners: &Owners, tree: &Path) -> Result<(), Error> {
    let work = Work::Remove {
        tree: tree.to_owned(),
    };
    run(owners, &work).map(drop)
}

/// Fills a volume in the namespace.
pub(crate) fn fill(
    owners: &Owners,
    data: &Path,
    lowers: &[PathBuf],
    path: &str,
) -> Result<bool, Error> {
    let work = Work::Fill {
        data: data.to_owned(),
        lowers: lowers.to_vec(),
        path: path.to_owned(),
    };
    run(owners, &work).map(|(_, any)| any)
}

fn run(owners: &Owners, work: &Work) -> Result<(Left, bool), Error> {
    let failed = |why: String| Error::Tool {
        program: "a user namespace".to_owned(),
        why,
    };
    let Owners::Mapped { uids, gids } = owners else {
        return Err(failed("no ids are given for it".to_owned()));
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut child = Running(
        Command::new(program)
            .arg(WORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("croft cannot be started again: {error}")))?,
    );
    let (Some(mut input), Some(output)) = (child.0.stdin.take(), child.0.stdout.take()) else {
        return Err(failed("it has no streams".to_owned()));
    };
    let mut output = BufReader::new(output.take(LONGEST));
    let mut line = String::new();
    output
        .read_line(&mut line)
        .map_err(|error| failed(error.to_string()))?;
    if line != READY {
        return Err(failed(format!(
            "the host allows none: {}; see kernel.unprivileged_userns_clone and \
             user.max_user_namespaces",
            line.trim()
        )));
    }
    let pid = child.0.id();
    give("newuidmap", pid, uids, geteuid().as_raw())?;
    give("newgidmap", pid, gids, getegid().as_raw())?;
    let text = serde_json::to_vec(work).map_err(|error| failed(error.to_string()))?;
    input
        .write_all(&text)
        .map_err(|error| failed(error.to_string()))?;
    drop(input);
    let mut answer = Vec::new();
    output
        .read_to_end(&mut answer)
        .map_err(|error| failed(error.to_string()))?;
    match serde_json::from_slice(&answer) {
        Ok(Outcome::Done { left, any }) => Ok((left, any)),
        Ok(Outcome::Failed { refused: true, why }) => Err(Error::Refused {
            path: match work {
                Work::Unpack { blob, .. } => blob.clone(),
                Work::Remove { tree } | Work::Fill { data: tree, .. } => tree.clone(),
            },
            why,
        }),
        Ok(Outcome::Failed { why, .. }) => Err(Error::Unfit(why)),
        Err(_) => Err(failed("it ended without a word".to_owned())),
    }
}

/// A child that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives a namespace its ids, and the user's own after them.
fn give(name: &str, pid: u32, maps: &[IdMap], own: u32) -> Result<(), Error> {
    let program = program::need(name, "uidmap")?;
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    let after = maps
        .iter()
        .map(|map| map.inside.saturating_add(map.count))
        .max();
    let last = IdMap {
        inside: after.unwrap_or(0),
        outside: own,
        count: 1,
    };
    for map in maps.iter().chain([&last]) {
        for number in [map.inside, map.outside, map.count] {
            command.arg(number.to_string());
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    program::run(name, command, |_| ())
}

/// What the program does that was started with [`WORD`]: its exit code.
pub fn serve() -> i32 {
    let mut output = io::stdout();
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER) {
        let _ = writeln!(output, "{error}");
        return 1;
    }
    let done = output
        .write_all(READY.as_bytes())
        .and_then(|()| output.flush());
    let mut text = Vec::new();
    let read = io::stdin().take(LONGEST).read_to_end(&mut text);
    // Nothing to do: whoever started this is gone.
    let Ok(work) = done
        .and(read)
        .and_then(|_| serde_json::from_slice::<Work>(&text).map_err(io::Error::from))
    else {
        return 1;
    };
    let outcome = match perform(work) {
        Ok((left, any)) => Outcome::Done { left, any },
        Err(Error::Refused { why, .. }) => Outcome::Failed { refused: true, why },
        Err(error) => Outcome::Failed {
            refused: false,
            why: error.to_string(),
        },
    };
    let written = serde_json::to_writer(&mut output, &outcome).map_err(io::Error::from);
    match written.and_then(|()| output.flush()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn perform(work: Work) -> Result<(Left, bool), Error> {
    become_root()?;
    match work {
        Work::Unpack {
            blob,
            source,
            tree,
            below,
        } => {
            let stack = Stack::open(&below).map_err(Error::io("open the layers below", &tree))?;
            let rights = Rights { owners: true };
            let limits = Limits::default();
            let left = layer::unpack(&blob, &source, &tree, &stack, rights, limits, &mut |_| ())?;
            Ok((left, true))
        }
        Work::Remove { tree } => sweep::remove(&tree).map(|()| (Left::default(), true)),
        Work::Fill { data, lowers, path } => {
            // It is the container's root's, whatever the image says of it.
            let root = std::os::unix::fs::chown(&data, Some(0), Some(0));
            root.map_err(Error::io("change", &data))?;
            let any = crate::volume::fill(&data, &lowers, &path)?;
            Ok((Left::default(), any))
        }
    }
}

/// The first id inside is root, whom files belong to that nobody is named for.
fn become_root() -> Result<(), Error> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|error| Error::Unfit(format!("a user namespace's root: {error}")))
}
