//! What a group has taken.

use std::collections::BTreeMap;
use std::fs;

use rustix::io::Errno;

use super::dir::Dir;
use super::group::Place;
use super::{Controllers, Error, Group, Version};

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Time taken, in microseconds.
    pub usage: u64,
    /// Of it in user mode, in microseconds.
    pub user: u64,
    /// Of it in the kernel, in microseconds.
    pub system: u64,
    /// Time taken on each processor, in microseconds; version 1 alone knows.
    pub each: Vec<u64>,
    /// Periods of the quota that the group ran in.
    pub periods: u64,
    /// Of them those in which it was held back.
    pub throttled_periods: u64,
    /// For how long, in microseconds.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use, with the page cache.
    pub used: u64,
    /// The most there was; not before Linux 5.19 in version 2.
    pub most: Option<u64>,
    /// The limit.
    pub limit: Option<u64>,
    /// Swap in use.
    pub swap: u64,
    /// The limit of swap alone.
    pub swap_limit: Option<u64>,
    /// The kernel's, for the group.
    pub kernel: u64,
    /// Anonymous.
    pub anonymous: u64,
    /// Of files.
    pub file: u64,
    /// Of files and not used for long: given back first.
    pub inactive_file: u64,
    /// Files in memory alone.
    pub shared: u64,
    /// How often the limit was met.
    pub limit_met: u64,
    /// How often a process was ended for want of memory.
    pub oom_kills: u64,
    /// Every number of `memory.stat`.
    pub all: Vec<(String, u64)>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// There are.
    pub current: u64,
    /// The limit.
    pub limit: Option<u64>,
}

/// A block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// The size as the kernel writes it: `2MB`, `1GB`.
    pub size: String,
    /// In use, in bytes.
    pub used: u64,
    /// The most there was; version 1 alone knows.
    pub most: Option<u64>,
    /// The limit was met so often.
    pub limit_met: u64,
}

/// Time lost for want of a resource (Linux `accounting/psi.rst`), as
/// hundredths of a percent of the last 10, 60 and 300 seconds, and in
/// microseconds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some processes waited.
    pub some: [u32; 3],
    /// All waited.
    pub full: [u32; 3],
    /// Some waited, in all.
    pub some_total: u64,
    /// All waited, in all.
    pub full_total: u64,
}

/// All of it. What a host does not count is zero, empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub io: Vec<Io>,
    /// Huge pages.
    pub hugepages: Vec<HugePages>,
    /// Pressure on processors.
    pub cpu_pressure: Option<Pressure>,
    /// Pressure on memory.
    pub memory_pressure: Option<Pressure>,
    /// Pressure on block devices.
    pub io_pressure: Option<Pressure>,
}

impl Group {
    /// What it has taken so far.
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut stats = Stats::default();
        if let Some(place) = self.place(Controllers::CPUACCT) {
            cpu_time(place, &mut stats.cpu)?;
        }
        if let Some(place) = self.place(Controllers::CPU) {
            cpu_quota(place, &mut stats.cpu)?;
        }
        if let Some(place) = self.place(Controllers::MEMORY) {
            stats.memory = memory(&place.dir, place.version)?;
        }
        if let Some(place) = self.place(Controllers::PIDS) {
            stats.pids.current = number(&place.dir, "pids.current")?.unwrap_or_default();
            stats.pids.limit = number(&place.dir, "pids.max")?;
        }
        if let Some(place) = self.place(Controllers::IO) {
            stats.io = match place.version {
                Version::One => io_1(&place.dir)?,
                Version::Two => io_2(&text(&place.dir, "io.stat")?),
            };
        }
        if let Some(place) = self.place(Controllers::HUGETLB) {
            stats.hugepages = hugepages(place)?;
        }
        if let Some(place) = self.unified() {
            stats.cpu_pressure = pressure(&text(&place.dir, "cpu.pressure")?);
            stats.memory_pressure = pressure(&text(&place.dir, "memory.pressure")?);
            stats.io_pressure = pressure(&text(&place.dir, "io.pressure")?);
        }
        Ok(stats)
    }

    /// How many of its processes the kernel has ended for want of memory so
    /// far: of all that [`Group::stats`] reads, this alone.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let kills = |place: &Place| oom_kills(&place.dir, place.version);
        self.place(Controllers::MEMORY).map_or(Ok(0), kills)
    }
}

/// A file's text; empty where the kernel has no such file or does not count.
pub(super) fn text(dir: &Dir, file: &str) -> Result<String, Error> {
    match dir.text(file) {
        Err(source) => match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::OPNOTSUPP) => Ok(String::new()),
            _ => Err(Error::Read {
                path: dir.path().join(file),
                source,
            }),
        },
        Ok(text) => Ok(text),
    }
}

/// A file's only number; `max` is none.
fn number(dir: &Dir, file: &str) -> Result<Option<u64>, Error> {
    Ok(text(dir, file)?.trim().parse().ok())
}

/// Lines of a word and a number.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (word, number) = line.split_once(' ')?;
        Some((word, number.trim().parse().ok()?))
    })
}

/// The number of a word.
pub(super) fn field(text: &str, word: &str) -> u64 {
    let found = pairs(text).find(|(one, _)| *one == word);
    found.map(|(_, number)| number).unwrap_or_default()
}

/// Where version 2 counts what happened for want of memory.
const EVENTS: &str = "memory.events";
/// Nanoseconds of a microsecond.
const NANO: u64 = 1000;
/// Microseconds of a tick of `cpuacct.stat` (`USER_HZ` is 100 on x86).
const TICK: u64 = 10_000;
/// Limits of version 1 from here on are none: it keeps pages in a signed
/// number of bytes.
const UNLIMITED: u64 = i64::MAX as u64 - 0xFFFF;

fn cpu_time(place: &Place, cpu: &mut Cpu) -> Result<(), Error> {
    let dir = &place.dir;
    match place.version {
        Version::One => {
            cpu.usage = number(dir, "cpuacct.usage")?.unwrap_or_default() / NANO;
            let stat = text(dir, "cpuacct.stat")?;
            cpu.user = field(&stat, "user").saturating_mul(TICK);
            cpu.system = field(&stat, "system").saturating_mul(TICK);
            let each = text(dir, "cpuacct.usage_percpu")?;
            let each = each.split_whitespace().filter_map(|one| one.parse().ok());
            cpu.each = each.map(|time: u64| time / NANO).collect();
        }
        Version::Two => {
            let stat = text(dir, "cpu.stat")?;
            cpu.usage = field(&stat, "usage_usec");
            cpu.user = field(&stat, "user_usec");
            cpu.system = field(&stat, "system_usec");
        }
    }
    Ok(())
}

fn cpu_quota(place: &Place, cpu: &mut Cpu) -> Result<(), Error> {
    let stat = text(&place.dir, "cpu.stat")?;
    cpu.periods = field(&stat, "nr_periods");
    cpu.throttled_periods = field(&stat, "nr_throttled");
    cpu.throttled = match place.version {
        Version::One => field(&stat, "throttled_time") / NANO,
        Version::Two => field(&stat, "throttled_usec"),
    };
    Ok(())
}

/// Of one group.
pub(super) fn memory(dir: &Dir, version: Version) -> Result<Memory, Error> {
    match version {
        Version::One => memory_1(dir),
        Version::Two => memory_2(dir),
    }
}

fn memory_1(dir: &Dir) -> Result<Memory, Error> {
    let stat = text(dir, "memory.stat")?;
    let limit = |limit: Option<u64>| limit.filter(|limit| *limit < UNLIMITED);
    let memory = limit(number(dir, "memory.limit_in_bytes")?);
    let total = limit(number(dir, "memory.memsw.limit_in_bytes")?);
    Ok(Memory {
        used: number(dir, "memory.usage_in_bytes")?.unwrap_or_default(),
        most: number(dir, "memory.max_usage_in_bytes")?,
        limit: memory,
        swap: field(&stat, "total_swap"),
        swap_limit: total.map(|total| total.saturating_sub(memory.unwrap_or_default())),
        kernel: number(dir, "memory.kmem.usage_in_bytes")?.unwrap_or_default(),
        anonymous: field(&stat, "total_rss"),
        file: field(&stat, "total_cache"),
        inactive_file: field(&stat, "total_inactive_file"),
        shared: field(&stat, "total_shmem"),
        limit_met: number(dir, "memory.failcnt")?.unwrap_or_default(),
        oom_kills: oom_kills(dir, Version::One)?,
        all: all(&stat),
    })
}

fn oom_kills(dir: &Dir, version: Version) -> Result<u64, Error> {
    let file = match version {
        Version::One => "memory.oom_control",
        Version::Two => EVENTS,
    };
    Ok(field(&text(dir, file)?, "oom_kill"))
}

fn memory_2(dir: &Dir) -> Result<Memory, Error> {
    let stat = text(dir, "memory.stat")?;
    let events = text(dir, EVENTS)?;
    Ok(Memory {
        used: number(dir, "memory.current")?.unwrap_or_default(),
        most: number(dir, "memory.peak")?,
        limit: number(dir, "memory.max")?,
        swap: number(dir, "memory.swap.current")?.unwrap_or_default(),
        swap_limit: number(dir, "memory.swap.max")?,
        kernel: field(&stat, "kernel"),
        anonymous: field(&stat, "anon"),
        file: field(&stat, "file"),
        inactive_file: field(&stat, "inactive_file"),
        shared: field(&stat, "shmem"),
        limit_met: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
        all: all(&stat),
    })
}

fn all(stat: &str) -> Vec<(String, u64)> {
    pairs(stat)
        .map(|(word, number)| (word.to_owned(), number))
        .collect()
}

/// `8:0 Read 4096`, a line for each device and kind.
fn io_1(dir: &Dir) -> Result<Vec<Io>, Error> {
    let mut all: BTreeMap<(u32, u32), Io> = BTreeMap::new();
    for name in ["io_service_bytes", "io_serviced"] {
        // The plain file leaves out the groups beneath.
        let recursive = text(dir, &format!("blkio.throttle.{name}_recursive"))?;
        let lines = match recursive.is_empty() {
            true => text(dir, &format!("blkio.throttle.{name}"))?,
            false => recursive,
        };
        for line in lines.lines() {
            let mut words = line.split(' ');
            let device = words.next().and_then(device);
            let (Some(device), Some(kind)) = (device, words.next()) else {
                continue;
            };
            let value = words.next().and_then(|word| word.parse().ok());
            let io = all.entry(device).or_insert(Io {
                major: device.0,
                minor: device.1,
                ..Io::default()
            });
            let field = match (name, kind) {
                ("io_service_bytes", "Read") => &mut io.read_bytes,
                ("io_service_bytes", "Write") => &mut io.written_bytes,
                ("io_serviced", "Read") => &mut io.reads,
                ("io_serviced", "Write") => &mut io.writes,
                _ => continue,
            };
            *field = value.unwrap_or_default();
        }
    }
    Ok(all.into_values().collect())
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 ...`, a line for each device.
fn io_2(text: &str) -> Vec<Io> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = words.next().and_then(device)?;
        let mut io = Io {
            major,
            minor,
            ..Io::default()
        };
        for (word, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match word {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.written_bytes,
                "rios" => &mut io.reads,
                "wios" => &mut io.writes,
                _ => continue,
            };
            *field = value.parse().unwrap_or_default();
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

fn device(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Of every size that this host has.
fn hugepages(place: &Place) -> Result<Vec<HugePages>, Error> {
    let dir = &place.dir;
    let mut all = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
    {
        let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
        let kib = name.to_str().and_then(|name| {
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            size.parse::<u64>().ok()
        });
        let Some(kib) = kib else { continue };
        let size = size_word(kib);
        let (used, most, met) = match place.version {
            Version::One => (
                number(dir, &format!("hugetlb.{size}.usage_in_bytes"))?,
                number(dir, &format!("hugetlb.{size}.max_usage_in_bytes"))?,
                number(dir, &format!("hugetlb.{size}.failcnt"))?,
            ),
            Version::Two => (
                number(dir, &format!("hugetlb.{size}.current"))?,
                None,
                Some(field(&text(dir, &format!("hugetlb.{size}.events"))?, "max")),
            ),
        };
        all.push(HugePages {
            size,
            used: used.unwrap_or_default(),
            most,
            limit_met: met.unwrap_or_default(),
        });
    }
    all.sort_by(|one, two| one.size.cmp(&two.size));
    Ok(all)
}

/// As the files' names have it (Linux `mm/hugetlb_cgroup.c`, `mem_fmt`).
fn size_word(kib: u64) -> String {
    match kib {
        0..1024 => format!("{kib}KB"),
        1024..0x10_0000 => format!("{}MB", kib >> 10),
        _ => format!("{}GB", kib >> 20),
    }
}

/// `some avg10=0.12 avg60=0.00 avg300=0.00 total=123`, and the same for
/// `full`.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut found = None;
    for line in text.lines() {
        let pressure: &mut Pressure = found.get_or_insert_default();
        let mut words = line.split(' ');
        let (averages, total) = match words.next() {
            Some("some") => (&mut pressure.some, &mut pressure.some_total),
            Some("full") => (&mut pressure.full, &mut pressure.full_total),
            _ => continue,
        };
        for (word, value) in words.filter_map(|word| word.split_once('=')) {
            match word {
                "avg10" => averages[0] = hundredths(value),
                "avg60" => averages[1] = hundredths(value),
                "avg300" => averages[2] = hundredths(value),
                "total" => *total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
    }
    found
}

/// `1.23` as 123.
fn hundredths(text: &str) -> u32 {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = whole.parse().unwrap_or_default();
    whole
        .saturating_mul(100)
        .saturating_add(part.parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        let text = "some avg10=1.23 avg60=0.05 avg300=100.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let read = pressure(text).unwrap();
        assert_eq!(read.some, [123, 5, 10_000]);
        assert_eq!((read.some_total, read.full_total), (77, 5));
        assert_eq!(pressure(""), None);
        let io = io_2("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n\nbad\n");
        let wanted = Io {
            major: 8,
            minor: 16,
            read_bytes: 1,
            written_bytes: 2,
            reads: 3,
            writes: 4,
        };
        assert_eq!(io, [wanted]);
        assert_eq!(field("a 1\nb 2\n", "b"), 2);
        assert_eq!([64, 2048, 1 << 20].map(size_word), ["64KB", "2MB", "1GB"]);
    }
}
