//! A control group for a payload: bounds for what it takes of the host, from
//! outside.
//!
//! Root's groups are `croft/NAME.vmm-MONITOR` in each hierarchy; a user's are
//! beneath the highest group that was delegated to the user. What a host does
//! not have is left out.

use std::path::{Path, PathBuf};
use std::process;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use crate::cgroups::{Controllers, Error, Group, Hierarchies};
use crate::report::{Part, Piece};

/// Group of all groups of root's machines.
const PARENT: &str = "croft";
/// Between a machine's name and its monitor's process id. Containers' groups
/// are beside those of machines, and none has this in its name: a number alone
/// one may have, and it would be taken for one that a killed monitor left.
const MARK: &str = "vmm-";
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

/// Controllers that limits are set by.
const CONTROLLERS: [(&str, Controllers); 3] = [
    ("memory", Controllers::MEMORY),
    ("pids", Controllers::PIDS),
    ("cpu", Controllers::CPU),
];

impl Limits {
    /// What a controller is told.
    fn of(&self, controller: Controllers) -> Result<LinuxResources, OciSpecError> {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let all = LinuxResourcesBuilder::default();
        match controller {
            Controllers::MEMORY => {
                let memory = LinuxMemoryBuilder::default().limit(signed(self.memory));
                all.memory(memory.build()?).build()
            }
            Controllers::PIDS => {
                let pids = LinuxPidsBuilder::default().limit(signed(self.tasks));
                all.pids(pids.build()?).build()
            }
            _ => {
                let quota = signed(self.processors.saturating_mul(PERIOD));
                let cpu = LinuxCpuBuilder::default().quota(quota).period(PERIOD);
                all.cpu(cpu.build()?).build()
            }
        }
    }
}

/// A control group. Removed when dropped, which its processes must have left
/// by their end.
#[derive(Debug)]
pub struct ControlGroup {
    group: Group,
}

impl ControlGroup {
    /// Makes a group for the payload called `name`, and says which limits it
    /// has.
    pub fn create(name: &str, limits: &Limits) -> (Option<Self>, Part) {
        let name = format!("{PARENT}/{name}.{MARK}{}", process::id());
        match Hierarchies::find() {
            Ok(hierarchies) => Self::create_in(&hierarchies, Path::new(&name), limits),
            Err(error) => (None, Part::missing(Piece::ControlGroup, error)),
        }
    }

    fn create_in(hierarchies: &Hierarchies, path: &Path, limits: &Limits) -> (Option<Self>, Part) {
        let wanted = CONTROLLERS.iter().map(|(_, one)| *one).collect();
        let group = match Group::create(hierarchies, path, wanted) {
            Ok(group) => ControlGroup { group },
            Err(error) => return (None, Part::missing(Piece::ControlGroup, error)),
        };
        group.sweep();
        let (mut set, mut why) = (Vec::new(), Vec::new());
        for (word, controller) in CONTROLLERS {
            match group.limit(controller, limits) {
                Ok(()) => set.push(word),
                Err(error) => why.push(format!("{word} ({error})")),
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
        (Some(group).filter(|_| !set.is_empty()), part)
    }

    /// Sets one controller's limit.
    fn limit(&self, controller: Controllers, limits: &Limits) -> Result<(), String> {
        let limits = limits.of(controller).map_err(|error| error.to_string())?;
        let left_out = self
            .group
            .apply(&limits)
            .map_err(|error| error.to_string())?;
        match left_out.into_iter().next() {
            Some(one) => Err(one.why),
            None => Ok(()),
        }
    }

    /// Moves a process into it.
    pub fn add(&self, process: rustix::process::Pid) -> Result<(), Error> {
        self.group.add(process)
    }

    /// Removes groups of machines beside it whose monitors were killed: what a
    /// name ends with is the monitor's process id.
    fn sweep(&self) {
        for parent in self.group.paths().filter_map(Path::parent) {
            sweep(parent);
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // One that is not empty yet is swept later.
        let _ = self.group.delete();
    }
}

/// Removes the groups of machines whose monitors are gone. One that has
/// processes stays. So does any other, whatever it is called: one that is empty
/// may be a container's whose init is on its way there.
fn sweep(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let owner = path
            .extension()
            .and_then(|owner| owner.to_str()?.strip_prefix(MARK)?.parse().ok());
        if owner.is_some_and(|owner: u32| !alive(owner)) {
            let _ = rustix::fs::rmdir(&path);
        }
    }
}

fn alive(process: u32) -> bool {
    PathBuf::from(format!("/proc/{process}")).exists()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LIMITS: Limits = Limits {
        memory: 1 << 30,
        tasks: 100,
        processors: 3,
    };

    #[test]
    fn what_is_not_there_is_named() {
        let path = Path::new("croft/a.1");
        let (group, part) = ControlGroup::create_in(&Hierarchies::default(), path, &LIMITS);
        assert!(group.is_none());
        let text = part.state.unwrap_err();
        let wanted = "not memory (this host has no such controller), pids (";
        assert!(text.starts_with(wanted), "{text}");
    }

    #[test]
    fn groups_of_the_dead_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("croft");
        // Process ids end below 2^22 (proc_sys_kernel(5), pid_max).
        let dead = parent.join("gone.vmm-4194305");
        let own = parent.join(format!("here.vmm-{}", process::id()));
        let other = parent.join("other");
        // A container's, of the inode 0x4194305.
        let container = parent.join("web.4194305");
        for one in [&dead, &own, &other, &container] {
            fs::create_dir_all(one).unwrap();
        }
        sweep(&parent);
        assert!(!dead.exists());
        assert!(own.exists() && other.exists() && container.exists());
    }
}
