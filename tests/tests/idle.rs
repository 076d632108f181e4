//! A guest that does nothing costs next to nothing.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::Stage;
use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::processes::cpu_time;

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
    // What the kernel puts off until after init.
    thread::sleep(Duration::from_secs(2));
    let processes = stage.processes();
    assert_eq!(processes.len(), 3, "{processes:?}");
    let used = || {
        processes
            .iter()
            .map(|(pid, _)| cpu_time(*pid))
            .sum::<Duration>()
    };
    let (start, before) = (Instant::now(), used());
    thread::sleep(WATCHED);
    let share = (used() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < 0.2, "{:.1} % of a core", share * 100.0);
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
