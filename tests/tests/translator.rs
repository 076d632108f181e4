//! What the software engine does with the code of a whole boot.

use std::process::Command;

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, UP};
use croft_tests::{END, Stage, tiny};
use rustix::process::Signal;

/// A boot to power-off; what croft said.
fn boot(stage: &Stage, arguments: &[&str]) -> String {
    let mut command: Command = stage.linux(Kernel::Cloud, Act::Report);
    command.args(["--engine", "software"]).args(arguments);
    let ended = stage.start(command).wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains(UP), "{ended:#?}");
    ended.stderr
}

/// A share from the table of counts, in percent.
fn share(said: &str, name: &str) -> f64 {
    let line = said.lines().find(|line| line.trim().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name}: {said}"));
    let number = line.trim_end_matches(" %").rsplit(' ').next();
    number.and_then(|text| text.parse().ok()).expect("a number")
}

/// Were any of it not isolated, the machine would have ended with an error.
#[test]
fn all_code_of_a_boot_is_isolated() {
    let said = boot(&Stage::new(), &["--verify-code", "--stats"]);
    assert!(share(&said, "translated") > 95.0, "{said}");
    assert!(share(&said, "found in the tables") > 80.0, "{said}");
}

/// Room for a fraction of the code: it is thrown away again and again.
#[test]
fn a_boot_with_little_room_for_code() {
    let said = boot(&Stage::new(), &["--code-cache", "1M", "--stats"]);
    let line = said.lines().find(|line| line.contains("thrown away"));
    let mut words = line.expect("a table").split_whitespace();
    let times = words.find_map(|word| word.parse::<u64>().ok());
    assert!(times.is_some_and(|times| times > 0), "{said}");
}

#[test]
fn the_interpreter_alone_does_without_translated_code() {
    let said = boot(&Stage::new(), &["--interpret", "--stats"]);
    assert_eq!(share(&said, "translated"), 0.0, "{said}");
}

#[test]
fn counts_are_printed_when_they_are_asked_for() {
    let stage = Stage::new();
    let mut command = stage.tiny(tiny::HELLO);
    command.args(["--engine", "software", "--stats"]);
    let mut machine = stage.start(command);
    // Before its guest runs it expects the signal.
    machine.stdout.wait_for("tiny\n", END);
    // And it goes on.
    for _ in 0..2 {
        machine.signal("croft-vmm", Signal::USR1);
        machine.stderr.wait_for("guest instructions", END);
        machine.stderr.wait_for("page walks", END);
    }
    machine.signal("croft", Signal::TERM);
    let said = machine.wait_at_most(END).stderr;
    assert!(said.matches("page walks").count() >= 2, "{said}");
}
