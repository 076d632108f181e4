//! What a guest costs that does nothing.

use std::thread;
use std::time::{Duration, Instant};

use croft_tests::PATIENCE;
use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::processes::{cpu_time, resident_except};

use crate::case::{Case, Contestant, Figure, Layout, Place};
use crate::files::Files;
use crate::systems::{MEMORY_MIB, System};

/// How long the guest is left alone before it is watched: kernels put some
/// work off until after init.
const SETTLE: Duration = Duration::from_secs(3);
const WATCHED: Duration = Duration::from_secs(10);

/// Processor time and memory.
pub fn case(files: &Files) -> Case<'_> {
    Case {
        key: "idle",
        title: "An idle guest, Debian's cloud kernel".to_owned(),
        about: "A shell waits for input for 10 seconds, with 3 seconds to settle before. All \
                processes that belong to the guest are counted. Memory is what is resident \
                beyond the guest's RAM, shared pages by their share (PSS).",
        figures: vec![
            Figure {
                name: "processor".to_owned(),
                unit: "% of a core",
                digits: 2,
                target: None,
            },
            Figure {
                name: "memory".to_owned(),
                unit: "MiB",
                digits: 1,
                target: None,
            },
        ],
        contestants: [
            System::Software("software-fast", files.croft.clone()),
            System::Tcg(""),
        ]
        .into_iter()
        .map(|system| idle(files, system))
        .collect(),
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

fn idle(files: &Files, system: System) -> Contestant<'_> {
    Contestant {
        name: system.name(),
        rival: system.is_rival(),
        run: Box::new(move || {
            let mut guest = system.start(&files.shell(Kernel::Cloud, Act::Shell)?)?;
            guest.time_to(PROMPT, PATIENCE)?;
            thread::sleep(SETTLE);
            let processes = guest.processes();
            let used = || processes.iter().map(|pid| cpu_time(*pid)).sum::<Duration>();
            let (start, before) = (Instant::now(), used());
            thread::sleep(WATCHED);
            let share = (used() - before).as_secs_f64() / start.elapsed().as_secs_f64();
            let resident: u64 = processes
                .iter()
                .map(|pid| resident_except(*pid, MEMORY_MIB << 20))
                .sum();
            Ok(vec![share * 100.0, resident as f64 / f64::from(1 << 20)])
        }),
    }
}
