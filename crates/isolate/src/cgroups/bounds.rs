//! What bounds a group: its own limits and those of the groups above it.

use std::path::Path;

use super::dir::Dir;
use super::group::Place;
use super::stats::{Memory, memory};
use super::{Controllers, Error, Group, Version};

/// The name of the group that systemd puts itself into, as the init of a
/// container too.
const INIT_SCOPE: &str = "init.scope";

/// What a group may take of the host at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of swap.
    pub swap: Option<u64>,
    /// What the group that has the limit of memory has taken of it; the group
    /// itself where there is none.
    pub taken: Memory,
    /// Processors that can be busy at once, rounded up, by its quota.
    pub busy: Option<u64>,
    /// Processors that its processes may run on, as a list such as `0-3,7`;
    /// empty where the host has no such sets.
    pub set: String,
}

impl Group {
    /// What bounds it.
    pub fn bounds(&self) -> Result<Bounds, Error> {
        let mut bounds = Bounds::default();
        if let Some(place) = self.place(Controllers::MEMORY) {
            bounds.taken = memory(&place.dir, place.version)?;
            for dir in upwards(place, ["memory.max", "memory.limit_in_bytes"]) {
                let taken = memory(&dir, place.version)?;
                let swap = taken.swap_limit;
                bounds.swap = swap.into_iter().chain(bounds.swap).min();
                if let Some(limit) = taken
                    .limit
                    .filter(|limit| bounds.memory.is_none_or(|one| *limit < one))
                {
                    bounds.memory = Some(limit);
                    bounds.taken = taken;
                }
            }
        }
        if let Some(place) = self.place(Controllers::CPU) {
            let dirs = upwards(place, ["cpu.max", "cpu.cfs_quota_us"]);
            bounds.busy = dirs.iter().filter_map(|dir| busy(dir, place.version)).min();
        }
        if let Some(place) = self.place(Controllers::CPUSET) {
            let files = [
                "cpuset.cpus.effective",
                "cpuset.effective_cpus",
                "cpuset.cpus",
            ];
            let found = files.iter().find_map(|file| place.dir.text(file).ok());
            bounds.set = found.unwrap_or_default().trim().to_owned();
        }
        Ok(bounds)
    }

    /// The group of a container, from that of its init: an init that puts
    /// itself into a group of its own is in the one above it.
    pub fn of_init(mut self) -> Self {
        for place in &mut self.places {
            let path = place.dir.path();
            if path.ends_with(INIT_SCOPE)
                && let Some(Ok(above)) = path.parent().map(|above| Dir::open(above.to_owned()))
            {
                place.dir = above;
            }
        }
        self
    }
}

/// The group's directory and those above it that have a file of this name.
fn upwards(place: &Place, [new, old]: [&str; 2]) -> Vec<Dir> {
    let file = match place.version {
        Version::One => old,
        Version::Two => new,
    };
    let above = place.dir.path().ancestors();
    let has = |path: &&Path| path.join(file).exists();
    above
        .take_while(has)
        .filter_map(|path| Dir::open(path.to_owned()).ok())
        .collect()
}

/// Processors of a quota, rounded up.
fn busy(dir: &Dir, version: Version) -> Option<u64> {
    let (quota, period) = match version {
        Version::One => (
            dir.text("cpu.cfs_quota_us").ok()?,
            dir.text("cpu.cfs_period_us").ok()?,
        ),
        Version::Two => {
            let text = dir.text("cpu.max").ok()?;
            let (quota, period) = text.split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
    };
    // Version 1 says -1, version 2 says max.
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|period| *period > 0)?;
    Some(quota.div_ceil(period).max(1))
}
