//! Time and block devices.

use std::time::Duration;

use croft_isolate::cgroups::{Cpu, Io};

use super::processors::idle;
use crate::reader::TICKS;

/// Bytes of a sector in `/proc/diskstats` (Linux `admin-guide/iostats.rst`).
const SECTOR: u64 = 512;

/// `/proc/uptime`: since the container's start.
pub fn uptime(count: usize, cpu: &Cpu, age: Duration) -> String {
    let idle = idle(count, cpu, age);
    format!(
        "{}.{:02} {}.{:02}\n",
        age.as_secs(),
        age.subsec_millis() / 10,
        idle / TICKS,
        idle % TICKS
    )
}

/// `/proc/diskstats`: devices that the container has used.
pub fn diskstats(host: &str, io: &[Io]) -> String {
    let mut out = String::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        let (Some(Ok(major)), Some(Ok(minor)), Some(name)) = (
            words.next().map(str::parse::<u32>),
            words.next().map(str::parse::<u32>),
            words.next(),
        ) else {
            continue;
        };
        let used = io
            .iter()
            .find(|one| (one.major, one.minor) == (major, minor));
        let Some(one) = used else { continue };
        out.push_str(&format!(
            "{major:>4} {minor:>7} {name} {} 0 {} 0 {} 0 {} 0 0 0 0\n",
            one.reads,
            one.read_bytes / SECTOR,
            one.writes,
            one.written_bytes / SECTOR
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_groups_numbers() {
        let cpu = Cpu {
            usage: 1_500_000,
            ..Cpu::default()
        };
        let text = uptime(2, &cpu, Duration::from_millis(10_120));
        assert_eq!(text, "10.12 18.74\n");
        let io = Io {
            major: 8,
            minor: 0,
            read_bytes: 1024,
            written_bytes: 4096,
            reads: 1,
            writes: 2,
        };
        let host = "   7       0 loop0 1 1 1\n   8       0 sda 9 9 9\nbad\n";
        assert_eq!(
            diskstats(host, &[io]),
            "   8       0 sda 1 0 2 0 2 0 8 0 0 0 0\n"
        );
    }
}
