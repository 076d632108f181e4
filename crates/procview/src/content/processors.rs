//! Processors: how many, and what they did.

use std::time::Duration;

use croft_isolate::cgroups::{Bounds, Cpu};

use crate::reader::TICKS;

/// Microseconds of a tick.
const TICK: u64 = 1_000_000 / TICKS;
/// The highest number that is believed (Linux takes 8192 at most).
const HIGHEST: u32 = 1 << 16;

/// Numbers of a list such as `0-3,7` (cpuset(7), "List format").
pub fn numbers(list: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            all.extend(first..=last.min(HIGHEST));
        }
    }
    all
}

/// The host's processors that a container sees: those of its set, as many as
/// its quota keeps busy; one at least.
pub fn visible(bounds: &Bounds, online: &str) -> Vec<u32> {
    let mut all = numbers(online);
    let set = numbers(&bounds.set);
    if set.iter().any(|one| all.contains(one)) {
        all.retain(|one| set.contains(one));
    }
    let busy = bounds.busy.and_then(|busy| usize::try_from(busy).ok());
    all.truncate(busy.unwrap_or(usize::MAX).max(1));
    match all.is_empty() {
        true => vec![0],
        false => all,
    }
}

/// `/sys/devices/system/cpu/online`: counted from 0, as in `cpuinfo`.
pub fn online(count: usize) -> String {
    match count {
        0 | 1 => "0\n".to_owned(),
        _ => format!("0-{}\n", count - 1),
    }
}

/// `/proc/cpuinfo`: a paragraph for each, counted from 0.
pub fn cpuinfo(host: &str, visible: &[u32]) -> String {
    let number = |paragraph: &str| {
        let line = paragraph
            .lines()
            .find(|line| line.starts_with("processor"))?;
        line.split_once(':')?.1.trim().parse::<u32>().ok()
    };
    let all = host.split_inclusive("\n\n");
    let shown = all.filter(|one| number(one).is_some_and(|number| visible.contains(&number)));
    let mut out = String::with_capacity(host.len());
    for (index, paragraph) in shown.enumerate() {
        for line in paragraph.lines() {
            match line.starts_with("processor") {
                true => out.push_str(&format!("processor\t: {index}")),
                false => out.push_str(line),
            }
            out.push('\n');
        }
    }
    out
}

/// Ticks that the group's processors had nothing to do.
pub fn idle(count: usize, cpu: &Cpu, age: Duration) -> u64 {
    let whole = ticks(age).saturating_mul(u64::try_from(count).unwrap_or(1));
    whole.saturating_sub(cpu.usage / TICK)
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / TICK
}

/// `/proc/stat`: the container's time, spread over its processors, since its
/// start.
pub fn stat(host: &str, count: usize, cpu: &Cpu, age: Duration) -> String {
    // Version 1 counts these two in ticks and the sum exactly.
    let known = (cpu.user + cpu.system).max(1);
    let share = |part: u64| u128::from(cpu.usage) * u128::from(part) / u128::from(known);
    let user = u64::try_from(share(cpu.user)).unwrap_or_default() / TICK;
    let system = (cpu.usage / TICK).saturating_sub(user);
    let idle = idle(count, cpu, age);
    let line = |name: &str, of: u64| {
        let (user, system, idle) = (user / of, system / of, idle / of);
        format!("{name} {user} 0 {system} {idle} 0 0 0 0 0 0\n")
    };
    let mut out = line("cpu ", 1);
    for index in 0..count {
        out.push_str(&line(
            &format!("cpu{index}"),
            u64::try_from(count).unwrap_or(1),
        ));
    }
    for text in host.lines().filter(|line| !line.starts_with("cpu")) {
        match text.strip_prefix("btime ").map(str::parse::<u64>) {
            Some(Ok(boot)) => out.push_str(&format!("btime {}\n", started(boot, age))),
            _ => {
                out.push_str(text);
                out.push('\n');
            }
        }
    }
    out
}

/// When a container started, in seconds of the epoch: what the clock says
/// now, less its age. The host's boot is no later.
fn started(boot: u64, age: Duration) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(boot, |now| now.saturating_sub(age).as_secs().max(boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_those_of_the_set_and_quota() {
        let bounds = |set: &str, busy: Option<u64>| Bounds {
            set: set.to_owned(),
            busy,
            ..Bounds::default()
        };
        assert_eq!(visible(&bounds("", None), "0-3\n"), [0, 1, 2, 3]);
        assert_eq!(visible(&bounds("1-2,9", None), "0-3\n"), [1, 2]);
        assert_eq!(visible(&bounds("", Some(1)), "0-3\n"), [0]);
        assert_eq!(visible(&bounds("2", Some(4)), "0-3\n"), [2]);
        assert_eq!(visible(&bounds("x", Some(0)), ""), [0]);
        assert_eq!(
            (online(1), online(3)),
            ("0\n".to_owned(), "0-2\n".to_owned())
        );
        assert_eq!(numbers("4294967290-4294967295").len(), 0);
    }

    #[test]
    fn paragraphs_are_counted_anew() {
        let host = "processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\nprocessor\t: 2\nmodel\t: c\n\n";
        let text = cpuinfo(host, &[1, 2]);
        assert_eq!(
            text,
            "processor\t: 0\nmodel\t: b\n\nprocessor\t: 1\nmodel\t: c\n\n"
        );
    }

    #[test]
    fn time_is_the_groups() {
        let cpu = Cpu {
            usage: 3_000_000,
            user: 2_000_000,
            system: 1_000_000,
            ..Cpu::default()
        };
        let host = "cpu  1 2 3\ncpu0 1 2 3\nctxt 7\nbtime 5\n";
        let text = stat(host, 2, &cpu, Duration::from_secs(10));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("cpu  200 0 100 1700 0 0 0 0 0 0"));
        assert_eq!(lines.next(), Some("cpu0 100 0 50 850 0 0 0 0 0 0"));
        assert_eq!(lines.nth(1), Some("ctxt 7"));
        assert!(!text.contains("btime 5\n"));
    }
}
