//! Containers: `croft-oci` beside other runtimes, with the same root file
//! system and the same limits.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use croft_isolate::{capabilities, seccomp};
use croft_tests::files::{busybox, program};
use oci_spec::runtime::Arch;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};

/// How often each is timed in a run of the benchmark.
const TIMES: usize = 40;
/// How many containers there are at once.
const MANY: usize = 100;
/// Programs of the containers, which busybox is.
const PROGRAMS: [&str; 3] = ["sh", "true", "sleep"];

/// Who runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runtime {
    /// An OCI runtime.
    Oci(&'static str),
    Lxc,
    Nspawn,
}

impl Runtime {
    fn name(self) -> String {
        match self {
            Runtime::Oci(name) => name.to_owned(),
            Runtime::Lxc => "lxc".to_owned(),
            Runtime::Nspawn => "systemd-nspawn".to_owned(),
        }
    }

    /// An OCI runtime's program.
    fn program(self) -> PathBuf {
        match self {
            Runtime::Oci("croft-oci") => program("croft-oci"),
            Runtime::Oci(name) => name.into(),
            Runtime::Lxc => "lxc-execute".into(),
            Runtime::Nspawn => "systemd-nspawn".into(),
        }
    }
}

/// A root with busybox, and what each runtime wants to be told.
struct Bundle {
    directory: TempDir,
}

impl Bundle {
    fn new() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("a bundle: {error}");
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path();
        // LXC asks as the container's root.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        for name in [
            "bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "sbin",
        ] {
            fs::create_dir_all(path.join("rootfs").join(name)).map_err(failed)?;
        }
        let bin = path.join("rootfs/bin");
        fs::copy(busybox(), bin.join("busybox")).map_err(failed)?;
        for name in PROGRAMS {
            symlink("busybox", bin.join(name)).map_err(failed)?;
        }
        let passwd = "root:x:0:0:root:/:/bin/sh\n";
        fs::write(path.join("rootfs/etc/passwd"), passwd).map_err(failed)?;
        fs::write(path.join("rootfs/etc/os-release"), "ID=bench\n").map_err(failed)?;
        fs::create_dir(path.join("lxc")).map_err(failed)?;
        fs::write(path.join("lxc.conf"), lxc(path)).map_err(failed)?;
        let bundle = Bundle { directory };
        for name in PROGRAMS {
            bundle.configure(name)?;
        }
        Ok(bundle)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A directory with a `config.json` whose program that is.
    fn configure(&self, name: &str) -> Result<(), String> {
        let directory = self.path().join(name);
        fs::create_dir(&directory).map_err(|error| format!("a bundle: {error}"))?;
        silent(
            Command::new(program("croft-oci"))
                .args(["spec", "--bundle"])
                .arg(&directory),
        )?;
        let path = directory.join("config.json");
        let text = fs::read(&path).map_err(|error| format!("a configuration: {error}"))?;
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|error| format!("a configuration: {error}"))?;
        self.complete(&mut config, name)?;
        fs::write(&path, config.to_string()).map_err(|error| format!("a configuration: {error}"))
    }

    /// Everything that a usual container has: limits, a filter, all namespaces
    /// but the user's, which LXC and systemd-nspawn would not have either.
    fn complete(&self, config: &mut Value, name: &str) -> Result<(), String> {
        let arguments = match name {
            "sleep" => vec!["/bin/sleep", "1000"],
            name => vec![name],
        };
        // A version that all of them know.
        config["ociVersion"] = "1.0.2".into();
        config["process"]["args"] = json!(arguments);
        config["process"]["terminal"] = false.into();
        config["root"] = json!({ "path": self.path().join("rootfs"), "readonly": true });
        let linux = &mut config["linux"];
        linux["namespaces"] = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        linux["resources"] = json!({
            "memory": { "limit": 256 << 20 },
            "pids": { "limit": 64 },
            "cpu": { "shares": 512, "quota": 100_000, "period": 100_000 },
            "devices": [{ "allow": false, "access": "rwm" }],
        });
        let profile = seccomp::default_profile(&capabilities::DEFAULT, Arch::ScmpArchX86_64);
        linux["seccomp"] =
            serde_json::to_value(profile).map_err(|error| format!("the filter: {error}"))?;
        Ok(())
    }
}

/// LXC's configuration of the same.
fn lxc(path: &Path) -> String {
    let kept: Vec<String> = capabilities::DEFAULT
        .iter()
        .map(|one| one.to_string().to_lowercase())
        .collect();
    format!(
        "lxc.rootfs.path = dir:{}\n\
         lxc.uts.name = bench\n\
         lxc.net.0.type = empty\n\
         lxc.mount.auto = proc:mixed sys:ro cgroup:ro\n\
         lxc.tty.max = 0\n\
         lxc.console.path = none\n\
         lxc.cap.keep = {}\n\
         lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp\n\
         lxc.apparmor.profile = unconfined\n\
         lxc.cgroup.memory.limit_in_bytes = 268435456\n\
         lxc.cgroup.pids.max = 64\n\
         lxc.cgroup.cpu.shares = 512\n\
         lxc.cgroup2.memory.max = 268435456\n\
         lxc.cgroup2.pids.max = 64\n",
        path.join("rootfs").display(),
        kept.join(" ")
    )
}

impl Bundle {
    /// Runs `true` in a container that is there for nothing else.
    fn run(&self, runtime: Runtime, name: &str) -> Command {
        let mut command = Command::new(runtime.program());
        match runtime {
            Runtime::Oci(_) => {
                let bundle = self.path().join("true");
                command.args(["run", "--bundle"]).arg(bundle).arg(name)
            }
            Runtime::Lxc => self.lxc(&mut command, name).args(["--", "/bin/true"]),
            Runtime::Nspawn => command
                .args([
                    "--quiet",
                    "--register=no",
                    "--keep-unit",
                    "--private-network",
                    "-D",
                ])
                .arg(self.path().join("rootfs"))
                .arg("/bin/true"),
        };
        command
    }

    fn lxc<'a>(&self, command: &'a mut Command, name: &str) -> &'a mut Command {
        command
            .arg("-P")
            .arg(self.path().join("lxc"))
            .args(["-n", name, "-f"])
            .arg(self.path().join("lxc.conf"))
    }

    /// Starts one that sleeps.
    fn start(&self, runtime: Runtime, name: &str) -> Command {
        let mut command = Command::new(runtime.program());
        match runtime {
            Runtime::Oci(_) => {
                let bundle = self.path().join("sleep");
                command
                    .args(["run", "--detach", "--bundle"])
                    .arg(bundle)
                    .arg(name)
            }
            _ => {
                let command = self.lxc(&mut command, name);
                command.args(["-d", "--", "/bin/sleep", "1000"])
            }
        };
        command
    }

    /// Ends it, and removes what is left.
    fn delete(&self, runtime: Runtime, name: &str) -> Command {
        match runtime {
            Runtime::Oci(_) => {
                let mut command = Command::new(runtime.program());
                command.args(["delete", "--force", name]);
                command
            }
            _ => {
                let mut command = Command::new("lxc-stop");
                command
                    .arg("-P")
                    .arg(self.path().join("lxc"))
                    .args(["-k", "-n", name]);
                command
            }
        }
    }

    /// Runs `true` in one that is there.
    fn exec(&self, runtime: Runtime, name: &str) -> Command {
        match runtime {
            Runtime::Oci(_) => {
                let mut command = Command::new(runtime.program());
                command.args(["exec", name, "/bin/true"]);
                command
            }
            _ => {
                let mut command = Command::new("lxc-attach");
                command.arg("-P").arg(self.path().join("lxc")).args([
                    "-n",
                    name,
                    "--",
                    "/bin/true",
                ]);
                command
            }
        }
    }
}

/// Runs a command to its good end, which nobody reads of.
fn silent(command: &mut Command) -> Result<f64, String> {
    let before = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    let milliseconds = before.elapsed().as_secs_f64() * 1000.0;
    if status.success() {
        Ok(milliseconds)
    } else {
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let name = command.get_program().display();
        Err(format!("{name} {}: {status}", words.join(" ")))
    }
}

/// The most that a command has of memory at once, in MiB, as time(1) sees it:
/// a child of this process would begin with what this process has.
fn peak(command: &Command) -> Result<f64, String> {
    let output = Command::new("time")
        .args(["-f", "%M"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("time: {error}; as root: scripts/install-deps bench"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    let kilobytes: f64 = last.parse().map_err(|_| format!("time printed '{last}'"))?;
    Ok(kilobytes / 1024.0)
}

/// Gives each runtime's figures.
type Measure<'a> = Box<dyn Fn(&[Runtime], &mut SmallRng) -> Vec<Run> + 'a>;

/// A round in which all are measured in a shuffled order; each contestant then
/// takes what is its.
struct Round<'a> {
    measured: RefCell<Vec<Option<Run>>>,
    runtimes: Vec<Runtime>,
    measure: Measure<'a>,
    random: RefCell<SmallRng>,
}

impl<'a> Round<'a> {
    fn new(
        runtimes: &[Runtime],
        measure: impl Fn(&[Runtime], &mut SmallRng) -> Vec<Run> + 'a,
    ) -> Self {
        Round {
            measured: RefCell::default(),
            runtimes: runtimes.to_vec(),
            measure: Box::new(measure),
            random: RefCell::new(SmallRng::seed_from_u64(1)),
        }
    }

    fn take(&self, index: usize) -> Run {
        let mut measured = self.measured.borrow_mut();
        if !measured.get(index).is_some_and(Option::is_some) {
            let all = (self.measure)(&self.runtimes, &mut self.random.borrow_mut());
            *measured = all.into_iter().map(Some).collect();
        }
        let of = measured.get_mut(index).and_then(Option::take);
        of.unwrap_or_else(|| Err("it was not measured".to_owned()))
    }

    fn contestants(self) -> Vec<Contestant<'a>> {
        let runtimes = self.runtimes.clone();
        let shared = std::rc::Rc::new(self);
        let contestant = |(index, runtime): (usize, Runtime)| {
            let shared = shared.clone();
            Contestant {
                name: runtime.name(),
                rival: index > 0,
                run: Box::new(move || shared.take(index)),
            }
        };
        runtimes.into_iter().enumerate().map(contestant).collect()
    }
}

const ALL: [Runtime; 5] = [
    Runtime::Oci("croft-oci"),
    Runtime::Oci("runc"),
    Runtime::Oci("crun"),
    Runtime::Lxc,
    Runtime::Nspawn,
];
/// Those that leave a container to itself.
const LASTING: [Runtime; 4] = [ALL[0], ALL[1], ALL[2], ALL[3]];

/// What is measured of containers.
pub fn cases<'a>() -> [Case<'a>; 3] {
    [runs(), execs(), many()]
}

fn runs<'a>() -> Case<'a> {
    Case {
        key: "container-run",
        title: "A container that runs true".to_owned(),
        about: "The same root with busybox, six namespaces, limits of memory, processes and \
                processor time, a list of devices, a filter of system calls and 14 capabilities \
                for each; systemd-nspawn has its own. 40 times in a shuffled order, then memory once.",
        figures: vec![
            figure("median", "ms", Some(Target::Share(2, 0.6))),
            figure("90 % of runs within", "ms", None),
            // 3.4 MB.
            figure("memory at its peak", "MiB", Some(Target::Value(3.24))),
        ],
        contestants: Round::new(&ALL, |all, random| {
            with_bundle(all, |bundle| {
                let timed = shuffled(all, random, |runtime, turn| {
                    silent(&mut bundle.run(runtime, &format!("croft-bench-{turn}")))
                });
                let with_memory = |(runtime, times): (&Runtime, Result<Vec<f64>, String>)| {
                    let mut figures = of(times?);
                    figures.push(peak(&bundle.run(*runtime, "croft-bench-peak"))?);
                    Ok(figures)
                };
                all.iter().zip(timed).map(with_memory).collect()
            })
        })
        .contestants(),
        layout: Layout::Contestants,
        place: Place::Mounts,
    }
}

fn execs<'a>() -> Case<'a> {
    Case {
        key: "container-exec",
        title: "true in a container that is there".to_owned(),
        about: "The same containers; 40 times in a shuffled order.",
        figures: vec![
            figure("median", "ms", Some(Target::Share(1, 0.5))),
            figure("90 % of runs within", "ms", None),
        ],
        contestants: Round::new(&LASTING, |all, random| {
            with_bundle(all, |bundle| {
                let name = "croft-bench-exec";
                let started: Vec<Result<f64, String>> = all
                    .iter()
                    .map(|runtime| silent(&mut bundle.start(*runtime, name)))
                    .collect();
                let timed = shuffled(all, random, |runtime, _| {
                    silent(&mut bundle.exec(runtime, name))
                });
                for runtime in all {
                    // One that was not started is not there.
                    let _ = silent(&mut bundle.delete(*runtime, name));
                }
                let both = started.into_iter().zip(timed);
                both.map(|(started, times)| started.and(times).map(of))
                    .collect()
            })
        })
        .contestants(),
        layout: Layout::Contestants,
        place: Place::Mounts,
    }
}

fn many<'a>() -> Case<'a> {
    Case {
        key: "container-many",
        title: "A hundred containers that sleep".to_owned(),
        about: "The same containers, started one after the other, and then deleted.",
        figures: vec![
            figure("100 started", "s", Some(Target::Share(3, 1.0))),
            figure("100 deleted", "s", Some(Target::Share(3, 1.0))),
        ],
        contestants: Round::new(&LASTING, |all, random| {
            with_bundle(all, |bundle| {
                let mut order: Vec<usize> = (0..all.len()).collect();
                order.shuffle(random);
                let mut results: Vec<Run> = all.iter().map(|_| Ok(Vec::new())).collect();
                for index in order {
                    if let (Some(runtime), Some(result)) = (all.get(index), results.get_mut(index))
                    {
                        *result = hundred(bundle, *runtime);
                    }
                }
                results
            })
        })
        .contestants(),
        layout: Layout::Contestants,
        place: Place::Mounts,
    }
}

fn hundred(bundle: &Bundle, runtime: Runtime) -> Run {
    let names: Vec<String> = (0..MANY)
        .map(|number| format!("croft-bench-{number}"))
        .collect();
    let mut started = Ok(0.0);
    for name in &names {
        match (&mut started, silent(&mut bundle.start(runtime, name))) {
            (Ok(sum), Ok(time)) => *sum += time,
            (Ok(_), Err(problem)) => started = Err(problem),
            (Err(_), _) => break,
        }
    }
    let mut deleted = Ok(0.0);
    for name in &names {
        match (&mut deleted, silent(&mut bundle.delete(runtime, name))) {
            (Ok(sum), Ok(time)) => *sum += time,
            (Ok(_), Err(problem)) => deleted = Err(problem),
            // The others are deleted all the same.
            (Err(_), _) => {}
        }
    }
    Ok(vec![started? / 1000.0, deleted? / 1000.0])
}

/// Prepares a bundle; the figures of all, or the same problem for all.
fn with_bundle(all: &[Runtime], measure: impl FnOnce(&Bundle) -> Vec<Run>) -> Vec<Run> {
    match Bundle::new() {
        Ok(bundle) => measure(&bundle),
        Err(problem) => all.iter().map(|_| Err(problem.clone())).collect(),
    }
}

/// Has each do it so many times, all of them mixed; the times of each.
fn shuffled(
    all: &[Runtime],
    random: &mut SmallRng,
    act: impl Fn(Runtime, usize) -> Result<f64, String>,
) -> Vec<Result<Vec<f64>, String>> {
    let mut turns: Vec<usize> = (0..all.len() * TIMES)
        .map(|turn| turn % all.len())
        .collect();
    turns.shuffle(random);
    let mut results: Vec<Result<Vec<f64>, String>> = all.iter().map(|_| Ok(Vec::new())).collect();
    for (turn, index) in turns.into_iter().enumerate() {
        let (Some(runtime), Some(result)) = (all.get(index), results.get_mut(index)) else {
            continue;
        };
        if let Ok(times) = result {
            match act(*runtime, turn) {
                Ok(time) => times.push(time),
                Err(problem) => *result = Err(problem),
            }
        }
    }
    results
}

/// The median, and what nine of ten do not exceed.
fn of(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    vec![at(50), at(90)]
}

fn figure(name: &str, unit: &'static str, target: Option<Target>) -> Figure {
    Figure {
        name: name.to_owned(),
        unit,
        digits: 2,
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_share_of_a_round() {
        let round = Round::new(&ALL[..2], |all, random| {
            let order = RefCell::new(Vec::new());
            let results = shuffled(all, random, |runtime, _| {
                order.borrow_mut().push(runtime);
                Ok(if runtime == ALL[0] { 1.0 } else { 2.0 })
            });
            let order = order.into_inner();
            assert_eq!(order.len(), 2 * TIMES);
            assert!(
                order.chunks(2).any(|pair| pair[0] == pair[1]),
                "not shuffled"
            );
            results.into_iter().map(|times| times.map(of)).collect()
        });
        let contestants = round.contestants();
        for _ in 0..2 {
            assert_eq!((contestants[0].run)().unwrap(), [1.0, 1.0]);
            assert_eq!((contestants[1].run)().unwrap(), [2.0, 2.0]);
        }
    }

    #[test]
    fn medians_and_tails() {
        let times: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!(of(times), [6.0, 10.0]);
    }
}
