//! The console on a terminal: raw while the machine runs, as before after it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::stage::{Stage, eventually, wait};

/// A machine on a pseudo-terminal of its own, started by a shell.
struct Session {
    stage: Stage,
    shell: Child,
    keys: File,
    line: File,
    before: Termios,
    shown: Receiver<Vec<u8>>,
    screen: String,
}

impl Session {
    fn start(script: &str) -> Self {
        let stage = Stage::new();
        let name = stage.name.clone();
        let command = format!("./croft run --kernel kernel --name {name} --append {script}");
        Self::of(stage, &command)
    }

    fn of(stage: Stage, command: &str) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str().unwrap())
            .unwrap();
        // Something that a careless program would not restore.
        let mut before = tcgetattr(&line).unwrap();
        before.local_modes.remove(LocalModes::ECHOE);
        tcsetattr(&line, OptionalActions::Now, &before).unwrap();
        let before = tcgetattr(&line).unwrap();
        let side = || Stdio::from(line.try_clone().unwrap());
        let command = format!("{command}; echo \"code=$?\"; sleep 1000");
        // Keys do what they do for users, whatever this process ignores.
        let shell = Command::new("env")
            .args(["--default-signal", "setsid", "--ctty"])
            .args(["sh", "-c", &command])
            .current_dir(stage.path(""))
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let keys = File::from(master);
        let mut screen = keys.try_clone().unwrap();
        let (sender, shown) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Session {
            stage,
            shell,
            keys,
            line,
            before,
            shown,
            screen: String::new(),
        }
    }

    fn wait_for(&mut self, text: &str) {
        let (shown, screen) = (&self.shown, &mut self.screen);
        eventually(&format!("'{text}' is shown"), || {
            for bytes in shown.try_iter() {
                screen.push_str(&String::from_utf8_lossy(&bytes));
            }
            screen.contains(text)
        });
    }

    fn wait_until_raw(&mut self) {
        self.wait_for("Ctrl-] leaves");
        let now = tcgetattr(&self.line).unwrap();
        assert!(!now.local_modes.contains(LocalModes::ICANON));
    }

    fn assert_restored(&self) {
        let line = &self.line;
        let before = &self.before;
        eventually("the terminal is as before", || same(line, before));
        // The shell has the machine's name within an argument, not as one.
        self.stage.wait_for_silence();
    }

    fn end(mut self) {
        let _ = kill_process(Pid::from_child(&self.shell), Signal::KILL);
        wait(&mut self.shell);
    }
}

fn same(line: impl AsFd, before: &Termios) -> bool {
    let now = tcgetattr(line).unwrap();
    now.input_modes == before.input_modes
        && now.output_modes == before.output_modes
        && now.control_modes == before.control_modes
        && now.local_modes == before.local_modes
}

#[test]
fn every_key_is_the_guests_except_one() {
    let mut session = Session::start("echo");
    session.wait_until_raw();
    session.keys.write_all(b"ab\x03\x04\x1ac").unwrap();
    session.wait_for("ab\x03\x04\x1ac");
    session.keys.write_all(b"\x1d").unwrap();
    session.wait_for("code=5");
    session.assert_restored();
    session.end();
}

#[test]
fn restored_after_power_off() {
    let mut session = Session::start("echo");
    session.wait_until_raw();
    session.keys.write_all(b"!").unwrap();
    session.wait_for("code=0");
    session.assert_restored();
    session.end();
}

#[test]
fn restored_whoever_is_killed() {
    for (victim, signal, code) in [
        ("croft-vmm", Signal::KILL, "code=1"),
        ("croft-monitor", Signal::KILL, "code=1"),
        ("croft", Signal::TERM, "code=143"),
        ("croft", Signal::HUP, "code=129"),
        ("croft", Signal::KILL, "code=137"),
    ] {
        let mut session = Session::start("sleep");
        session.wait_until_raw();
        kill_process(session.stage.wait_for(victim), signal).unwrap();
        session.wait_for(code);
        session.assert_restored();
        session.end();
    }
}

#[test]
fn left_alone_when_the_configuration_is_wrong() {
    let mut session = Session::start("invalid --initrd none");
    session.wait_for("code=2");
    session.assert_restored();
    session.end();
}

#[test]
fn restored_when_a_password_is_not_given() {
    for (key, code) in [(b"\x03", "code=130"), (b"\x1c", "code=131")] {
        // Nobody is asked before the password is there.
        let login = "trap : INT QUIT; ./croft image login localhost:1 --username me";
        let mut session = Session::of(Stage::new(), login);
        session.wait_for("Password: ");
        let now = tcgetattr(&session.line).unwrap();
        assert!(!now.local_modes.contains(LocalModes::ECHO));
        session.keys.write_all(key).unwrap();
        session.wait_for(code);
        session.assert_restored();
        session.end();
    }
}
