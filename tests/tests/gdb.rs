//! Debian's gdb on a running stock kernel.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use croft_tests::files::Kernel;
use croft_tests::guest::{Act, PROMPT};
use croft_tests::{END, Output, PATIENCE, Stage, linux};
use rustix::process::{Pid, Signal, kill_process};

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
            // Both to one pipe, in order.
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
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
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

    // The guest's processor idles, with interrupts off or just after a halt:
    // the place where it is comes round again.
    let gdb = Gdb::start(
        target.to_str().unwrap(),
        &[
            "echo rip=\\n",
            "output/x $rip",
            "echo \\nregisters=\\n",
            "info registers",
            "echo banner=\\n",
            &format!("x/s {banner:#x}"),
            "echo unmapped=\\n",
            "x/4xb 0x10",
            "set $idle = $rip",
            "hbreak *$idle",
            "continue",
            "echo hit=\\n",
            "output $rip == $idle",
            "delete",
            "stepi",
            "stepi",
            "echo \\nstepped=\\n",
            "output $rip != $idle",
            "break *$idle",
            "continue",
            "echo \\nhit again=\\n",
            "output $rip == $idle",
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
    assert!(after("unmapped").starts_with("0x10:\tHardware"), "{text}");
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
    // A port that is free: it was a moment ago.
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let mut command = stage.linux(Kernel::Cloud, Act::Shell);
    command.args(["--gdb", &port.to_string(), "--cpus", "2"]);
    let mut machine = stage.start(command);
    machine.stderr.wait_for("gdb can connect", END);
    machine.stderr.wait_for("engine", END);
    let gdb = Gdb::start(
        &format!("127.0.0.1:{port}"),
        &["info threads", "stepi", "echo stepped\\n", "kill"],
    );
    let text = gdb.finish();
    assert!(text.contains("stepped"), "{text}");
    assert!(
        text.contains("Thread 2") || text.contains("2    "),
        "{text}"
    );
    let ended = machine.wait_at_most(Duration::from_secs(20));
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_eq!(ended.stdout.matches("panic").count(), 0, "{ended:#?}");
}
