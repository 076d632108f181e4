//! Debian's gdb on a running stock kernel.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::ports::Port;
use croft_tests::{END, Output, PATIENCE, Stage, linux};
use rustix::process::{Pid, Signal, kill_process_group};

/// gdb with these commands, after it has connected.
struct Gdb {
    child: std::process::Child,
    output: Output,
}

impl Gdb {
    fn start(target: &str, commands: &[&str]) -> Self {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-ex", "set architecture i386:x86-64"])
            .args([
                "-ex",
                "set tcp auto-retry off",
                "-ex",
                "set remotetimeout 60",
            ])
            .args(["-ex", &format!("target remote {target}")]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let mut child = gdb
            // With what its commands start.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("gdb: {error}; `make test` installs it"));
        let output = Output::new("gdb", child.stdout.take().unwrap());
        // Read so that gdb never waits for it.
        Output::new("gdb", child.stderr.take().unwrap());
        Gdb { child, output }
    }

    /// What it printed, once it has ended.
    fn finish(mut self) -> String {
        self.output.wait_for_end(PATIENCE);
        self.output.text()
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[test]
fn registers_memory_breakpoints_and_steps() {
    let stage = Stage::new();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.stdin(Stdio::piped()).args(["--gdb", "gdb"]);
    let mut machine = stage.start(command);
    machine.expect(PROMPT);
    let target = stage.path("run/gdb");
    let banner = linux::banner(&fs::read(Kernel::Cloud.path()).unwrap());
    // A place that comes round again whatever the guest does, and however long
    // its host takes.
    machine.type_in("while sleep 0.1; do :; done & grep -w schedule /proc/kallsyms; echo at-$?\n");
    machine.expect("at-0");
    let shown = machine.stdout.text();
    let schedule = shown
        .lines()
        .find_map(|line| line.trim_end().strip_suffix(" T schedule"))
        .unwrap_or_else(|| panic!("no schedule: {shown}"));

    let gdb = Gdb::start(
        target.to_str().unwrap(),
        &[
            &format!("set $place = 0x{schedule}"),
            "hbreak *$place",
            "continue",
            "echo hit=\\n",
            "output $rip == $place",
            "delete",
            "echo \\nrip=\\n",
            "output/x $rip",
            "echo \\nregisters=\\n",
            "info registers",
            "echo banner=\\n",
            &format!("x/s {banner:#x}"),
            "echo unmapped=\\n",
            "x/4xb 0x10",
            "echo next\\n",
            "stepi",
            "stepi",
            "echo \\nstepped=\\n",
            "output $rip != $place",
            "break *$place",
            "continue",
            "echo \\nhit again=\\n",
            "output $rip == $place",
            "delete",
            "detach",
        ],
    );
    let text = gdb.finish();
    let after = |mark: &str| -> &str {
        let (_, rest) = text
            .split_once(&format!("{mark}=\n"))
            .unwrap_or_else(|| panic!("no {mark}:\n{text}"));
        rest
    };
    // Kernel text.
    assert!(after("rip").starts_with("0xffffffff8"), "{text}");
    for register in ["rsp", "r15", "eflags", "cs"] {
        assert!(after("registers").contains(register), "{text}");
    }
    let release = Kernel::Cloud.release();
    assert!(
        after("banner").contains(&format!("Linux version {release}")),
        "{text}"
    );
    // Nothing is mapped in the first page.
    assert!(after("unmapped").starts_with("0x10:\tnext"), "{text}");
    assert!(text.contains("Hardware assisted breakpoint 1"), "{text}");
    assert!(text.contains("Breakpoint 1, "), "{text}");
    assert!(after("hit").starts_with('1'), "{text}");
    assert!(after("stepped").starts_with('1'), "{text}");
    assert!(text.contains("Breakpoint 2, "), "{text}");
    assert!(after("hit again").starts_with('1'), "{text}");
    assert!(text.contains("detached"), "{text}");

    // The guest goes on as if nothing had been.
    machine.type_in("echo still $((40 + 2))\n");
    machine.expect("still 42");
    // A debugger that is killed lets go of it too.
    let mut gdb = Gdb::start(
        target.to_str().unwrap(),
        &["echo connected\\n", "shell sleep 600"],
    );
    gdb.output.wait_for("connected", END);
    drop(gdb);
    machine.type_in("echo again $((40 + 3)); poweroff -f\n");
    machine.expect("again 43");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn a_port_from_the_first_instruction_to_kill() {
    let stage = Stage::new();
    let port = Port::free();
    let number = port.number();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.args(["--gdb", &number.to_string(), "--cpus", "2"]);
    let mut machine = stage.start(command);
    machine.stderr.wait_for("gdb can connect", END);
    machine.stderr.wait_for("engine", END);
    let gdb = Gdb::start(
        &format!("127.0.0.1:{number}"),
        &["info threads", "stepi", "echo stepped\\n", "kill"],
    );
    let text = gdb.finish();
    assert!(text.contains("stepped"), "{text}");
    assert!(
        text.contains("Thread 2") || text.contains("2    "),
        "{text}"
    );
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_eq!(ended.stdout.matches("panic").count(), 0, "{ended:#?}");
}
