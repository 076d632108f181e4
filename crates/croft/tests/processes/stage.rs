//! What the tests share: an installation of its own for each test.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing here takes longer, on a slow and busy machine either. It only ends
/// what hangs: no test is about time.
pub const PATIENCE: Duration = Duration::from_secs(300);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory with croft, croft-monitor, the scripted vmm and a "kernel".
pub struct Stage {
    directory: TempDir,
    /// Unique; an argument of each process that belongs to the machine.
    pub name: String,
}

impl Stage {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let croft = Path::new(env!("CARGO_BIN_EXE_croft"));
        let built = croft.parent().unwrap();
        for (from, to) in [
            (croft.to_owned(), "croft"),
            (built.join("croft-monitor"), "croft-monitor"),
            (built.join("examples/scripted-vmm"), "croft-vmm"),
        ] {
            assert!(
                from.is_file(),
                "{} is missing: build the whole workspace and run scripts/build-static first",
                from.display()
            );
            // By another process: a copy that this one writes is busy (ETXTBSY)
            // as long as a child that another thread begins in that moment has
            // not become its program.
            let mut copy = Command::new("cp");
            let copied = copy.args([&from, &directory.path().join(to)]).output();
            assert!(copied.unwrap().status.success(), "{copy:?}");
        }
        fs::write(directory.path().join("kernel"), "not empty").unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // In a namespace of its own a process has the same number as another.
        let random = RandomState::new().build_hasher().finish();
        let name = format!("croft-test-{}-{number}-{random:016x}", std::process::id());
        Stage { directory, name }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `croft run` of a script, everything else left to the caller.
    pub fn run(&self, script: &str) -> Command {
        let mut command = Command::new(self.path("croft"));
        command
            .args(["run", "--name", &self.name, "--append", script, "--kernel"])
            .arg(self.path("kernel"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `croft` with these words, for instances of the stage's own.
    pub fn croft(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("croft"));
        command
            .args(words)
            .env("CROFT_DATA_DIR", self.path("data"))
            .env_remove("CROFT_RUNTIME_DIR")
            .current_dir(self.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The same, to its end: its exit code and what it said on both outputs.
    pub fn ask(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut child = self.croft(words).spawn().unwrap();
        let status = wait(&mut child);
        let output = child.wait_with_output().unwrap();
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        (status.code(), said)
    }

    /// All processes of the machine: those with its name as an argument.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        self.processes_of(&self.name)
    }

    /// Those of a machine with this name.
    pub fn processes_of(&self, wanted: &str) -> Vec<(Pid, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(line) = fs::read_to_string(entry.path().join("cmdline")) else {
                continue;
            };
            let mut words = line.split('\0');
            let program = words.next().unwrap_or_default();
            if words.any(|word| word == wanted)
                && let Some(pid) = Pid::from_raw(pid)
            {
                let program = Path::new(program).file_name().unwrap_or_default();
                found.push((pid, program.to_string_lossy().into_owned()));
            }
        }
        found
    }

    /// Waits until `program` of the machine runs.
    pub fn wait_for(&self, program: &str) -> Pid {
        let mut pid = None;
        eventually(&format!("{program} runs"), || {
            pid = self
                .processes()
                .into_iter()
                .find(|(_, name)| name == program)
                .map(|(pid, _)| pid);
            pid.is_some()
        });
        pid.unwrap()
    }

    /// Waits until nothing of the machine runs.
    pub fn wait_for_silence(&self) {
        eventually("no process is left", || self.processes().is_empty());
    }

    /// What the directory holds that a stage does not bring.
    pub fn left_behind(&self) -> Vec<String> {
        let brought = ["croft", "croft-monitor", "croft-vmm", "kernel", "data"];
        fs::read_dir(self.directory.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !brought.contains(&name.as_str()))
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only after a failed assertion is there anything to end.
        for suffix in ["", "-a", "-b", "-other"] {
            for (pid, _) in self.processes_of(&format!("{}{suffix}", self.name)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Waits for something to become true.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a child, but not for ever.
pub fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the child ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}
