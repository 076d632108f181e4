//! `croft volume`: directories that outlive the containers that use them.
//!
//! What is done to them is the crate `croft-image`'s.

use std::path::Path;

use croft_host::Directories;
use croft_image::Error;
use croft_image::volume::{Volume, Volumes};
use serde::Serialize;
use serde_json::Value;

use crate::args::output::OutputFormat;
use crate::args::volume::VolumeCommand;
use crate::describe::{date, print_list};
use crate::exit::Exit;
use crate::table::columns;
use crate::{describe, print, say};

/// A volume as `-o json` prints it.
#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    created: u64,
    path: &'a Path,
    used_by: Vec<String>,
}

/// Does what the command says.
pub fn run(command: VolumeCommand) -> Exit {
    match execute(command) {
        Ok(exit) => exit,
        Err(error) => {
            let exit = match error.is_usage() {
                true => Exit::Usage,
                false => Exit::Failed,
            };
            say::line(&format!("croft: {error}"));
            exit
        }
    }
}

fn execute(command: VolumeCommand) -> Result<Exit, Error> {
    let unfit = |error: croft_host::DirectoriesError| Error::Unfit(error.to_string());
    let directories = Directories::find().map_err(unfit)?;
    directories.create().map_err(unfit)?;
    let volumes = Volumes::open(&directories.volumes())?;
    let instances = directories.instances();
    match command {
        VolumeCommand::Create { name } => volumes.create(&name).map(|_| Exit::PowerOff),
        VolumeCommand::List { output } => list(&volumes, &instances, output),
        VolumeCommand::Show { name, output } => {
            let volume = volumes.get(&name)?;
            Ok(print(page(&volume, &instances, output)?.as_bytes()))
        }
        VolumeCommand::Delete { names } => {
            let mut exit = Exit::PowerOff;
            for name in names {
                if let Err(error) = volumes.delete(&name, |name| users(&instances, name)) {
                    say::line(&format!("croft: {error}"));
                    exit = match error.is_usage() {
                        true => Exit::Usage,
                        false => Exit::Failed,
                    };
                }
            }
            Ok(exit)
        }
    }
}

fn list(volumes: &Volumes, instances: &Path, output: OutputFormat) -> Result<Exit, Error> {
    let (known, exit) = describe::readable(volumes.list()?);
    let text = match output {
        OutputFormat::Json => {
            let all: Vec<Described<'_>> = known
                .iter()
                .map(|volume| described(volume, instances))
                .collect();
            json(&all)?
        }
        OutputFormat::Table => {
            let mut rows = vec![["NAME", "CREATED", "USED BY"].map(str::to_owned)];
            rows.extend(known.iter().map(|volume| {
                let used = users(instances, &volume.name).join(", ");
                let used = if used.is_empty() {
                    "-".to_owned()
                } else {
                    used
                };
                [volume.name.clone(), date(volume.created), used]
            }));
            columns(rows.into_iter())
        }
    };
    Ok(print_list(&text, exit))
}

fn json<T: Serialize + ?Sized>(what: &T) -> Result<String, Error> {
    describe::json(what).map_err(Error::Unfit)
}

fn page(volume: &Volume, instances: &Path, output: OutputFormat) -> Result<String, Error> {
    let about = described(volume, instances);
    match output {
        OutputFormat::Json => json(&about),
        OutputFormat::Table => Ok(describe::page([
            ("name", about.name.to_owned()),
            ("created", format!("{} UTC", date(about.created))),
            ("path", about.path.display().to_string()),
            ("used by", about.used_by.join(", ")),
        ])),
    }
}

fn described<'a>(volume: &'a Volume, instances: &Path) -> Described<'a> {
    Described {
        name: &volume.name,
        created: volume.created,
        path: &volume.data,
        used_by: users(instances, &volume.name),
    }
}

/// The names of the instances that use a volume. One whose configuration
/// cannot be read may: it counts.
fn users(instances: &Path, volume: &str) -> Vec<String> {
    crate::users::of(instances, |config| {
        let volumes = config.pointer("/container/volumes");
        let volumes = volumes.and_then(Value::as_array).into_iter().flatten();
        let mut named = volumes.map(|used| used.pointer("/source/named").and_then(Value::as_str));
        named.any(|name| name == Some(volume))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn who_uses_a_volume_is_known() {
        let place = tempfile::tempdir().unwrap();
        let used = r#"{"container": {"volumes": [{"source": {"named": "data"}}]}}"#;
        for (name, text) in [
            ("web", used),
            (
                "other",
                r#"{"container": {"volumes": [{"source": {"path": "/data"}}]}}"#,
            ),
            ("machine", "{}"),
            ("broken", "{"),
        ] {
            fs::create_dir(place.path().join(name)).unwrap();
            fs::write(place.path().join(name).join("config.json"), text).unwrap();
        }
        fs::write(place.path().join("a-file"), "").unwrap();
        assert_eq!(users(place.path(), "data"), ["broken", "web"]);
        // The form is the one that instances are kept in.
        let volume = croft_api::container::Volume {
            source: croft_api::container::VolumeSource::Named("data".to_owned()),
            destination: "/data".to_owned(),
            read_only: false,
        };
        let text = serde_json::to_value(&volume).unwrap();
        assert_eq!(text.pointer("/source/named").unwrap(), "data");
    }
}
