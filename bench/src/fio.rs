//! fio in a guest, on a virtio disk of its own.

use std::time::Duration;

use croft_tests::PATIENCE;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};
use crate::files::Files;
use crate::systems::System;

/// What `scripts/bench/fio-init` calls its jobs.
const JOBS: [&str; 6] = [
    "rand-read",
    "rand-write",
    "rand-read-32",
    "rand-write-32",
    "read",
    "write",
];

/// QEMU, among the contestants.
const QEMU: usize = 1;

/// One and a half times QEMU's requests in a second.
const SHARE: f64 = 1.0 / 1.5;

/// Longest time of all jobs together.
const LONGEST: Duration = Duration::from_secs(300);

/// Croft and QEMU.
pub fn case(files: &Files) -> Case<'_> {
    let systems = [
        System::Software("software-fast", files.croft.clone()),
        System::Tcg(""),
    ];
    Case {
        key: "fio",
        title: "fio on a virtio disk".to_owned(),
        about: "Requests of 4 KiB at random places, one at a time and 32, and of 1 MiB one behind \
                the other, four at a time; by libaio, past the guest's page cache, on a raw disk \
                whose file is in the host's. The time of one request: four seconds divided by \
                the requests done in them. The guest has one processor.",
        figures: JOBS
            .iter()
            .map(|name| Figure {
                name: (*name).to_owned(),
                unit: "µs",
                digits: 1,
                target: Some(Target::Share(QEMU, SHARE)),
            })
            .collect(),
        contestants: systems
            .into_iter()
            .map(|system| Contestant {
                name: system.name(),
                rival: system.is_rival(),
                run: Box::new(move || run(&system, files)),
            })
            .collect(),
        layout: Layout::Figures,
        place: Place::Here,
    }
}

fn run(system: &System, files: &Files) -> Run {
    let mut guest = system.start(&files.fio()?)?;
    guest.time_to("bench-begin", PATIENCE)?;
    guest.time_to("bench-end", LONGEST)?;
    let text = guest.text();
    JOBS.iter()
        .map(|job| {
            let prefix = format!("bench {job} ");
            let line = text
                .lines()
                .find_map(|line| line.trim_end().strip_prefix(&prefix));
            match line.map(str::parse::<f64>) {
                Some(Ok(rate)) if rate > 0.0 => Ok(1e6 / rate),
                _ => Err(format!("no rate of {job} in:\n{text}")),
            }
        })
        .collect()
}
