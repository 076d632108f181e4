//! The program of the benchmarks, natively and in guests: a line for each
//! kind of work.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use croft_tests::PATIENCE;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};
use crate::files::{Files, guest_program};
use crate::systems::System;

/// What the program calls its lines, their units, and what share of QEMU's
/// time Croft's is to be at most.
const LINES: [(&str, &str, f64); 23] = [
    ("int", "ns", 1.05),
    ("sort", "ns/element", 0.70),
    ("shellsort", "ns/element", 0.70),
    ("calls", "ns", 0.70),
    ("locks", "ns", 0.70),
    ("table", "ns/byte", 1.05),
    ("fp-scalar", "ns", 0.15),
    ("fp-vector", "ns", 0.15),
    ("chase-l1", "ns", 1.05),
    ("chase-4m", "ns", 1.05),
    ("memcpy", "ns/KiB", 0.25),
    ("rep-movs", "ns/KiB", 0.25),
    ("syscall", "ns", 0.60),
    ("stat", "ns", 0.60),
    ("tmpfs-rw", "ns", 0.60),
    ("tmpfs-files", "ns", 0.60),
    ("fork-exit", "ns", 0.60),
    ("fork-exec", "ns", 0.60),
    ("pipe", "ns", 0.40),
    ("pipe-threads", "ns", 0.40),
    ("signal", "ns", 1.05),
    ("faults", "ns/page", 0.40),
    ("faults-file", "ns/page", 0.40),
];

/// QEMU as it is, among the contestants.
const QEMU: usize = 1;

/// Longest time of all lines together.
const LONGEST: Duration = Duration::from_secs(900);

/// By how much a guest's clock may differ from the host's: a share, and what
/// the console may hold back.
const CLOCK_SHARE: f64 = 0.03;
const CLOCK_SLACK: f64 = 0.3;

/// All lines, or those with `only` in their names.
pub fn case<'a>(files: &'a Files, only: &'a str) -> Case<'a> {
    let systems = [
        (
            ["Croft"]
                .into_iter()
                .chain(files.croft.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join(" "),
            System::Software("software-fast", files.croft.clone()),
        ),
        ("QEMU".to_owned(), System::Tcg("")),
        (
            "QEMU, `mitigations=off`".to_owned(),
            System::Tcg("mitigations=off"),
        ),
    ];
    let guests = systems.into_iter().map(|(name, system)| Contestant {
        name,
        rival: system.is_rival(),
        run: Box::new(move || in_guest(&system, files, only)),
    });
    let native = Contestant {
        name: "native".to_owned(),
        rival: false,
        run: Box::new(move || natively(only)),
    };
    Case {
        key: "lines",
        title: "Kinds of work".to_owned(),
        about: "A static program of our own (`bench/guest`) does a fixed amount of each kind of \
                work, natively, and as the only program of a guest with Debian's cloud kernel and \
                one processor: on Croft's software engine with `--cpu software-fast`, on QEMU \
                with `-accel tcg -cpu max`, and there once more with a kernel without \
                mitigations. The figures are for one operation, by the guest's clock, which is \
                compared with the host's; what the work computes must be the same everywhere.",
        figures: LINES
            .iter()
            .filter(|(name, ..)| name.contains(only))
            .map(|(name, unit, target)| Figure {
                name: (*name).to_owned(),
                unit,
                digits: 2,
                target: Some(Target::Share(QEMU, *target)),
            })
            .collect(),
        contestants: guests.chain([native]).collect(),
        layout: Layout::Figures,
        place: Place::Here,
    }
}

fn natively(only: &str) -> Run {
    // A tmpfs everywhere.
    let directory =
        tempfile::tempdir_in("/dev/shm").map_err(|error| format!("/dev/shm: {error}"))?;
    let output = Command::new(guest_program()?)
        .args([directory.path(), Path::new(only)])
        .output()
        .map_err(|error| format!("the program of the benchmarks: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {errors}{text}", output.status));
    }
    values(&text, only)
}

fn in_guest(system: &System, files: &Files, only: &str) -> Run {
    let boot = files.program(&format!("bench=lines only={only}"))?;
    let mut guest = system.start(&boot)?;
    let begin = guest.time_to("bench-begin", PATIENCE)?;
    let end = guest.time_to("bench-end ", LONGEST)?;
    // The rest of that line.
    guest.time_to("\n", PATIENCE)?;
    let text = guest.text();
    check_clock(&text, (end - begin).as_secs_f64())?;
    values(&text, only)
}

/// Figures by a wrong clock would be worth nothing.
fn check_clock(text: &str, host: f64) -> Result<(), String> {
    let nanoseconds = text.split_once("bench-end ").and_then(|(_, rest)| {
        let number = rest.split_whitespace().next()?;
        number.parse::<u64>().ok()
    });
    let guest = nanoseconds.ok_or("no time behind bench-end")? as f64 / 1e9;
    if (guest - host).abs() > host * CLOCK_SHARE + CLOCK_SLACK {
        return Err(format!(
            "by the guest's clock it took {guest:.3} s, by the host's {host:.3} s"
        ));
    }
    Ok(())
}

/// The figures in the program's output, in the order of [`LINES`].
fn values(text: &str, only: &str) -> Run {
    static CHECKSUMS: OnceLock<Vec<String>> = OnceLock::new();

    let mut values = Vec::new();
    let mut checksums = Vec::new();
    for (name, unit, _) in LINES.iter().filter(|(name, ..)| name.contains(only)) {
        let prefix = format!("bench {name} ");
        let line = text
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(&prefix));
        let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
        let [value, its_unit, checksum] = words[..] else {
            return Err(format!("no line of {name} in:\n{text}"));
        };
        match value.parse() {
            Ok(value) if its_unit == *unit => values.push(value),
            _ => return Err(format!("{name}: '{value} {its_unit}' is not in {unit}")),
        }
        checksums.push(format!("{name} {checksum}"));
    }
    let first = CHECKSUMS.get_or_init(|| checksums.clone());
    match checksums
        .iter()
        .zip(first)
        .find(|(ours, first)| ours != first)
    {
        Some((ours, first)) => Err(format!(
            "the checksum of {ours} is another one than in the first run, {first}: wrong results"
        )),
        None => Ok(values),
    }
}
