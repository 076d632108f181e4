//! `croft logs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use croft_api::control::Writing;
use croft_host::{InstanceName, Instances};

use super::console::{self, View};
use super::{Fault, container, finish, open};
use crate::args::instance::LogsOptions;
use crate::exit::Exit;
use crate::print;

/// Most bytes read of a log: the monitor keeps less.
const LENGTH_MAX: u64 = 8 << 20;

/// Prints what an instance has printed.
pub fn logs(options: &LogsOptions) -> Exit {
    let name = &options.name.name;
    finish(open().and_then(|instances| {
        let config = instances.config(name)?;
        if !options.monitor && config.container().is_some() {
            return container::logs(&instances, name, options);
        }
        if options.timestamps {
            return Err(Fault::usage(
                "--timestamps is for containers; a machine's console has none",
            ));
        }
        let live = instances.status(name)?.phase.is_live();
        if options.follow && live {
            // What its monitor has of the past comes first.
            let view = View {
                lines: options.lines.and_then(|lines| u32::try_from(lines).ok()),
                writing: Writing::No,
                ..View::default()
            };
            return console::view(&instances, name, view);
        }
        let text = read(&instances, name, options.monitor)?;
        let text = match options.lines {
            Some(lines) => tail(&text, lines),
            None => &text,
        };
        Ok(print(text))
    }))
}

fn read(instances: &Instances, name: &InstanceName, monitor: bool) -> Result<Vec<u8>, Fault> {
    let directory = instances.directories().instance(name);
    let log = if monitor {
        "monitor.log"
    } else {
        "console.log"
    };
    let mut text = Vec::new();
    for file in [format!("{log}.1"), log.to_owned()] {
        append(&directory.join(&file), &mut text)
            .map_err(|error| Fault::failed(format!("{name}: {file}: {error}")))?;
    }
    Ok(text)
}

fn append(path: &Path, text: &mut Vec<u8>) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.take(LENGTH_MAX).read_to_end(text).map(drop),
        // It has printed nothing, or not so much.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The last lines.
pub fn tail(text: &[u8], lines: usize) -> &[u8] {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = whole
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1) {
        None => &[],
        Some(before) => match ends.nth(before) {
            Some((end, _)) => text.get(end.saturating_add(1)..).unwrap_or_default(),
            None => text,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(
                tail(text.as_bytes(), lines),
                expected.as_bytes(),
                "{text:?}"
            );
        }
    }
}
