//! The guest's console on terminals, pipes and nothing.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT, UP};
use croft_tests::pty::Session;
use croft_tests::{END, PATIENCE, Stage, tiny};
use rustix::process::{Signal, kill_process};

#[test]
fn a_shell_on_a_terminal() {
    let stage = Stage::new();
    let mut session = Session::start(&stage.linux(Kernel::Cloud, Act::Shell));
    session.screen.wait_for("Ctrl-] leaves", PATIENCE);
    session.screen.wait_for(PROMPT, PATIENCE);
    assert!(session.is_raw());
    session.press("echo the answer: $((6 * 7))\r");
    session.screen.wait_for("the answer: 42", PATIENCE);
    session.screen.wait_for(PROMPT, PATIENCE);
    // Ctrl-C is the guest's. What says so has the terminal already.
    session.press("sh -c 'echo sleep; exec sleep 1000000'\r");
    session.screen.wait_for("\nsleep", PATIENCE);
    session.press("\x03");
    session.screen.wait_for(PROMPT, PATIENCE);
    session.press("exit\r");
    session.screen.wait_for("code=0", PATIENCE);
    session.wait_until_restored();
    stage.wait_until_clean();
}

#[test]
fn the_escape_key_leaves() {
    let stage = Stage::new();
    let mut session = Session::start(&stage.tiny(tiny::SPIN));
    session.screen.wait_for("Ctrl-] leaves", END);
    session.press("\x1d");
    session.screen.wait_for("code=5", END);
    session.wait_until_restored();
    stage.wait_until_clean();
}

#[test]
fn whoever_is_killed_the_terminal_is_restored() {
    for (victim, signal, code) in [
        ("croft-vmm", Signal::KILL, "code=1"),
        ("croft-monitor", Signal::KILL, "code=1"),
        ("croft", Signal::KILL, "code=137"),
        ("croft", Signal::TERM, "code=143"),
    ] {
        let stage = Stage::new();
        let mut session = Session::start(&stage.tiny(tiny::SPIN));
        session.screen.wait_for("Ctrl-] leaves", END);
        kill_process(stage.wait_for(victim), signal).unwrap();
        session.screen.wait_for(code, END);
        session.wait_until_restored();
        stage.wait_until_clean();
    }
}

#[test]
fn a_wrong_configuration_leaves_the_terminal_alone() {
    let stage = Stage::new();
    let mut command = stage.run();
    command
        .arg("--kernel")
        .arg(stage.file("kernel", b"no kernel at all"));
    let mut session = Session::start(&command);
    session.screen.wait_for("code=2", END);
    session.wait_until_restored();
    stage.wait_until_clean();
}

#[test]
fn a_pipe_types_and_its_end_is_not_the_guests() {
    let stage = Stage::new();
    let log = stage.path("log");
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.stdin(Stdio::piped()).arg("--log").arg(&log);
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    // A Ctrl-] in a pipe is a byte like others.
    machine.type_in("echo ready; cat -v\n");
    machine.expect("\nready");
    machine.type_in("one\x1d\n");
    // Once as the guest's terminal echoes it, whether cat reads by then or not,
    // and once from cat.
    machine.expect("one^]");
    machine.expect("one^]");
    machine.type_in("\x04");
    machine.expect(PROMPT);
    machine.type_in("sleep 1; echo two; poweroff -f\n");
    machine.close_input();
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("\ntwo\r\n"), "{ended:#?}");
    assert_eq!(fs::read_to_string(log).unwrap(), ended.stdout);
}

/// Standard input closed, a directory, and one that is only for writing.
#[test]
fn any_standard_input_will_do() {
    let stage = Stage::new();
    let command = stage.tiny(tiny::HELLO);
    let mut closed = Command::new("sh");
    closed
        .args(["-c", r#"exec "$@" <&-"#, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut directory = stage.tiny(tiny::HELLO);
    directory.stdin(OwnedFd::from(fs::File::open("/").unwrap()));
    let mut written = stage.tiny(tiny::HELLO);
    written.stdin(OwnedFd::from(fs::File::create(stage.path("file")).unwrap()));
    for command in [closed, directory, written] {
        let mut machine = stage.start(command);
        machine.stdout.wait_for("tiny\n", END);
        machine.signal("croft", Signal::TERM);
        let ended = machine.wait_at_most(END);
        assert_eq!(ended.code, Some(128 + 15), "{ended:#?}");
        assert_eq!(ended.stdout, "tiny\n");
    }
}

/// Also with a Linux, which opens its console for reading.
#[test]
fn linux_runs_with_standard_input_closed() {
    let stage = Stage::new();
    let command = stage.linux(Kernel::Cloud, Act::Report);
    let mut closed = Command::new("sh");
    closed
        .args(["-c", r#"exec "$@" <&-"#, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ended = stage.start(closed).wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains(UP), "{ended:#?}");
}
