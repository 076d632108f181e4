//! A directory of its own for each test, and machines in it.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::files::{self, Kernel};
use crate::guest::{self, Act};
use crate::{END, Output, PATIENCE, eventually, processes, tiny};

/// Croft's programs.
const PROGRAMS: [&str; 3] = ["croft", "croft-monitor", "croft-vmm"];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory for what a test makes. When it is dropped everything that
/// still runs in it is killed.
#[derive(Debug)]
pub struct Stage {
    directory: TempDir,
    /// Unique; an argument of each process of a machine.
    name: String,
}

impl Default for Stage {
    fn default() -> Self {
        Stage::new()
    }
}

impl Stage {
    /// With an empty directory `run`, where croft may put what it wants to.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A process has the same number as another in a namespace of its own.
        let random = RandomState::new().build_hasher().finish();
        let name = format!("croft-e2e-{}-{number}-{random:016x}", std::process::id());
        let stage = Stage { directory, name };
        fs::create_dir(stage.path("run")).expect("a directory");
        stage
    }

    /// The stage's own name, an argument of each process of its machines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file in the directory.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file");
        path
    }

    /// `croft run`, with no input.
    pub fn run(&self) -> Command {
        self.prepared(Command::new(files::program("croft")), "run")
    }

    /// `croft restore` of this file, with no input.
    pub fn restore(&self, file: &Path) -> Command {
        let mut command = self.prepared(Command::new(files::program("croft")), "restore");
        command.arg(file);
        command
    }

    /// `croft save` of the machine with this control socket.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn save(&self, socket: &Path, file: &Path) -> Saved {
        let output = Command::new(files::program("croft"))
            .arg("save")
            .args([socket, file])
            .stdin(Stdio::null())
            .output()
            .expect("croft save");
        Saved {
            code: output.status.code(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `croft run` of a stock kernel and the tests' initial RAM disk.
    pub fn linux(&self, kernel: Kernel, act: Act) -> Command {
        let mut command = self.run();
        self.add_boot(&mut command, kernel.path(), act);
        command
    }

    /// `croft run` of a kernel that is made of this code.
    pub fn tiny(&self, code: &[u8]) -> Command {
        let kernel = self.file("kernel", &tiny::kernel(tiny::X86_64, code));
        let mut command = self.run();
        command.arg("--kernel").arg(kernel);
        command
    }

    /// As [`linux`](Self::linux), by a user without any privilege, from
    /// copies of everything.
    pub fn unprivileged_linux(&self, kernel: Kernel, act: Act) -> Command {
        let command = self
            .unprivileged(&[])
            .unwrap_or_else(|| Command::new(self.path("croft")));
        let mut command = self.prepared(command, "run");
        let kernel_copy = self.path("vmlinuz");
        fs::copy(kernel.path(), &kernel_copy).expect("a copy");
        self.add_boot(&mut command, kernel_copy, act);
        command
    }

    /// A copy of `croft` with these arguments, by a user without any
    /// privilege; `None` where this test is run by such a one, with the copy
    /// made.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn unprivileged(&self, arguments: &[&str]) -> Option<Command> {
        // Nobody's: the user id of overflow, which owns nothing.
        const NOBODY: &str = "65534";
        fs::set_permissions(self.path(""), fs::Permissions::from_mode(0o755)).expect("permissions");
        fs::set_permissions(self.path("run"), fs::Permissions::from_mode(0o777))
            .expect("permissions");
        for program in PROGRAMS {
            files::copy_program(&files::program(program), &self.path(program));
        }
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["--no-new-privs", "--bounding-set=-all"])
            .arg(self.path("croft"))
            .args(arguments);
        Some(command)
    }

    fn prepared(&self, mut command: Command, verb: &str) -> Command {
        let run = self.path("run");
        command
            .args([verb, "--name", &self.name])
            .env("TMPDIR", &run)
            .env("XDG_RUNTIME_DIR", &run)
            .env("HOME", &run)
            .current_dir(&run)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn add_boot(&self, command: &mut Command, kernel: PathBuf, act: Act) {
        let initrd = self.file("initrd", &guest::initramfs());
        command.arg("--kernel").arg(kernel);
        command.arg("--initrd").arg(initrd);
        command.args(["--append", &act.command_line()]);
    }

    /// Starts a command.
    pub fn start(&self, mut command: Command) -> Machine<'_> {
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("standard output");
        let stderr = child.stderr.take().expect("standard error");
        Machine {
            stage: self,
            child,
            stdin,
            stdout: Output::new("standard output", stdout),
            stderr: Output::new("standard error", stderr),
        }
    }

    /// All processes of the machine and the names of their programs.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let mut all = processes::with_argument(&self.name);
        // What starts croft has croft's arguments among its own.
        all.retain(|(_, program)| PROGRAMS.contains(&program.as_str()));
        all
    }

    /// Waits until `program` of the machine runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for(&self, program: &str) -> Pid {
        let mut pid = None;
        eventually(END, &format!("{program} runs"), || {
            let mut all = self.processes().into_iter();
            pid = all.find(|(_, name)| name == program).map(|(pid, _)| pid);
            pid.is_some()
        });
        pid.expect("a process")
    }

    /// Waits until no process of the machine and none of its files is left.
    ///
    /// # Panics
    /// When one is.
    pub fn wait_until_clean(&self) {
        eventually(END, "no process is left", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(self.path("run"))
            .expect("a directory")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only after a failed assertion is there anything to end.
        for (pid, _) in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// How a `croft save` ended.
#[derive(Debug)]
pub struct Saved {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// What it had to say.
    pub stderr: String,
}

/// A running croft.
#[derive(Debug)]
pub struct Machine<'a> {
    stage: &'a Stage,
    child: Child,
    stdin: Option<ChildStdin>,
    /// The guest's console.
    pub stdout: Output,
    /// What Croft has to say.
    pub stderr: Output,
}

/// How a croft ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// The guest's output.
    pub stdout: String,
    /// Croft's.
    pub stderr: String,
}

impl Machine<'_> {
    /// The process that was started: croft itself, but for an unprivileged
    /// one.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for `text` on the console.
    ///
    /// # Panics
    /// When it does not come.
    pub fn expect(&mut self, text: &str) {
        self.stdout.wait_for(text, PATIENCE);
    }

    /// Types on its standard input, which must be a pipe.
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("a pipe as standard input");
        stdin.write_all(text.as_bytes()).expect("a reader");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to one of its programs.
    pub fn signal(&self, program: &str, signal: Signal) {
        kill_process(self.stage.wait_for(program), signal).expect("a process");
    }

    /// Waits for the end of croft and of everything it started.
    ///
    /// # Panics
    /// When something does not end, or leaves a file behind.
    pub fn wait(self) -> Ended {
        self.wait_at_most(PATIENCE)
    }

    /// As [`wait`](Self::wait), with another limit.
    ///
    /// # Panics
    /// As there.
    pub fn wait_at_most(mut self, patience: Duration) -> Ended {
        self.stdout.wait_for_end(patience);
        let mut status = None;
        eventually(END, "croft ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        self.stage.wait_until_clean();
        self.stderr.wait_for_end(END);
        Ended {
            code: status.and_then(|status| status.code()),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // Ended already, but for a failed assertion.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
