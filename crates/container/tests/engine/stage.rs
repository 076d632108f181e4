//! A bundle of its own for each test.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// First of the host's ids that containers with ids of their own have.
pub const IDS: u32 = 0x2000_0000;
/// What an init is asked that is to be there for the programs of
/// [`Stage::joined_by`], however long they take.
pub const AWAIT_THEM: &str = "await=/ended";
/// Seconds after which a maker that hangs is killed, and its test fails: none
/// takes long.
const PATIENCE: &str = "300";

/// What a container said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    /// Answers, by question.
    pub answers: HashMap<String, String>,
    /// What else was said.
    pub rest: Vec<String>,
    pub errors: String,
}

impl Said {
    #[track_caller]
    pub fn to(&self, question: &str) -> &str {
        match self.answers.get(question) {
            Some(answer) => answer,
            None => panic!("no answer to {question}: {self:?}"),
        }
    }
}

/// A bundle whose root has the driver, and what that is linked to.
pub struct Stage {
    directory: TempDir,
    pub spec: Value,
}

/// Without root there is nothing to test.
pub fn stage() -> Option<Stage> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers are tested as root");
        return None;
    }
    Some(Stage::new())
}

/// The maker's program.
pub fn driver() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap();
    let driver = built.join("examples/driver");
    assert!(driver.is_file(), "cargo test builds {}", driver.display());
    driver
}

/// The driver's libraries, and their loader (ld.so(8)).
fn libraries() -> Vec<PathBuf> {
    let mut command = Command::new(driver());
    let listed = command
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("rootfs");
        for name in ["bin", "etc", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        copy(&driver(), &root.join("bin/driver"));
        for library in libraries() {
            let inside = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(inside.parent().unwrap()).unwrap();
            copy(&library, &inside);
        }
        Stage {
            directory,
            spec: description(),
        }
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A path in its root.
    pub fn inside(&self, name: &str) -> PathBuf {
        self.path("rootfs").join(name)
    }

    /// A program in its root, of this text.
    pub fn program(&self, name: &str, text: &str) {
        let (draft, program) = (self.path("draft"), self.inside(name));
        fs::write(&draft, text).unwrap();
        copy(&draft, &program);
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The container has ids of its own, and its root is theirs.
    pub fn own_ids(&mut self) {
        let map = json!([{ "containerID": 0, "hostID": IDS, "size": 65536 }]);
        self.spec["linux"]["uidMappings"] = map.clone();
        self.spec["linux"]["gidMappings"] = map;
        self.namespace(json!({ "type": "user" }));
        own(&self.path("rootfs"));
        // Their way to it.
        open_to_all(self.directory.path());
    }

    pub fn namespace(&mut self, namespace: Value) {
        let list = self.spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(namespace);
    }

    pub fn without_namespace(&mut self, kind: &str) {
        let list = self.spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|one| one["type"] != kind);
    }

    pub fn mount(&mut self, mount: Value) {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Runs it; its program answers these.
    pub fn ask(&mut self, questions: &[&str]) -> Said {
        let mut words = vec!["/bin/driver", "inside"];
        words.extend(questions);
        self.spec["process"]["args"] = json!(words);
        self.run(&[])
    }

    /// Gives the bundle to somebody, with a copy of the driver where it can be
    /// reached.
    pub fn give_to(&self, (user, group): (u32, u32)) {
        fs::write(self.path("config.json"), self.spec.to_string()).unwrap();
        copy(&driver(), &self.path("driver"));
        give(self.directory.path(), user, group);
    }

    /// Runs it as somebody, by a command that runs others, with more options.
    pub fn run_as(&self, (user, group): (u32, u32), by: &[&str], options: &[&str]) -> Said {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", PATIENCE]).args(by);
        command.arg(self.path("driver"));
        command.arg("run").arg(self.directory.path()).args(options);
        command.uid(user).gid(group).stdin(Stdio::null());
        said(command.output().unwrap())
    }

    /// Runs it, with more options.
    pub fn run(&self, options: &[&str]) -> Said {
        let text = self.spec.to_string();
        fs::write(self.path("config.json"), text).unwrap();
        let output = Command::new("timeout")
            .args(["-s", "KILL", PATIENCE])
            .arg(driver())
            .arg("run")
            .arg(self.directory.path())
            .args(options)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        said(output)
    }

    /// The options with which these programs join it, and init is told when
    /// they have ended ([`AWAIT_THEM`]).
    pub fn joined_by(&self, processes: &[&str]) -> Vec<String> {
        let mut options = Vec::new();
        for process in processes {
            options.extend(["--exec", process].map(str::to_owned));
        }
        let ended = self.inside("ended").to_str().unwrap().to_owned();
        options.extend(["--after".to_owned(), ended]);
        options
    }

    /// Runs it, joined by these programs.
    pub fn run_joined(&self, processes: &[&str]) -> Said {
        let options = self.joined_by(processes);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.run(&options)
    }
}

/// Copies a program by a process of its own. One that this process has open
/// for writing, if for a moment, is busy for as long as any child has it that
/// another test's thread forks in that moment, and cannot be run (execve(2),
/// ETXTBSY).
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), to.display());
}

fn said(output: Output) -> Said {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut answers, mut rest) = (HashMap::new(), Vec::new());
    for line in text.lines() {
        match line.split_once(": ") {
            Some((question, answer)) if !question.contains(' ') => {
                let answer = answer.trim().to_owned();
                if question == "exec" {
                    rest.push(answer);
                } else {
                    answers.insert(question.to_owned(), answer);
                }
            }
            _ => {
                if let Some(question) = line.strip_suffix(':') {
                    answers.insert(question.to_owned(), String::new());
                } else {
                    rest.push(line.to_owned());
                }
            }
        }
    }
    Said {
        code: output.status.code(),
        answers,
        rest,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Gives a tree to a container's ids.
pub fn own(path: &Path) {
    give(path, IDS, IDS);
}

fn give(path: &Path, user: u32, group: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(group)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user, group);
        }
    }
}

fn description() -> Value {
    let some = json!(["CAP_CHOWN", "CAP_KILL"]);
    let limited = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": [],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": some, "effective": some, "permitted": some
            },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "inner",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
            },
            {
                "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": limited
            },
            {
                "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]
            }
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware", "/nothing"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/nothing"]
        }
    })
}
