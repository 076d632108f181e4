//! Bundles, and running them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use croft_isolate::cgroups::Hierarchies;
use croft_isolate::{capabilities, seccomp};
use oci_spec::runtime::Arch;
use serde_json::{Value, json};

/// A container of the tests: what it is can be changed before it runs.
pub struct Bundle {
    directory: tempfile::TempDir,
    pub spec: Value,
    /// A control group, if it is to be in one of its own.
    pub group: Option<String>,
}

/// A program that cargo has built beside the tests.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().unwrap().parent().unwrap();
    let path = directory.join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// Whether these tests can be here; says why not.
pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

impl Bundle {
    /// As an application container of Docker is without a user namespace:
    /// root inside is root, so that nothing but the protections stands in the
    /// way.
    pub fn new(attempts: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("rootfs");
        for name in [
            "proc", "sys", "dev", "tmp", "usr", "bin", "lib", "lib64", "volume",
        ] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(root.join("intruder"), "").unwrap();
        let mut arguments = vec!["/intruder"];
        arguments.extend(attempts);
        let capabilities: Vec<String> = capabilities::DEFAULT
            .iter()
            .map(|one| format!("CAP_{one}"))
            .collect();
        let filter = seccomp::default_profile(&capabilities::DEFAULT, Arch::ScmpArchNative);
        let bind = |source: &Path, destination: &str| {
            json!({
                "destination": destination, "type": "bind", "source": source,
                "options": ["rbind", "ro"],
            })
        };
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
            bind(&example("intruder"), "/intruder"),
        ];
        for path in ["/usr", "/bin", "/lib", "/lib64"] {
            if Path::new(path).exists() {
                mounts.push(bind(Path::new(path), path));
            }
        }
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": arguments,
                "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": true,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities,
                    "permitted": capabilities,
                },
            },
            "root": {"path": "rootfs"},
            "hostname": "prison",
            "mounts": mounts,
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"},
                    {"type": "uts"}, {"type": "cgroup"},
                ],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "seccomp": serde_json::to_value(filter).unwrap(),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list",
                    "/sys/firmware", "/proc/scsi"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                    "/proc/sysrq-trigger"],
            },
        });
        Bundle {
            directory,
            spec,
            group: None,
        }
    }

    /// The same with a user namespace, as Croft's own instances are.
    pub fn mapped(attempts: &[&str]) -> Self {
        let mut bundle = Self::new(attempts);
        let linux = &mut bundle.spec["linux"];
        linux["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 0x2000_0000_u32, "size": 65536}]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
        let root = bundle.root();
        for path in [root.clone(), root.join("tmp"), root.join("volume")] {
            std::os::unix::fs::chown(path, Some(0x2000_0000), Some(0x2000_0000)).unwrap();
        }
        // Its ids have to get at the root.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bundle.directory.path(), open).unwrap();
        bundle
    }

    /// Its root on the host.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// All rights, no filter, nothing read-only or masked.
    pub fn unprotected(mut self) -> Self {
        let all: Vec<String> = (0..=40).filter_map(capability).collect();
        let process = &mut self.spec["process"];
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(all);
        }
        let linux = self.spec["linux"].as_object_mut().unwrap();
        for name in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux.remove(name);
        }
        self.spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        self
    }

    /// Writes its description.
    pub fn write(&self) -> &Path {
        let text = serde_json::to_string_pretty(&self.spec).unwrap();
        fs::write(self.path().join("config.json"), text).unwrap();
        self.path()
    }

    /// Command line of its maker.
    pub fn command(&self) -> Command {
        self.write();
        let mut command = Command::new(example("driver"));
        command.arg("run").arg(self.path());
        if let Some(group) = &self.group {
            command.arg("--group").arg(group);
        }
        command
    }

    /// Runs it, and says what the maker says.
    pub fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    /// Runs it; outcomes by attempt.
    pub fn outcomes(&self) -> Vec<(String, String)> {
        let output = self.run();
        assert!(output.status.success(), "{output:?}");
        outcomes(&output)
    }
}

/// The lines that the intruder printed.
pub fn outcomes(output: &Output) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    lines
        .map(|(one, two)| (one.to_owned(), two.to_owned()))
        .collect()
}

/// Asserts that no attempt succeeded.
pub fn assert_refused(bundle: &Bundle, count: usize) {
    let outcomes = bundle.outcomes();
    assert_eq!(outcomes.len(), count, "{outcomes:?}");
    for (attempt, outcome) in outcomes {
        assert!(outcome.contains("(os error"), "{attempt}: {outcome}");
    }
}

/// Names by number (`linux/capability.h`), as the specification writes them.
fn capability(number: u32) -> Option<String> {
    const NAMES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID \
        SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK \
        IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT \
        SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
        SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
        CHECKPOINT_RESTORE";
    let name = NAMES.split_whitespace().nth(number as usize)?;
    // What this process has not, nobody here can have.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let own = u64::from_str_radix(own.trim(), 16).ok()?;
    (own >> number & 1 == 1).then(|| format!("CAP_{name}"))
}

/// Whether the host's hierarchies have all that limits need.
pub fn limited() -> bool {
    use croft_isolate::cgroups::Controllers;
    let hierarchies = Hierarchies::find().unwrap();
    let wanted = [Controllers::MEMORY, Controllers::PIDS, Controllers::DEVICES];
    let all = wanted.iter().all(|one| hierarchies.with(*one).is_some());
    if !all {
        eprintln!("skipped: no control groups with memory, pids and devices");
    }
    all
}
