//! `croft top`: a container's processes, as the host sees them.

use std::fs;

use croft_api::control::{Event, Request};
use serde::Serialize;

use super::container_of;
use crate::args::output::OutputFormat;
use crate::args::running::TopOptions;
use crate::exit::Exit;
use crate::instance::list::json;
use crate::instance::{Fault, SOON, connect, finish, open};
use crate::print;
use crate::table::columns;

/// Most characters of a command that are shown.
const COMMAND_MAX: usize = 200;

/// A process.
#[derive(Debug, Serialize)]
struct Process {
    /// Its number on the host.
    pid: u32,
    /// Its number in the container.
    inside: u32,
    /// Its user in the container.
    user: u32,
    /// Its state, as proc_pid_stat(5) has it.
    state: char,
    /// Processor time in milliseconds.
    time: u64,
    /// Resident memory in bytes.
    memory: u64,
    /// Program and arguments.
    command: String,
}

/// Lists a container's processes.
pub fn top(options: &TopOptions) -> Exit {
    let name = &options.name.name;
    finish(open().and_then(|instances| {
        let config = instances.config(name)?;
        let first = container_of(&config, name)?.ids.map_or(0, |ids| ids.first);
        let mut monitor = connect(&instances, name).map_err(|fault| fault.of(name))?;
        let answer = monitor.ask_within(&Request::Processes, vec![], Some(SOON));
        let pids = match answer.map_err(|error| Fault::from(error).of(name))? {
            (Event::Processes { pids }, _) => pids,
            _ => return Err(Fault::failed("its monitor says something else").of(name)),
        };
        // One that has just ended is none.
        let mut all: Vec<Process> = pids
            .into_iter()
            .filter_map(|pid| process(pid, first))
            .collect();
        all.sort_by_key(|process| process.inside);
        let text = match options.output {
            OutputFormat::Json => json(&all)?,
            OutputFormat::Table => table(&all),
        };
        Ok(print(text.as_bytes()))
    }))
}

fn process(pid: u32, first: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let inside = field("NSpid")?.split_whitespace().last()?.parse().ok()?;
    let user: u32 = field("Uid")?.split_whitespace().next()?.parse().ok()?;
    // What kernel threads do not have.
    let memory =
        field("VmRSS").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, ticks) = times(&stat)?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut command = String::from_utf8_lossy(&command).replace('\0', " ");
    if command.trim().is_empty() {
        command = format!("[{}]", field("Name")?.trim());
    }
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    Some(Process {
        pid,
        inside,
        user: user.checked_sub(first).unwrap_or(user),
        state,
        time: ticks.saturating_mul(1000) / hertz,
        memory: memory.unwrap_or(0).saturating_mul(1024),
        command: command.trim_end().to_owned(),
    })
}

/// State, and ticks of processors in user mode and in the kernel
/// (proc_pid_stat(5): the fields 3, 14 and 15).
fn times(stat: &str) -> Option<(char, u64)> {
    // The second field is the program's name in parentheses, and may contain
    // anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let user: u64 = fields.nth(14 - 4)?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some((state, user.saturating_add(kernel)))
}

fn table(all: &[Process]) -> String {
    let head = ["PID", "HOST", "USER", "STATE", "TIME", "MEMORY", "COMMAND"].map(str::to_owned);
    let rows = all.iter().map(|process| {
        let seconds = process.time / 1000;
        // What a program calls itself must not move the cursor.
        let command: String = process.command.escape_debug().take(COMMAND_MAX).collect();
        [
            process.inside.to_string(),
            process.pid.to_string(),
            process.user.to_string(),
            process.state.to_string(),
            format!(
                "{}:{:02}.{:02}",
                seconds / 60,
                seconds % 60,
                process.time % 1000 / 10
            ),
            super::stats::short(process.memory),
            command,
        ]
    });
    columns(std::iter::once(head).chain(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_of_programs_do_not_move_the_fields() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 7 3 0 0 20 0 1 0 5 0 0";
        assert_eq!(times(stat), Some(('S', 10)));
        assert_eq!(times("12 (a"), None);
    }

    #[test]
    fn this_process_is_one() {
        let own = process(std::process::id(), 0).unwrap();
        assert!(own.memory > 0 && !own.command.is_empty());
    }
}
