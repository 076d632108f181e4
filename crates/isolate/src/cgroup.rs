//! A control group for a payload: bounds for what it takes of the host, from
//! outside.
//!
//! Root's groups are `croft/NAME` in each hierarchy; a user's are beneath the
//! group that croft itself is in, where that was delegated to the user.
//! Version 2, version 1 and mixtures of both are served, a controller at a
//! time; what a host does not have is left out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use crate::report::{Part, Piece};

/// Group of all groups of root's machines.
const PARENT: &str = "croft";
/// Period of the processor limit in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;

/// Bounds of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, with what the kernel needs for the payload.
    pub memory: u64,
    /// Threads.
    pub tasks: u64,
    /// Processors that can be busy at once.
    pub processors: u64,
}

/// A controller that limits are set by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

impl Controller {
    const fn word(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
        }
    }

    /// Files and what to write to them, in version 2 or 1
    /// (Linux `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/`).
    fn settings(self, unified: bool, limits: &Limits) -> Vec<(&'static str, String)> {
        let quota = limits.processors.saturating_mul(PERIOD);
        match (self, unified) {
            (Controller::Memory, true) => vec![("memory.max", limits.memory.to_string())],
            (Controller::Memory, false) => {
                vec![("memory.limit_in_bytes", limits.memory.to_string())]
            }
            (Controller::Pids, _) => vec![("pids.max", limits.tasks.to_string())],
            (Controller::Cpu, true) => vec![("cpu.max", format!("{quota} {PERIOD}"))],
            (Controller::Cpu, false) => vec![
                ("cpu.cfs_period_us", PERIOD.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ],
        }
    }
}

/// The mounted hierarchies, and where this process is in them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    /// Version 2: its mount, and our group in it.
    unified: Option<(PathBuf, String)>,
    /// Version 1, by controller.
    old: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// From `/proc/self/mounts` (fstab(5)) and `/proc/self/cgroup`
    /// (cgroups(7)).
    fn parse(mounts: &str, groups: &str) -> Self {
        let own = groups
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap_or("/");
        let mut found = Hierarchies::default();
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(place), Some(kind), Some(options)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" if found.unified.is_none() => {
                    found.unified = Some((place.into(), own.to_owned()));
                }
                "cgroup" => {
                    let known = CONTROLLERS.iter().map(|one| one.word());
                    for word in known.filter(|word| options.split(',').any(|one| one == *word)) {
                        found.old.push((word.to_owned(), place.into()));
                    }
                }
                _ => {}
            }
        }
        found
    }
}

/// A control group. Removed when dropped, which its processes must have left
/// by their end.
#[derive(Debug)]
pub struct ControlGroup {
    /// One directory for each hierarchy.
    directories: Vec<PathBuf>,
}

impl ControlGroup {
    /// Makes a group for the payload called `name`, and says which limits it
    /// has.
    pub fn create(name: &str, limits: &Limits) -> (Option<Self>, Part) {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let hierarchies =
            Hierarchies::parse(&read("/proc/self/mounts"), &read("/proc/self/cgroup"));
        let root = rustix::process::geteuid().is_root();
        let name = format!("{name}.{}", process::id());
        Self::create_in(&hierarchies, root, &name, limits)
    }

    fn create_in(
        hierarchies: &Hierarchies,
        root: bool,
        name: &str,
        limits: &Limits,
    ) -> (Option<Self>, Part) {
        let mut group = ControlGroup {
            directories: Vec::new(),
        };
        let mut set = Vec::new();
        let mut why = Vec::new();
        for controller in CONTROLLERS {
            match group.limit(controller, hierarchies, root, name, limits) {
                Ok(()) => set.push(controller.word()),
                Err(error) => why.push(format!("{} ({error})", controller.word())),
            }
        }
        let part = if set.is_empty() {
            Part::missing(Piece::ControlGroup, format!("not {}", why.join(", ")))
        } else if why.is_empty() {
            Part::there(Piece::ControlGroup, set.join(", "))
        } else {
            let text = format!("{}; not {}", set.join(", "), why.join(", "));
            Part::there(Piece::ControlGroup, text)
        };
        if set.is_empty() {
            (None, part)
        } else {
            (Some(group), part)
        }
    }

    /// Sets one controller's limit, with a directory for it.
    fn limit(
        &mut self,
        controller: Controller,
        hierarchies: &Hierarchies,
        root: bool,
        name: &str,
        limits: &Limits,
    ) -> io::Result<()> {
        let word = controller.word();
        let old = hierarchies.old.iter().find(|(one, _)| one == word);
        let unified = old.is_none();
        let directory = match (old, &hierarchies.unified) {
            (Some((_, mount)), _) if root => {
                let parent = mount.join(PARENT);
                make(&parent)?;
                parent.join(name)
            }
            (Some(_), _) => return Err(io::Error::other("version 1, root's alone")),
            (None, Some((mount, _))) if root => {
                enable(mount, word)?;
                let parent = mount.join(PARENT);
                make(&parent)?;
                enable(&parent, word)?;
                parent.join(name)
            }
            (None, Some((mount, own))) => {
                let own = mount.join(own.trim_start_matches('/'));
                enable(&own, word)?;
                own.join(format!("{PARENT}-{name}"))
            }
            (None, None) => return Err(io::Error::other("not mounted")),
        };
        if !self.directories.contains(&directory) {
            if let Some(parent) = directory.parent() {
                sweep(parent);
            }
            make(&directory)?;
            self.directories.push(directory.clone());
        }
        for (file, value) in controller.settings(unified, limits) {
            fs::write(directory.join(file), value)?;
        }
        Ok(())
    }

    /// Moves a process into it.
    pub fn add(&self, process: rustix::process::Pid) -> io::Result<()> {
        let id = process.as_raw_nonzero().to_string();
        self.directories
            .iter()
            .try_for_each(|directory| fs::write(directory.join("cgroup.procs"), &id))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            // One that is not empty yet is swept later.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Lets the groups beneath `directory` of version 2 have a controller.
fn enable(directory: &Path, word: &str) -> io::Result<()> {
    let control = directory.join("cgroup.subtree_control");
    let has = |file: &str| -> io::Result<bool> {
        let listed = fs::read_to_string(directory.join(file))?;
        Ok(listed.split_whitespace().any(|one| one == word))
    };
    if has("cgroup.subtree_control")? {
        Ok(())
    } else if has("cgroup.controllers")? {
        fs::write(control, format!("+{word}"))
    } else {
        Err(io::Error::other("not delegated"))
    }
}

/// Removes groups in `parent` whose monitors were killed: what a name ends
/// with is the monitor's process id.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.rsplit_once('.'));
        let Some(Ok(owner)) = owner.map(|(_, id)| id.parse::<u32>()) else {
            continue;
        };
        let ours = parent.ends_with(PARENT) || name.to_string_lossy().starts_with(PARENT);
        if ours && !Path::new(&format!("/proc/{owner}")).exists() {
            // One that has processes stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory: 1 << 30,
        tasks: 100,
        processors: 3,
    };

    /// Hierarchies as files in a directory.
    fn unified(controllers: &str) -> (tempfile::TempDir, Hierarchies) {
        let directory = tempfile::tempdir().unwrap();
        for place in ["", "croft", "own"] {
            let place = directory.path().join(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("cgroup.controllers"), controllers).unwrap();
            fs::write(place.join("cgroup.subtree_control"), controllers).unwrap();
        }
        let mount = directory.path().to_owned();
        let hierarchies = Hierarchies {
            unified: Some((mount, "/own".to_owned())),
            old: Vec::new(),
        };
        (directory, hierarchies)
    }

    fn read(directory: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(directory.path().join(path)).unwrap()
    }

    #[test]
    fn version_2_for_root_and_users() {
        let (directory, hierarchies) = unified("cpu memory pids\n");
        let (group, part) = ControlGroup::create_in(&hierarchies, true, "a.1", &LIMITS);
        assert_eq!(part.state, Ok("memory, pids, cpu".to_owned()));
        assert_eq!(read(&directory, "croft/a.1/memory.max"), "1073741824");
        assert_eq!(read(&directory, "croft/a.1/pids.max"), "100");
        assert_eq!(read(&directory, "croft/a.1/cpu.max"), "300000 100000");
        let own = rustix::process::getpid();
        group.unwrap().add(own).unwrap();
        let id = own.as_raw_nonzero().to_string();
        assert_eq!(read(&directory, "croft/a.1/cgroup.procs"), id);
        let (group, _) = ControlGroup::create_in(&hierarchies, false, "b.1", &LIMITS);
        assert!(group.is_some());
        assert_eq!(read(&directory, "own/croft-b.1/pids.max"), "100");
    }

    #[test]
    fn what_is_not_delegated_is_named() {
        let (_directory, hierarchies) = unified("pids\n");
        let (group, part) = ControlGroup::create_in(&hierarchies, false, "a.1", &LIMITS);
        assert!(group.is_some());
        let text = part.state.unwrap();
        assert!(
            text.starts_with("pids; not memory (not delegated), cpu"),
            "{text}"
        );
        let (group, part) = ControlGroup::create_in(&Hierarchies::default(), false, "a.1", &LIMITS);
        assert!(group.is_none());
        let text = part.state.unwrap_err();
        assert!(text.starts_with("not memory (not mounted), "), "{text}");
    }

    #[test]
    fn mixtures_are_told_apart() {
        let found = Hierarchies::parse(
            "cgroup /c/memory cgroup rw,memory 0 0\n\
             cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\n\
             cgroup2 /c/unified cgroup2 rw 0 0\nbad\n",
            "5:memory:/x\n0::/user.slice\n",
        );
        assert_eq!(
            found.unified,
            Some(("/c/unified".into(), "/user.slice".to_owned()))
        );
        let words: Vec<&str> = found.old.iter().map(|(word, _)| word.as_str()).collect();
        assert_eq!(words, ["memory", "cpu"]);
    }

    #[test]
    fn groups_of_the_dead_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("croft");
        // Process ids end below 2^22 (proc_sys_kernel(5), pid_max).
        let dead = parent.join("gone.4194305");
        let own = parent.join(format!("here.{}", process::id()));
        let other = parent.join("other");
        for one in [&dead, &own, &other] {
            fs::create_dir_all(one).unwrap();
        }
        sweep(&parent);
        assert!(!dead.exists() && own.exists() && other.exists());
    }
}
