//! `croft list`.

use std::net::IpAddr;
use std::time::Duration;

use croft_api::Status;
use croft_api::container::CPU;
use croft_host::store::{Config, Kind};
use croft_host::{InstanceName, Instances, StoreError, now};
use serde::Serialize;

use super::nics::published;
use super::power::because;
use super::reach::add_addresses;
use super::{Fault, finish, open};
use crate::args::instance::ListOptions;
use crate::args::output::OutputFormat;
use crate::exit::Exit;
use crate::table::columns;
use crate::{describe, print, size};

/// Lists the instances.
pub fn list(options: &ListOptions) -> Exit {
    finish(open().and_then(|instances| {
        let names = instances.names()?;
        let all = names.into_iter().filter_map(|name| known(&instances, name));
        let mut all: Vec<Known> = all.collect();
        add_addresses(&instances, &mut all);
        let text = match options.output {
            OutputFormat::Table => table(&all),
            OutputFormat::Json => json(&all)?,
        };
        Ok(print(text.as_bytes()))
    }))
}

/// What is known of an instance.
#[derive(Debug, Serialize)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What it is; not there if it cannot be read.
    pub config: Option<Config>,
    /// What it does.
    pub status: Option<Status>,
    /// Where it can be reached, if it runs.
    pub addresses: Vec<IpAddr>,
    /// Why something of it cannot be read.
    pub error: Option<String>,
}

/// What is known of an instance, unless it is deleted in this moment.
pub fn known(instances: &Instances, name: InstanceName) -> Option<Known> {
    let read = || Ok::<_, StoreError>((instances.config(&name)?, instances.status(&name)?));
    let (config, status, error) = match read() {
        Ok((config, status)) => (Some(config), Some(status), None),
        Err(StoreError::None(_)) => return None,
        Err(error) => (None, None, Some(error.to_string())),
    };
    Some(Known {
        name: name.to_string(),
        config,
        status,
        addresses: Vec::new(),
        error,
    })
}

/// As JSON, for programs.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, Fault> {
    describe::json(value).map_err(Fault::failed)
}

fn table(all: &[Known]) -> String {
    let head = [
        "NAME",
        "KIND",
        "STATE",
        "FOR",
        "IMAGE",
        "MEMORY",
        "CPUS",
        "ADDRESSES",
        "PORTS",
    ];
    let rows = all.iter().map(row);
    columns(std::iter::once(head.map(str::to_owned)).chain(rows))
}

fn row(known: &Known) -> [String; 9] {
    let name = known.name.clone();
    let (Some(config), Some(status)) = (&known.config, &known.status) else {
        let [a, b, c, d, e, f, g] = [""; 7].map(str::to_owned);
        return [name, a, "unreadable".to_owned(), b, c, d, e, f, g];
    };
    let (kind, memory, cpus) = kind(config);
    let addresses: Vec<String> = known.addresses.iter().map(ToString::to_string).collect();
    let ports: Vec<String> = published(&config.nics).map(ToString::to_string).collect();
    [
        name,
        kind.to_owned(),
        format!("{}{}", status.phase, note(status)),
        ago(status.since),
        config
            .image
            .as_ref()
            .map_or_else(|| "-".to_owned(), |image| image.name.clone()),
        memory,
        cpus,
        addresses.join(" "),
        ports.join(" "),
    ]
}

/// What an instance is, and what memory and processors it may use.
fn kind(config: &Config) -> (&'static str, String, String) {
    match &config.kind {
        Kind::Machine(machine) => (
            "machine",
            size::format(machine.machine.memory),
            machine.machine.cpus.to_string(),
        ),
        Kind::Container(container) => (
            "container",
            limit(container.limits.memory.map(size::format)),
            limit(container.limits.cpus.map(cpus)),
        ),
    }
}

/// A limit, if there is one.
pub fn limit(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Thousandths of processors, as they are given: `1.5`.
pub fn cpus(thousandths: u32) -> String {
    let text = format!("{}.{:03}", thousandths / CPU, thousandths % CPU);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

/// What is short and must be said at once.
fn note(status: &Status) -> String {
    match &status.note {
        Some(_) => because(status),
        None => String::new(),
    }
}

/// How long ago that was.
pub fn ago(since: u64) -> String {
    let seconds = Duration::from_millis(now().saturating_sub(since)).as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_short() {
        for (thousandths, text) in [(1000, "1"), (1500, "1.5"), (10, "0.01"), (12_345, "12.345")] {
            assert_eq!(cpus(thousandths), text);
        }
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(5, "5s"), (300, "5m"), (10_800, "3h"), (864_000, "10d")] {
            assert_eq!(ago(now() - seconds * 1000), text);
        }
        assert_eq!(ago(now() + 5000), "0s");
    }
}
