//! Starts and sizes on KVM, in a nested machine where this one has no KVM
//! that is fit.

use std::fs;
use std::thread;
use std::time::Duration;

use croft_tests::PATIENCE;
use croft_tests::guest::UP;
use croft_tests::processes::resident_except;
use rustix::process::Pid;

use crate::case::{Case, Contestant, Figure, Layout, Place, Target};
use crate::files::Files;
use crate::systems::{MEMORY_MIB, System};

/// KVM's counters, a directory for each machine (Documentation/virt/kvm).
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// How long a guest is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);

/// QEMU's fastest, among the contestants.
const MICROVM: usize = 1;

/// Croft beside two machines of QEMU's.
pub fn case(files: &Files) -> Case<'_> {
    let figure = |name: &str, unit, digits, target| Figure {
        name: name.to_owned(),
        unit,
        digits,
        target,
    };
    Case {
        key: "kvm",
        title: "On KVM, Debian's cloud kernel".to_owned(),
        about: "Start: from the start of the process to the guest's first line from user space, \
                by a static program as init. Exits: KVM's own count at that line. Memory: what \
                is resident beyond the guest's RAM a second later, of all processes that belong \
                to the guest, shared pages by their share (PSS). The guest has one processor.",
        figures: vec![
            figure("start", "s", 3, Some(Target::Share(MICROVM, 1.0))),
            figure("exits", "", 0, None),
            figure("memory", "MB", 1, Some(Target::Value(10.0))),
        ],
        contestants: [
            System::Kvm,
            System::QemuKvm("microvm,rtc=on"),
            System::QemuKvm("pc"),
        ]
        .into_iter()
        .map(|system| Contestant {
            name: system.name(),
            rival: system.is_rival(),
            run: Box::new(move || {
                let mut guest = system.start(&files.program("bench=wait")?)?;
                let start = guest.time_to(UP, PATIENCE)?;
                let processes = guest.processes();
                let exits = exits(&processes)?;
                thread::sleep(SETTLE);
                let resident: u64 = processes
                    .iter()
                    .map(|pid| resident_except(*pid, MEMORY_MIB << 20))
                    .sum();
                Ok(vec![
                    start.as_secs_f64(),
                    exits as f64,
                    resident as f64 / 1e6,
                ])
            }),
        })
        .collect(),
        layout: Layout::Contestants,
        place: Place::Kvm,
    }
}

/// Exits of the machines of these processes so far.
fn exits(processes: &[Pid]) -> Result<u64, String> {
    let problem = |error| format!("{COUNTERS}: {error}");
    let mut total = None;
    for entry in fs::read_dir(COUNTERS).map_err(problem)?.flatten() {
        let name = entry.file_name();
        // Process and descriptor.
        let pid = name.to_str().and_then(|name| name.split_once('-'));
        let ours = pid.is_some_and(|(pid, _)| {
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| processes.contains(&pid))
        });
        if ours {
            let count = fs::read_to_string(entry.path().join("exits")).map_err(problem)?;
            let count: u64 = count.trim().parse().unwrap_or(0);
            total = Some(total.unwrap_or(0) + count);
        }
    }
    total.ok_or_else(|| format!("{COUNTERS} has no machine of these processes"))
}
