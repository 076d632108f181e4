//! `croft show`.

use croft_api::RestartPolicy;
use croft_api::disk::disk_name;

use super::list::{Known, ago, json, known};
use super::nics;
use super::power::because;
use super::reach::add_addresses;
use super::{Fault, finish, open};
use crate::args::instance::ShowOptions;
use crate::args::output::OutputFormat;
use crate::exit::Exit;
use crate::table::columns;
use crate::{print, size};

/// Tells all that is known of an instance.
pub fn show(options: &ShowOptions) -> Exit {
    let name = &options.name.name;
    finish(open().and_then(|instances| {
        // Names what is no instance.
        instances.config(name)?;
        let known = known(&instances, name.clone());
        let mut known =
            known.ok_or_else(|| Fault::usage(format!("there is no instance '{name}'")))?;
        add_addresses(&instances, std::slice::from_mut(&mut known));
        let text = match options.output {
            OutputFormat::Table => table(&known),
            OutputFormat::Json => json(&known)?,
        };
        Ok(print(text.as_bytes()))
    }))
}

fn table(known: &Known) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |what: &str, text: String| rows.push([what.to_owned(), text]);
    row("name", known.name.clone());
    if let Some(error) = &known.error {
        row("unreadable", error.clone());
    }
    if let Some(status) = &known.status {
        row(
            "state",
            format!(
                "{}{}, for {}",
                status.phase,
                because(status),
                ago(status.since)
            ),
        );
        row("started", format!("{} times", status.starts));
        if status.restarts > 0 {
            row(
                "restarts",
                format!("{} by policy, in a row", status.restarts),
            );
        }
        if let Some((engine, reason)) = &status.engine {
            row("engine", format!("{engine}: {reason}"));
        }
        if let Some(monitor) = status.monitor {
            row("monitor", format!("process {}", monitor.pid));
        }
        if let Some(payload) = status.payload {
            row("vmm", format!("process {}", payload.pid));
        }
        if let Some(agent) = &status.agent {
            let ready = if agent.ready { "ready" } else { "not ready" };
            row("guest", ready.to_owned());
            for address in &agent.addresses {
                row("address", address.to_string());
            }
        }
    }
    if let Some(config) = &known.config {
        if let Some(image) = &config.image {
            row("image", format!("{} ({})", image.name, image.id));
        }
        if let Some(user) = &config.user {
            row("user", user.clone());
        }
        row("memory", size::format(config.machine.memory));
        row("processors", config.machine.cpus.to_string());
        let live = known.status.iter().flat_map(|status| &status.devices);
        for device in live {
            let mut text = device.what.clone();
            for (is, word) in [
                (device.live_only, "until the next start"),
                (device.leaving, "the guest is asked to release it"),
            ] {
                if is {
                    text.push_str(", ");
                    text.push_str(word);
                }
            }
            row(&device.name, text);
        }
        let runs = known.status.as_ref().is_some_and(|status| {
            // What it has is what its monitor says.
            status.phase.has_payload()
        });
        let mut config = config.clone();
        config.place_disks();
        for disk in config.disks.iter().filter(|_| !runs) {
            let read_only = if disk.options.read_only {
                ", read-only"
            } else {
                ""
            };
            let layers = disk
                .layers
                .iter()
                .map(|layer| layer.path.display().to_string());
            let layers: Vec<String> = layers.collect();
            let name = disk.index.map_or_else(|| "disk".to_owned(), disk_name);
            row(&name, format!("{}{read_only}", layers.join(" over ")));
        }
        for nic in config.nics.iter().filter(|_| !runs) {
            row(&nic.name, nics::describe(nic));
        }
        for port in nics::published(&config.nics) {
            row("published", port.to_string());
        }
        let policy = match config.restart {
            RestartPolicy::No => "no",
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::Always => "always",
        };
        row("restart", policy.to_owned());
        for (what, is) in [
            ("ephemeral", config.ephemeral),
            ("autostart", config.autostart),
        ] {
            if is {
                row(what, "yes".to_owned());
            }
        }
        row("created", format!("{} ago", ago(config.created)));
    }
    columns(rows.into_iter())
}
