//! The agent and its client over a pair of sockets. The tests' own system is
//! the guest, so nothing is asked of it that would change it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use croft_api::agent::{Exec, Exit, FrameKind, Get, Put, Ready, Size};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::*;
use crate::AgentError;
use crate::client::{Client, Event, Running, failure_status, status};
use crate::connection::halves;

/// Nothing here takes longer, on a slow and busy machine either.
const PATIENCE: Duration = Duration::from_secs(600);

fn client() -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::spawn(move || serve(theirs.into()));
    Client::connect(ours.into()).unwrap()
}

/// Tests that are not run by root cannot ask for it.
fn me() -> Option<String> {
    Some(geteuid().as_raw().to_string())
}

fn shell(script: &str) -> Exec {
    Exec {
        argv: ["sh", "-c", script].map(Into::into).into(),
        user: me(),
        cwd: Some("/".into()),
        stdin: true,
        ..Exec::default()
    }
}

/// Everything that a command wrote, and how it ended.
fn collect(mut running: Running) -> (String, String, Exit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match running.output.next_event().unwrap() {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => err.extend(bytes),
            Event::Exited(exit) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return (text(out), text(err), exit);
            }
        }
    }
}

#[test]
fn a_command_has_its_streams_and_its_status() {
    let mut exec = shell("read line; echo \"out $line $X $PWD\"; echo err >&2; exit 7");
    exec.env.push(("X".into(), "x y".into()));
    let mut running = client().exec(exec).unwrap();
    running.input.write(b"one\ntwo\n").unwrap();
    let (out, err, exit) = collect(running);
    assert_eq!((out.as_str(), err.as_str()), ("out one x y /\n", "err\n"));
    assert_eq!((exit, status(exit)), (Exit::Code(7), 7));
}

#[test]
fn the_end_of_input_is_passed_on_and_large_data_comes_back() {
    let Running {
        pid,
        mut input,
        output,
    } = client().exec(shell("cat")).unwrap();
    let sent: String = (0..400_000)
        .map(|n| char::from(b'a' + (n % 23) as u8))
        .collect();
    let copy = sent.clone();
    let writer = thread::spawn(move || {
        input.write(copy.as_bytes()).unwrap();
        input.close().unwrap();
        input
    });
    let mut output = output;
    let mut out = Vec::new();
    let exit = loop {
        match output.next_event().unwrap() {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => panic!("{bytes:?}"),
            Event::Exited(exit) => break exit,
        }
    };
    writer.join().unwrap();
    assert!(pid > 0 && out == sent.as_bytes());
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn signals_reach_the_whole_group() {
    let mut running = client()
        .exec(shell("sleep 1000 & echo up; wait; sleep 1000"))
        .unwrap();
    assert_eq!(
        running.output.next_event().unwrap(),
        Event::Stdout(b"up\n".to_vec())
    );
    running.input.signal(15).unwrap();
    let (_, _, exit) = collect(running);
    assert_eq!((exit, status(exit)), (Exit::Signal(15), 143));
}

#[test]
fn a_terminal_has_a_size_and_echoes() {
    let mut exec = shell("stty size; test -t 0 && test -t 2; echo tty-$?; read x; stty size");
    exec.pty = Some(Size {
        rows: 33,
        columns: 77,
    });
    let mut running = client().exec(exec).unwrap();
    let mut seen = String::new();
    while !seen.contains("tty-0") {
        if let Event::Stdout(bytes) = running.output.next_event().unwrap() {
            seen.push_str(&String::from_utf8(bytes).unwrap());
        }
    }
    assert!(seen.contains("33 77"), "{seen}");
    running
        .input
        .resize(Size {
            rows: 5,
            columns: 9,
        })
        .unwrap();
    running.input.write(b"typed\n").unwrap();
    let (out, _, exit) = collect(running);
    assert!(out.contains("typed") && out.contains("5 9"), "{out}");
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn what_does_not_run_is_told_apart() {
    let failure = |argv: &[&str], user: Option<String>| {
        let exec = Exec {
            argv: argv.iter().map(Into::into).collect(),
            user,
            ..Exec::default()
        };
        let error = client().exec(exec).map(drop).unwrap_err();
        (failure_status(&error), error.to_string())
    };
    let (code, said) = failure(&["no-such-program-here"], me());
    assert!(code == 127 && said.contains("no such program"), "{said}");
    assert_eq!(failure(&["/no/such"], me()).0, 127);
    assert_eq!(failure(&["/etc/passwd"], me()).0, 126);
    let (code, said) = failure(&["true"], Some("nobody-at-all".to_owned()));
    assert!(code == 125 && said.contains("no user"), "{said}");
    let mut exec = shell("true");
    exec.cwd = Some("/no/such".into());
    assert!(client().exec(exec).is_err());
}

#[test]
fn another_user_has_its_groups_and_home() {
    if !geteuid().is_root() {
        println!("skipped: only root becomes somebody else");
        return;
    }
    let mut exec = shell("id -u; id -g; id -G; echo $USER $HOME; umask");
    exec.user = Some("daemon".to_owned());
    let (out, _, exit) = collect(client().exec(exec).unwrap());
    assert_eq!(exit, Exit::Code(0));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["1", "1"]);
    assert!(lines[3].starts_with("daemon "), "{out}");
    assert_eq!(lines[4], "0022");
}

/// What a background process writes later is not waited for.
#[test]
fn the_end_is_the_commands_own() {
    // It has the outputs open for longer than anybody waits.
    let script = "sleep 1000000 & echo $!; exit 3";
    let (out, _, exit) = collect(client().exec(shell(script)).unwrap());
    assert_eq!(exit, Exit::Code(3));
    let pid = out.trim().parse().ok().and_then(Pid::from_raw);
    kill_process(pid.expect("its number"), Signal::KILL).unwrap();
}

#[test]
fn a_connection_that_ends_hangs_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hung-up");
    let script = format!(
        "trap 'echo x > {}; exit' HUP; echo up; while :; do sleep 0.1; done",
        path.display()
    );
    let mut running = client().exec(shell(&script)).unwrap();
    assert_eq!(
        running.output.next_event().unwrap(),
        Event::Stdout(b"up\n".to_vec())
    );
    drop(running);
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn files_go_in_and_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("from/sub")).unwrap();
    fs::write(path("from/sub/file"), "contents").unwrap();
    let put = |to: &str| Put {
        path: path(to).into(),
        owner: None,
    };
    assert_eq!(client().put(&path("from"), put("in")).unwrap(), 3);
    assert_eq!(fs::read(path("in/sub/file")).unwrap(), b"contents");
    let get = |from: &str| Get {
        path: path(from).into(),
    };
    let arrival = client().get(get("in"), &path("out")).unwrap();
    assert_eq!(arrival.entries, 3);
    assert_eq!(fs::read(path("out/sub/file")).unwrap(), b"contents");
    // Errors of either side have their own words.
    let said = client()
        .get(get("none"), &path("x"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("No such file"), "{said}");
    let said = client()
        .put(&path("none"), put("x"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("No such file"), "{said}");
    let large = vec![1; 3 << 20];
    fs::write(path("large"), &large).unwrap();
    let said = client()
        .put(&path("large"), put("no/such/place"))
        .unwrap_err();
    assert!(matches!(said, AgentError::Failed { .. }), "{said}");
}

#[test]
fn an_agent_says_who_it_is_and_what_it_does_not_know() {
    let state = client().state().unwrap();
    assert!(!state.boot_id.is_empty());
    assert!(client().addresses().is_ok());
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || serve(theirs.into()));
    let (mut sender, mut receiver) = halves(ours.into(), "agent").unwrap();
    sender.hello().unwrap();
    receiver.hello().unwrap();
    sender.message(&"dance").unwrap();
    let answer = receiver.frame().unwrap().unwrap();
    assert_eq!(answer.kind, FrameKind::Message);
    assert!(String::from_utf8_lossy(&answer.bytes).contains("unknown"));
}

#[test]
fn the_host_hears_that_the_guest_is_up() {
    if Path::new("/run/systemd/system").is_dir() {
        println!("skipped: this system's own boot would be waited for");
        return;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || announce(|| theirs.try_clone().map(Into::into)));
    let (_, mut receiver) = halves(ours.into(), "agent").unwrap();
    receiver.hello().unwrap();
    let heard: Ready = receiver.message().unwrap();
    assert_eq!(heard, super::ready::state());
    drop(thread);
}
