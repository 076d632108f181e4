//! `events`: what a container takes, and how often it lacked memory, as JSON
//! lines of the form that runc's callers read.

use std::time::{Duration, Instant};

use croft_isolate::cgroups::{Event, Group, Io, Pressure, Stats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::Context;
use super::args::Events;
use super::error::Error;
use super::groups;
use super::show;
use super::status;

/// Prints until the container ends, or once.
pub fn events(context: &Context, options: &Events) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    let (true, Some(record)) = (status.is_alive(), record) else {
        return Err(status.refuse(&options.id, "it takes nothing any more"));
    };
    let group = groups::open(&record)?
        .ok_or_else(|| status.refuse(&options.id, "it has no control group"))?;
    if options.stats {
        return print(&options.id, "stats", statistics(&group.stats()?));
    }
    let init = record.init;
    let interval = Duration::from_secs(options.interval);
    let mut watched = group.events()?;
    let mut next = Instant::now();
    while init.is_some_and(|init| init.is_alive()) {
        if Instant::now() >= next {
            let Some(stats) = take(&group, init.is_some_and(|init| init.is_alive()))? else {
                break;
            };
            print(&options.id, "stats", statistics(&stats))?;
            next = Instant::now() + interval;
        }
        // Its end may come without an event.
        let wait = next.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(wait.min(Duration::from_secs(1))).ok();
        let mut all = [PollFd::new(&watched, PollFlags::IN)];
        match poll(&mut all, wait.as_ref()) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(Error::system("wait for events", error)),
        }
        let happened = watched
            .take()
            .map_err(|error| Error::system("read events", error))?;
        for event in happened {
            match event {
                Event::OomKill(count) => {
                    for _ in 0..count.min(1000) {
                        print(&options.id, "oom", Value::Null)?;
                    }
                }
                Event::Empty => return Ok(0),
                Event::MemoryPressure => {}
            }
        }
    }
    Ok(0)
}

/// A group that goes with the container is no failure.
fn take(group: &Group, alive: bool) -> Result<Option<Stats>, Error> {
    match group.stats() {
        Ok(stats) => Ok(Some(stats)),
        Err(_) if !alive => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn print(id: &str, kind: &str, data: Value) -> Result<u8, Error> {
    let mut event = json!({ "type": kind, "id": id });
    if let (Some(event), false) = (event.as_object_mut(), data.is_null()) {
        event.insert("data".to_owned(), data);
    }
    show::print(&format!("{event}\n"))
}

/// Times are in nanoseconds here, amounts in bytes.
fn statistics(stats: &Stats) -> Value {
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let cpu = &stats.cpu;
    let each: Vec<u64> = cpu.each.iter().copied().map(nanoseconds).collect();
    let memory = &stats.memory;
    let raw: Map<String, Value> = memory
        .all
        .iter()
        .map(|(name, value)| (name.clone(), (*value).into()))
        .collect();
    let huge: Map<String, Value> = stats
        .hugepages
        .iter()
        .map(|one| {
            let value = json!({
                "usage": one.used,
                "max": one.most.unwrap_or(0),
                "failcnt": one.limit_met,
            });
            (one.size.clone(), value)
        })
        .collect();
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(cpu.usage),
                "percpu": each,
                "kernel": nanoseconds(cpu.system),
                "user": nanoseconds(cpu.user),
            },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": nanoseconds(cpu.throttled),
            },
            "psi": pressure(stats.cpu_pressure.as_ref()),
        },
        "memory": {
            "cache": memory.file,
            "usage": {
                "usage": memory.used,
                "max": memory.most.unwrap_or(0),
                "limit": memory.limit.unwrap_or(u64::MAX),
                "failcnt": memory.limit_met,
            },
            "swap": {
                "usage": memory.swap,
                "limit": memory.swap_limit.unwrap_or(u64::MAX),
            },
            "kernel": { "usage": memory.kernel },
            "oomKills": memory.oom_kills,
            "raw": raw,
            "psi": pressure(stats.memory_pressure.as_ref()),
        },
        "pids": {
            "current": stats.pids.current,
            "limit": stats.pids.limit.unwrap_or(0),
        },
        "blkio": {
            "ioServiceBytesRecursive": io(&stats.io, |one| (one.read_bytes, one.written_bytes)),
            "ioServicedRecursive": io(&stats.io, |one| (one.reads, one.writes)),
            "psi": pressure(stats.io_pressure.as_ref()),
        },
        "hugetlb": huge,
    })
}

fn io(all: &[Io], amounts: impl Fn(&Io) -> (u64, u64)) -> Vec<Value> {
    all.iter()
        .flat_map(|one| {
            let (read, written) = amounts(one);
            [("Read", read), ("Write", written)].map(|(op, value)| {
                json!({ "major": one.major, "minor": one.minor, "op": op, "value": value })
            })
        })
        .collect()
}

fn pressure(pressure: Option<&Pressure>) -> Value {
    let Some(pressure) = pressure else {
        return Value::Null;
    };
    let line = |[ten, sixty, all]: [u32; 3], total: u64| {
        let percent = |hundredths: u32| f64::from(hundredths) / 100.0;
        json!({
            "avg10": percent(ten),
            "avg60": percent(sixty),
            "avg300": percent(all),
            "total": total,
        })
    };
    json!({
        "some": line(pressure.some, pressure.some_total),
        "full": line(pressure.full, pressure.full_total),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_callers_read() {
        let mut stats = Stats::default();
        stats.cpu.usage = 7;
        stats.pids.current = 3;
        stats.io.push(Io {
            major: 8,
            read_bytes: 512,
            ..Io::default()
        });
        stats.memory_pressure = Some(Pressure {
            some: [150, 0, 0],
            ..Pressure::default()
        });
        let value = statistics(&stats);
        assert_eq!(value["cpu"]["usage"]["total"], 7000);
        assert_eq!(value["pids"]["current"], 3);
        let read = &value["blkio"]["ioServiceBytesRecursive"][0];
        assert_eq!((&read["op"], &read["value"]), (&"Read".into(), &512.into()));
        assert_eq!(value["memory"]["psi"]["some"]["avg10"], 1.5);
        assert!(value["cpu"]["psi"].is_null());
    }
}
