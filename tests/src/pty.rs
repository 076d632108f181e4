//! A terminal to run croft on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{END, Output, eventually};

/// A pseudo-terminal with a shell that runs one command and then says
/// `code=` and its exit status.
#[derive(Debug)]
pub struct Session {
    shell: Child,
    keys: File,
    line: File,
    before: Termios,
    /// What is shown.
    pub screen: Output,
}

impl Session {
    /// Runs `command`.
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str().expect("a plain name"))
            .expect("the terminal");
        // Something that a careless program would not restore.
        let mut before = tcgetattr(&line).expect("modes");
        before.local_modes.remove(LocalModes::ECHOE);
        tcsetattr(&line, OptionalActions::Now, &before).expect("modes");
        let before = tcgetattr(&line).expect("modes");
        let side = || Stdio::from(line.try_clone().expect("a descriptor"));
        let shell = Command::new("setsid")
            // The shell's own name for the command keeps its words apart.
            .args(["--ctty", "sh", "-c", r#""$@"; echo "code=$?"; sleep 600"#])
            .arg("sh")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid and sh");
        let keys = File::from(master);
        let screen = Output::new("the terminal", keys.try_clone().expect("a descriptor"));
        Session {
            shell,
            keys,
            line,
            before,
            screen,
        }
    }

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal");
    }

    /// Whether every key is the guest's.
    pub fn is_raw(&self) -> bool {
        let now = tcgetattr(&self.line).expect("modes");
        !now.local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the terminal is as it was before croft ran.
    ///
    /// # Panics
    /// When it is not, soon.
    pub fn wait_until_restored(&self) {
        let before = &self.before;
        eventually(END, "the terminal is as before", || {
            let now = tcgetattr(&self.line).expect("modes");
            now.input_modes == before.input_modes
                && now.output_modes == before.output_modes
                && now.control_modes == before.control_modes
                && now.local_modes == before.local_modes
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What runs in it hears a hang-up.
        let _ = kill_process(Pid::from_child(&self.shell), Signal::KILL);
        let _ = self.shell.wait();
    }
}
