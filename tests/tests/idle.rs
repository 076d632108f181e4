//! A guest that does nothing costs next to nothing.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::processes::cpu_time;
use croft_tests::{PATIENCE, Stage, eventually};

/// The figure itself is `make bench`'s; this finds busy loops and ticks that
/// do not stop, on a busy machine too.
#[test]
fn an_idle_shell_sleeps() {
    const WATCHED: Duration = Duration::from_secs(5);
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.stdin(Stdio::piped()).args(["--cpus", "2"]);
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    let processes = stage.processes();
    assert_eq!(processes.len(), 3, "{processes:?}");
    let used = || {
        processes
            .iter()
            .map(|(pid, _)| cpu_time(*pid))
            .sum::<Duration>()
    };
    // Once what the kernel puts off until after init is done, however long a
    // busy host takes for it.
    eventually(PATIENCE, "less than a fifth of a core is used", || {
        let (start, before) = (Instant::now(), used());
        thread::sleep(WATCHED);
        let share = (used() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        println!("{:.1} % of a core", share * 100.0);
        share < 0.2
    });
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
