//! Croft and its peers, started on the same files.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft_tests::files::{Kernel, program};
use croft_tests::guest::{self, Act};
use croft_tests::{Output, PATIENCE, processes};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Guest memory of all contestants, in MiB.
pub const MEMORY_MIB: u64 = 512;

/// What the guests boot from besides their kernels.
pub struct Files {
    directory: TempDir,
}

impl Files {
    /// Makes them.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("initrd"), guest::initramfs()).expect("an initrd");
        Files { directory }
    }

    fn initrd(&self) -> PathBuf {
        self.directory.path().join("initrd")
    }
}

/// What runs a guest.
#[derive(Clone, Copy, Debug)]
pub enum System {
    /// Croft's software engine with this CPU model.
    Software(&'static str),
    /// QEMU's translator, with these words behind the kernel's command line.
    Tcg(&'static str),
}

impl System {
    /// For tables.
    pub fn name(self) -> String {
        match self {
            System::Software(model) => format!("Croft, software engine, `--cpu {model}`"),
            System::Tcg("") => "QEMU, `-accel tcg -cpu max`".to_owned(),
            System::Tcg(words) => format!("QEMU, the same, kernel with `{words}`"),
        }
    }

    /// Starts a guest.
    pub fn start(self, files: &Files, kernel: Kernel, act: Act) -> Result<Guest, String> {
        let mut append = act.command_line();
        let mut command = match self {
            System::Software(model) => {
                let mut command = Command::new(program("croft"));
                command.args(["run", "--engine", "software", "--cpu", model]);
                command.args(["--memory", &format!("{MEMORY_MIB}M"), "--no-reboot"]);
                command.arg("--kernel").arg(kernel.path());
                command.arg("--initrd").arg(files.initrd());
                command.arg("--append");
                command
            }
            System::Tcg(words) => {
                append = format!("{append} {words}");
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-accel", "tcg", "-cpu", "max", "-nographic", "-no-reboot"]);
                command.args(["-m", &format!("{MEMORY_MIB}M")]);
                command.arg("-kernel").arg(kernel.path());
                command.arg("-initrd").arg(files.initrd());
                command.arg("-append");
                command
            }
        };
        command
            .arg(append.trim_end())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        Ok(Guest {
            started,
            child,
            output: Output::new("the console", stdout),
        })
    }
}

/// A running guest; killed when dropped.
pub struct Guest {
    started: Instant,
    child: Child,
    output: Output,
}

impl Guest {
    /// How long it took from the start of the process until `text` was
    /// printed.
    pub fn time_to(&mut self, text: &str) -> Result<Duration, String> {
        self.output.find(text, PATIENCE)?;
        Ok(self.started.elapsed())
    }

    /// All of the system's processes for this guest.
    pub fn processes(&self) -> Vec<Pid> {
        processes::tree(Pid::from_child(&self.child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // To croft it is a request that its helpers hear too.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
