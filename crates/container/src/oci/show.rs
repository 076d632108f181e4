//! Commands that only look: `state`, `list`, `ps`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::Command;

use serde::Serialize;

use super::Context;
use super::args::{List, Listing, Name, Ps};
use super::error::Error;
use super::groups;
use super::status::{self, Status};
use super::store::{Entry, Record};

/// What `state` prints (runtime-spec, `runtime.md`, State), with more that
/// callers have come to expect.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'static str,
    id: &'a str,
    /// 0 for a container whose init has ended.
    pid: i32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: &'a str,
    owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a std::collections::HashMap<String, String>>,
}

impl<'a> State<'a> {
    fn of(id: &'a str, record: Option<&'a Record>, status: Status) -> Self {
        let path = |path: Option<&std::path::PathBuf>| {
            path.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
        };
        let init = record.and_then(|record| record.init);
        let init = init.filter(|_| status.is_alive());
        State {
            oci_version: super::SPEC_VERSION,
            id,
            pid: init.map_or(0, |init| init.pid),
            status: status.word(),
            bundle: path(record.map(|record| &record.bundle)),
            rootfs: path(record.map(|record| &record.rootfs)),
            created: record.map_or("", |record| record.created.as_str()),
            owner: record.map_or_else(String::new, |record| owner(record.owner)),
            annotations: record.and_then(|record| record.annotations.as_ref()),
        }
    }
}

fn owner(uid: u32) -> String {
    if uid == 0 {
        "root".to_owned()
    } else {
        uid.to_string()
    }
}

/// `state`.
pub fn state(context: &Context, options: &Name) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    json(&State::of(entry.id(), record.as_ref(), status))
}

/// `list`.
pub fn list(context: &Context, options: &List) -> Result<u8, Error> {
    let names = context.store.names()?;
    if options.quiet {
        return print(
            &names
                .iter()
                .fold(String::new(), |text, name| text + name + "\n"),
        );
    }
    let mut all: Vec<(Entry, Option<Record>, Status)> = Vec::new();
    for name in &names {
        // It may be removed meanwhile, and one that is damaged must not hide
        // the others.
        let entry = match context.store.open(name) {
            Ok(entry) => entry,
            Err(Error::Missing(_)) => continue,
            Err(error) => return Err(error),
        };
        let looked = entry
            .record()
            .and_then(|record| Ok((status::of(&entry, record.as_ref())?, record)));
        match looked {
            Ok((status, record)) => all.push((entry, record, status)),
            Err(error) => context.log.warn(&error.to_string()),
        }
    }
    let states: Vec<State<'_>> = all
        .iter()
        .map(|(entry, record, status)| State::of(entry.id(), record.as_ref(), *status))
        .collect();
    match options.format {
        Listing::Json => json(&states),
        Listing::Table => print(&table(&states)),
    }
}

fn table(states: &[State<'_>]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(states.iter().map(|state| {
        [
            state.id.to_owned(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.clone(),
            state.created.to_owned(),
            state.owner.clone(),
        ]
    }));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    rows.iter().fold(String::new(), |mut text, row| {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text + "\n"
    })
}

/// `ps`.
pub fn ps(context: &Context, options: &Ps) -> Result<u8, Error> {
    let entry = context.store.open(&options.id)?;
    let record = entry.record()?;
    let status = status::of(&entry, record.as_ref())?;
    if !status.is_alive() {
        return Err(status.refuse(&options.id, "it has no processes"));
    }
    let group = match &record {
        Some(record) => groups::open(record)?,
        None => None,
    };
    let mut ids: Vec<i32> = match group {
        Some(group) => {
            let processes = group.processes()?;
            processes
                .iter()
                .map(|one| one.as_raw_nonzero().get())
                .collect()
        }
        None => record
            .and_then(|record| record.init)
            .map(|init| init.pid)
            .into_iter()
            .collect(),
    };
    ids.sort_unstable();
    match options.format {
        Listing::Json => json(&ids),
        Listing::Table => {
            let words: &[String] = &options.options;
            let default = ["-ef".to_owned()];
            let words = if words.is_empty() { &default } else { words };
            let output = Command::new("ps")
                .args(words)
                .output()
                .map_err(|error| Error::file("run", "ps", error))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Error::Usage(format!(
                    "ps {}: {}",
                    words.join(" "),
                    said.trim()
                )));
            }
            print(&only(&String::from_utf8_lossy(&output.stdout), &ids)?)
        }
    }
}

/// The lines of ps(1) that are about these processes.
fn only(output: &str, ids: &[i32]) -> Result<String, Error> {
    let mut lines = output.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_ascii_whitespace()
        .position(|word| word == "PID")
        .ok_or_else(|| {
            Error::Usage("ps prints no column PID; choose options with which it does".to_owned())
        })?;
    let ours = |line: &&str| {
        let id = line.split_ascii_whitespace().nth(column);
        id.and_then(|word| word.parse().ok())
            .is_some_and(|id: i32| ids.binary_search(&id).is_ok())
    };
    Ok(lines
        .filter(ours)
        .fold(format!("{head}\n"), |text, line| text + line + "\n"))
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<u8, Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::system("write JSON", io::Error::from(error)))?;
    print(&(text + "\n"))
}

/// Prints a text.
pub fn print(text: &str) -> Result<u8, Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::system("write to standard output", error))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ps() {
        let output = "UID          PID    PPID CMD\nroot           1       0 init\nroot          12       1 sh 1\n";
        let kept = only(output, &[12, 40]).unwrap();
        assert_eq!(
            kept,
            "UID          PID    PPID CMD\nroot          12       1 sh 1\n"
        );
        assert!(only("CMD\nsh\n", &[1]).is_err());
    }

    #[test]
    fn columns() {
        let states = [
            State::of("one", None, Status::Creating),
            State::of("a-longer-name", None, Status::Stopped),
        ];
        let text = table(&states);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let place = |line: usize, word| lines[line].find(word).unwrap();
        assert_eq!(place(0, "STATUS"), place(1, "creating"));
        assert_eq!(place(0, "STATUS"), place(2, "stopped"));
    }
}
