//! `croft stats`: what containers use.

use std::thread;
use std::time::Duration;

use croft_api::container::ContainerStats;
use croft_api::control::{Event, Request};
use croft_host::{Client, InstanceName, Instances};
use rustix::stdio::stdout;
use rustix::termios::isatty;
use serde::Serialize;

use super::container_of;
use crate::args::output::OutputFormat;
use crate::args::running::StatsOptions;
use crate::exit::Exit;
use crate::instance::{Fault, SOON, finish, open};
use crate::print;
use crate::table::columns;

/// Between two measurements.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between the two of which a single line is made.
const MOMENT: Duration = Duration::from_millis(250);
/// Moves the cursor to the top left and clears what is below (ECMA-48, CUP and
/// ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// A line.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Thousandths of a processor in use; not there the first time.
    cpus: Option<u64>,
    #[serde(flatten)]
    stats: ContainerStats,
}

/// Shows what containers use, again and again unless it is to be once.
pub fn stats(options: &StatsOptions) -> Exit {
    finish(open().and_then(|instances| show(&instances, options)))
}

fn show(instances: &Instances, options: &StatsOptions) -> Result<Exit, Fault> {
    for name in &options.names {
        container_of(&instances.config(name)?, name)?;
        let phase = instances.status(name)?.phase;
        if !phase.has_payload() {
            return Err(Fault::failed(format!("it is {phase}")).of(name));
        }
    }
    let names = || match options.names.as_slice() {
        [] => running(instances),
        names => Ok(names.to_vec()),
    };
    let mut before = measure(instances, &names()?);
    let interval = if options.no_stream { MOMENT } else { INTERVAL };
    loop {
        thread::sleep(interval);
        let now = measure(instances, &names()?);
        let lines: Vec<Line> = now
            .iter()
            .map(|(name, stats)| Line {
                name: name.to_string(),
                cpus: used(before.iter().find(|(other, _)| other == name), stats),
                stats: stats.clone(),
            })
            .collect();
        let text = match options.output {
            OutputFormat::Json => json_lines(&lines)?,
            OutputFormat::Table if options.no_stream || !isatty(stdout()) => table(&lines),
            OutputFormat::Table => format!("{CLEAR}{}", table(&lines)),
        };
        let exit = print(text.as_bytes());
        // Those that were named have ended.
        let ended = now.is_empty() && !options.names.is_empty();
        if options.no_stream || exit != Exit::PowerOff || ended {
            return Ok(exit);
        }
        before = now;
    }
}

/// All containers that run.
fn running(instances: &Instances) -> Result<Vec<InstanceName>, Fault> {
    let mut names = instances.names()?;
    names.retain(|name| {
        let container = instances
            .config(name)
            .is_ok_and(|config| config.container().is_some());
        let status = instances.status(name);
        container && status.is_ok_and(|status| status.phase.has_payload())
    });
    Ok(names)
}

/// What each uses; one that has ended uses nothing.
fn measure(instances: &Instances, names: &[InstanceName]) -> Vec<(InstanceName, ContainerStats)> {
    let all = names.iter().filter_map(|name| {
        let socket = instances.directories().socket(name);
        let mut client = Client::connect(&socket).ok()?;
        match client.ask_within(&Request::Stats, vec![], Some(SOON)) {
            Ok((Event::Stats(stats), _)) => Some((name.clone(), *stats)),
            _ => None,
        }
    });
    all.collect()
}

/// Thousandths of a processor that were in use since then.
fn used(before: Option<&(InstanceName, ContainerStats)>, now: &ContainerStats) -> Option<u64> {
    let (_, before) = before?;
    let time = now.time.checked_sub(before.time).filter(|time| *time > 0)?;
    let cpu = now.cpu.saturating_sub(before.cpu);
    u64::try_from(u128::from(cpu) * 1000 / u128::from(time)).ok()
}

fn json_lines(lines: &[Line]) -> Result<String, Fault> {
    let mut text = String::new();
    for line in lines {
        let json = serde_json::to_string(line);
        text += &json.map_err(|error| Fault::failed(format!("cannot write JSON: {error}")))?;
        text.push('\n');
    }
    Ok(text)
}

fn table(lines: &[Line]) -> String {
    let head = [
        "NAME",
        "CPUS",
        "MEMORY",
        "LIMIT",
        "PROCESSES",
        "NET IN/OUT",
        "DISK IN/OUT",
    ];
    let rows = lines.iter().map(|line| {
        let stats = &line.stats;
        let cpus = line
            .cpus
            .map(|used| format!("{}.{:02}", used / 1000, used % 1000 / 10));
        [
            line.name.clone(),
            cpus.unwrap_or_else(|| "-".to_owned()),
            short(stats.memory),
            stats.memory_limit.map_or_else(|| "-".to_owned(), short),
            stats.pids.to_string(),
            format!("{}/{}", short(stats.net_received), short(stats.net_sent)),
            format!("{}/{}", short(stats.io_read), short(stats.io_written)),
        ]
    });
    columns(std::iter::once(head.map(str::to_owned)).chain(rows))
}

/// A size with three digits or so.
pub fn short(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units.iter().find(|(shift, _)| bytes >> shift > 0);
    let Some((shift, unit)) = unit else {
        return format!("{bytes}B");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths < 1000 {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    } else {
        format!("{}{unit}", tenths / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5K"),
            (200 << 20, "200M"),
            (u64::MAX, "16777215T"),
        ] {
            assert_eq!(short(bytes), text);
        }
    }

    #[test]
    fn processors_in_use_are_time_by_time() {
        let name: InstanceName = "web".parse().unwrap();
        let at = |time, cpu| ContainerStats {
            time,
            cpu,
            ..ContainerStats::default()
        };
        let before = (name, at(1_000, 500));
        assert_eq!(used(Some(&before), &at(2_000, 2_000)), Some(1500));
        assert_eq!(used(Some(&before), &at(1_000, 2_000)), None);
        assert_eq!(used(None, &at(2_000, 2_000)), None);
    }
}
