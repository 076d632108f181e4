//! `croft image list` and `show`.

use croft_image::store::{Image, Store};
use croft_image::{Digest, Manifest};
use serde::Serialize;

use super::Fault;
use crate::args::output::OutputFormat;
use crate::describe::{date, print_list};
use crate::exit::Exit;
use crate::table::columns;
use crate::{describe, print};

/// An image as `-o json` prints it.
#[derive(Serialize)]
struct Described<'a> {
    id: Digest,
    names: &'a [String],
    #[serde(flatten)]
    manifest: &'a Manifest,
}

impl<'a> Described<'a> {
    fn of(image: &'a Image) -> Self {
        Described {
            id: image.id,
            names: &image.names,
            manifest: &image.manifest,
        }
    }
}

/// Prints all images. Those that cannot be read are named on standard error.
pub fn list(store: &Store, output: OutputFormat) -> Result<Exit, Fault> {
    let (images, exit) = describe::readable(store.list()?);
    let text = match output {
        OutputFormat::Json => {
            let described: Vec<Described<'_>> = images.iter().map(Described::of).collect();
            json(&described)?
        }
        OutputFormat::Table => table(&images),
    };
    Ok(print_list(&text, exit))
}

fn json<T: Serialize + ?Sized>(what: &T) -> Result<String, Fault> {
    describe::json(what).map_err(|message| Fault {
        exit: Exit::Failed,
        message,
    })
}

fn table(images: &[Image]) -> String {
    let mut rows =
        vec![["NAME", "ID", "SYSTEM", "FORMS", "DISK", "STORED", "CREATED"].map(str::to_owned)];
    for image in images {
        let manifest = &image.manifest;
        let names: &[String] = match image.names.as_slice() {
            [] => &["-".to_owned()],
            names => names,
        };
        for name in names {
            rows.push([
                name.clone(),
                image.id.short(),
                system(manifest),
                forms(manifest),
                manifest
                    .disk
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |disk| size(disk.virtual_size)),
                size(stored(manifest)),
                date(manifest.created),
            ]);
        }
    }
    columns(rows.into_iter())
}

fn system(manifest: &Manifest) -> String {
    format!("{} {}", manifest.os, manifest.os_version)
        .trim()
        .to_owned()
}

fn forms(manifest: &Manifest) -> String {
    let forms = [
        ("machine", manifest.disk.is_some()),
        ("container", manifest.rootfs.is_some()),
        ("application", manifest.application.is_some()),
    ];
    let forms: Vec<&str> = forms
        .into_iter()
        .filter_map(|(form, there)| there.then_some(form))
        .collect();
    if forms.is_empty() {
        "-".to_owned()
    } else {
        forms.join(", ")
    }
}

/// Bytes of its blobs. A disk with holes takes less.
fn stored(manifest: &Manifest) -> u64 {
    let blobs = manifest.blobs().into_iter();
    blobs.fold(0, |sum, (_, _, length)| sum.saturating_add(length))
}

fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenth = (bytes >> (shift - 7) & 127) * 10 / 128;
            return if whole < 10 {
                format!("{whole}.{tenth} {unit}")
            } else {
                format!("{whole} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// Prints an image.
pub fn show(store: &Store, reference: &str, output: OutputFormat) -> Result<Exit, Fault> {
    let image = store.resolve(reference)?;
    let text = match output {
        OutputFormat::Json => json(&Described::of(&image))?,
        OutputFormat::Table => page(&image) + &usage(store, &image)?,
    };
    Ok(print(text.as_bytes()))
}

fn page(image: &Image) -> String {
    let manifest = &image.manifest;
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let mut rows = vec![
        ("names", image.names.join(", ")),
        ("id", image.id.to_string()),
        ("system", system(manifest)),
        ("architecture", manifest.arch.clone()),
        ("created", format!("{} UTC", date(manifest.created))),
        ("origin", manifest.origin.clone()),
        ("guest agent", yes(manifest.agent)),
        ("cloud-init", yes(manifest.cloud_init)),
    ];
    if let (Some(disk), Some(path)) = (&manifest.disk, &image.disk) {
        rows.push((
            "disk",
            format!("{}, {}", size(disk.virtual_size), disk.format),
        ));
        rows.push(("disk file", path.display().to_string()));
    }
    if let (Some(rootfs), Some(path)) = (&manifest.rootfs, &image.rootfs) {
        rows.push((
            "rootfs",
            format!(
                "{}, {} unpacked",
                size(rootfs.length),
                size(rootfs.unpacked)
            ),
        ));
        rows.push(("rootfs file", path.display().to_string()));
    }
    describe::page(rows)
}

/// What is run in a container of an image of somebody else's.
fn usage(store: &Store, image: &Image) -> Result<String, Fault> {
    let Some(application) = &image.manifest.application else {
        return Ok(String::new());
    };
    let (_, config) = store.use_of(image)?;
    let words = |words: &[String]| {
        let quoted = words.iter().map(|word| format!("{word:?}"));
        quoted.collect::<Vec<_>>().join(" ")
    };
    let ports = config.ports.iter().map(|port| {
        let protocol = if port.udp { "udp" } else { "tcp" };
        match port.first == port.last {
            true => format!("{}/{protocol}", port.first),
            false => format!("{}-{}/{protocol}", port.first, port.last),
        }
    });
    let rows = [
        (
            "OCI digest",
            format!("sha256:{}", application.manifest.blob),
        ),
        ("layers", application.layers.len().to_string()),
        ("entry point", words(&config.entrypoint)),
        ("command", words(&config.cmd)),
        ("user", config.user.escape_debug().to_string()),
        ("directory", config.working_dir.escape_debug().to_string()),
        ("variables", words(&config.env)),
        ("ports", ports.collect::<Vec<_>>().join(", ")),
        ("volumes", words(&config.volumes)),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    Ok(describe::page(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            (u64::MAX, "17179869183 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
