//! `croft show`.

use croft_api::RestartPolicy;
use croft_api::container::{ContainerRole, ContainerSpec, VolumeSource};
use croft_api::disk::disk_name;
use croft_host::store::Kind;

use super::list::{Known, ago, cpus, json, known, limit};
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
    if let Some(config) = &known.config {
        let kind = match config.kind {
            Kind::Machine(_) => "machine",
            Kind::Container(_) => "container",
        };
        row("kind", kind.to_owned());
    }
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
            let what = match known.config.as_ref().map(|config| &config.kind) {
                Some(Kind::Container(_)) => "init",
                _ => "vmm",
            };
            row(what, format!("process {}", payload.pid));
        }
        if let Some(agent) = &status.agent {
            let ready = if agent.ready { "ready" } else { "not ready" };
            row("guest", ready.to_owned());
        }
    }
    for address in &known.addresses {
        row("address", address.to_string());
    }
    if let Some(config) = &known.config {
        if let Some(image) = &config.image {
            row("image", format!("{} ({})", image.name, image.id));
        }
        if let Some(user) = &config.user {
            row("user", user.clone());
        }
        match &config.kind {
            Kind::Machine(machine) => {
                row("memory", size::format(machine.machine.memory));
                row("processors", machine.machine.cpus.to_string());
            }
            Kind::Container(container) => describe(container, &mut row),
        }
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
        let mut machine = config.machine().cloned();
        if let Some(machine) = &mut machine {
            machine.place_disks();
        }
        let disks = machine.iter().flat_map(|machine| &machine.disks);
        for disk in disks.filter(|_| !runs) {
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
            row(&nic.name, nic.describe());
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

/// What a container is.
fn describe(container: &ContainerSpec, row: &mut impl FnMut(&str, String)) {
    let role = match container.role {
        ContainerRole::Application => "application",
        ContainerRole::System => "system",
    };
    row("role", role.to_owned());
    row(
        "command",
        container.command.join(" ").escape_debug().to_string(),
    );
    if let Some(ids) = container.ids {
        let last = ids.first.saturating_add(ids.count.saturating_sub(1));
        row("ids", format!("{} to {last} of the host", ids.first));
    }
    let limits = &container.limits;
    row("memory", limit(limits.memory.map(size::format)));
    row("processors", limit(limits.cpus.map(cpus)));
    let rest = [
        ("memory high", limits.memory_high.map(size::format)),
        ("swap", limits.swap.map(size::format)),
        (
            "cpu weight",
            limits.cpu_weight.map(|weight| weight.to_string()),
        ),
        ("cpu set", limits.cpuset.clone()),
        ("processes", limits.pids.map(|pids| pids.to_string())),
        (
            "io weight",
            limits.io_weight.map(|weight| weight.to_string()),
        ),
    ];
    for (what, text) in rest {
        if let Some(text) = text {
            row(what, text);
        }
    }
    for volume in &container.volumes {
        let source = match &volume.source {
            VolumeSource::Path(path) => path.display().to_string(),
            VolumeSource::Named(name) => format!("volume {name}"),
            VolumeSource::Own(_) => "a volume of its own".to_owned(),
        };
        let read_only = if volume.read_only { ", read-only" } else { "" };
        row(&volume.destination, format!("{source}{read_only}"));
    }
}
