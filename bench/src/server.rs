//! A whole virtual server: an instance of an image, with its agent.

use std::cell::Cell;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::files::program;
use croft_tests::processes::{cpu_time, resident, resident_except};
use croft_tests::{Output, PATIENCE};
use rustix::process::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};
use crate::files::{Files, cache};
use crate::systems::{Boot, MEMORY_MIB, Net, System};

/// What the instances are of.
const IMAGE: &str = "debian:12";

/// What a login prompt ends with.
const LOGIN: &str = "login: ";

/// Where the instances of the checks of a whole server are too, in the cache:
/// the image is built once.
const DATA: &str = "server";

/// The engine that needs nothing of the host.
const SOFTWARE: &str = "software";

/// How many machines are idle at once, and the memory of each.
const IDLE: u32 = 20;
const IDLE_MIB: u64 = 256;

/// How long they are left alone, and watched. The guest's kernel reports
/// pages that are free two seconds later (mm/page_reporting.c); timers of
/// systemd's have their first run in the first minute.
const SETTLE: Duration = Duration::from_secs(90);
const WATCHED: Duration = Duration::from_secs(30);

/// Port that leads to QEMU's guest; nobody asks there.
const PORT: u16 = 8099;

/// QEMU's fastest machine on KVM, with PCI for its disk.
const MICROVM: System = System::QemuKvm("microvm,rtc=on,pcie=on");

/// How long a machine may take until somebody can log in. A nested one is on
/// an emulated processor.
const BOOT: Duration = PATIENCE.saturating_mul(4);

/// How long a guest's memory may take to be the host's again.
const GIVING_BACK: Duration = Duration::from_secs(10);

/// All cases of a whole server.
pub fn cases(files: &Files) -> Vec<Case<'_>> {
    vec![ready(files), giving_back(files), idle(files)]
}

/// How long a server takes until somebody can log in.
fn ready(files: &Files) -> Case<'_> {
    Case {
        key: "server",
        title: "A server, from `croft run debian:12` to its login prompt".to_owned(),
        about: "The image that `croft image build debian:12` makes, its first boot with a new \
                identity and ssh host keys. Croft makes an instance, its disk and its seed, and \
                reads kernel and initial RAM disk from that disk; QEMU gets them as files, and a \
                raw copy of the image, made before the clock starts. Both have a NIC to the \
                host's sockets. The time is that to the \
                login prompt on the serial console, and, in the second row, to the return of \
                `croft wait`, when the agent in the guest says that it can be used.",
        figures: vec![Figure {
            name: String::new(),
            unit: "s",
            digits: 2,
            target: Some(Target::Share(2, 0.45)),
        }],
        contestants: vec![
            Contestant {
                name: "Croft, software engine, to the login prompt".to_owned(),
                rival: false,
                run: Box::new(|| to_login(files, SOFTWARE)),
            },
            Contestant {
                name: "Croft, software engine, to `croft wait`".to_owned(),
                rival: false,
                run: Box::new(|| to_ready(files)),
            },
            Contestant {
                name: "QEMU, `-accel tcg -cpu max`, to the login prompt".to_owned(),
                rival: true,
                run: Box::new(|| qemu_to_login(System::Tcg(""))),
            },
        ],
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

/// The same on KVM.
pub fn on_kvm(files: &Files) -> Case<'_> {
    Case {
        key: "server-kvm",
        title: "On KVM, a server, from `croft run debian:12` to its login prompt".to_owned(),
        about: "As on the software engine; QEMU's fastest machine, with its disk on PCI.",
        figures: vec![Figure {
            name: String::new(),
            unit: "s",
            digits: 2,
            target: Some(Target::Share(1, 1.0)),
        }],
        contestants: vec![
            Contestant {
                name: System::Kvm.name(),
                rival: false,
                run: Box::new(|| to_login(files, "kvm")),
            },
            Contestant {
                name: MICROVM.name(),
                rival: true,
                run: Box::new(|| qemu_to_login(MICROVM)),
            },
        ],
        layout: Layout::Contestants,
        place: Place::Kvm,
    }
}

/// How much of what a guest frees the host has again.
fn giving_back(files: &Files) -> Case<'_> {
    Case {
        key: "memory",
        title: "Memory that a guest has freed".to_owned(),
        about: "A program in the guest writes to 512 MiB and ends. What is resident of \
                `croft-vmm` just before its end, and what is still resident of that ten seconds \
                later. The instance has 1 GiB.",
        figures: vec![
            Figure {
                name: "kept of 512 MiB".to_owned(),
                unit: "MiB",
                digits: 0,
                target: Some(Target::Value(112.0)),
            },
            Figure {
                name: "resident before".to_owned(),
                unit: "MiB",
                digits: 0,
                target: None,
            },
        ],
        contestants: vec![Contestant {
            name: "Croft, software engine".to_owned(),
            rival: false,
            run: Box::new(|| freed(files)),
        }],
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

/// What many servers cost that do nothing.
fn idle(files: &Files) -> Case<'_> {
    // It takes minutes, and is a mean of many already.
    let done = Cell::new(None);
    Case {
        key: "many",
        title: format!("{IDLE} idle servers"),
        about: "Instances of debian:12 with 256 MiB each, a minute and a half after the last one \
                was ready, for 30 seconds. All of their processes are counted: processor time \
                together, memory as a mean, guest RAM included, shared pages by their share \
                (PSS). Done once.",
        figures: vec![
            Figure {
                name: "processor, all together".to_owned(),
                unit: "% of a core",
                digits: 1,
                target: Some(Target::Value(40.0)),
            },
            Figure {
                name: "memory of each".to_owned(),
                unit: "MiB",
                digits: 1,
                target: Some(Target::Value(150.0)),
            },
        ],
        contestants: vec![Contestant {
            name: "Croft, software engine".to_owned(),
            rival: false,
            run: Box::new(move || {
                if done.get().is_none() {
                    done.set(Some(many(files)?));
                }
                Ok(done.get().into_iter().flatten().collect())
            }),
        }],
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

/// An instance of [`IMAGE`], deleted when dropped.
struct Instance {
    name: String,
    started: Instant,
}

impl Instance {
    /// Makes it and starts it.
    fn run(files: &Files, engine: &str, number: u32, mebibytes: u64) -> Result<Instance, String> {
        let instance = Instance {
            name: format!("bench-{}-{number}", std::process::id()),
            started: Instant::now(),
        };
        let memory = format!("{mebibytes}M");
        let mut words = vec!["run", "--detach", "--engine", engine, "--memory"];
        words.extend([memory.as_str(), "--name", &instance.name]);
        if engine == SOFTWARE {
            words.extend(files.croft.iter().map(String::as_str));
        }
        words.push(IMAGE);
        croft(&words)?;
        Ok(instance)
    }

    /// Waits until its agent says that it is ready.
    fn wait(&self) -> Result<Duration, String> {
        croft(&["wait", &self.name])?;
        Ok(self.started.elapsed())
    }

    /// Waits for the login prompt.
    fn login(&self) -> Result<Duration, String> {
        let mut logs = command(&["logs", "--follow", &self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("croft logs: {error}"))?;
        let output = logs.stdout.take().ok_or("no standard output")?;
        let found = Output::new("the console", output).find(LOGIN, BOOT);
        let time = self.started.elapsed();
        // It follows until the instance ends.
        let _ = logs.kill();
        let _ = logs.wait();
        found.map(|()| time)
    }

    /// Its monitor and its vmm.
    fn processes(&self) -> Result<[Pid; 2], String> {
        let text = croft(&["show", "--output", "json", &self.name])?;
        let known: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let pid = |who: &str| {
            let pid = known.pointer(&format!("/status/{who}/pid"));
            pid.and_then(Value::as_i64)
                .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
                .ok_or_else(|| format!("no process id of its {who} in {text}"))
        };
        Ok([pid("monitor")?, pid("payload")?])
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = croft(&["delete", "--force", &self.name]);
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(program("croft"));
    command
        .args(words)
        .env("CROFT_DATA_DIR", cache().join(DATA));
    command
}

fn croft(words: &[&str]) -> Result<String, String> {
    let output = command(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("croft: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("croft {}: {errors}", words.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn to_login(files: &Files, engine: &str) -> Run {
    let instance = Instance::run(files, engine, 0, MEMORY_MIB)?;
    Ok(vec![instance.login()?.as_secs_f64()])
}

fn to_ready(files: &Files) -> Run {
    let instance = Instance::run(files, SOFTWARE, 0, MEMORY_MIB)?;
    Ok(vec![instance.wait()?.as_secs_f64()])
}

fn qemu_to_login(system: System) -> Run {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut boot = extracted(&directory)?;
    if matches!(system, System::Tcg(_)) {
        // As Croft's has, where there is passt.
        boot.net = Some(Net::User(PORT));
    }
    let mut guest = system.start(&boot)?;
    Ok(vec![guest.time_to(LOGIN, BOOT)?.as_secs_f64()])
}

/// The image for QEMU: a raw copy of its disk, and what is in its /boot.
fn extracted(directory: &TempDir) -> Result<Boot, String> {
    let place = |name: &str| directory.path().join(name);
    let disk = place("disk.img");
    croft(&["image", "export", "--format", "raw", IMAGE, text(&disk)?])?;
    let links = debugfs(&disk, "ls -p /boot")?;
    // Between slashes: inode, mode, owner, group, name, size.
    let newest = |prefix: &str| {
        let names = links.lines().filter_map(|line| line.split('/').nth(5));
        names
            .filter(|name| name.starts_with(prefix))
            .max()
            .ok_or_else(|| format!("no {prefix}* in the image's /boot"))
    };
    let take = |prefix: &str| {
        let path = place(prefix);
        let name = newest(prefix)?;
        debugfs(&disk, &format!("dump /boot/{name} {}", text(&path)?))?;
        Ok::<_, String>(path)
    };
    Ok(Boot {
        kernel: take("vmlinuz-")?,
        initrd: take("initrd.img-")?,
        append: "root=/dev/vda ro console=ttyS0".to_owned(),
        disks: vec![disk],
        net: None,
    })
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str()
        .ok_or_else(|| format!("{} is not UTF-8", path.display()))
}

fn debugfs(disk: &PathBuf, request: &str) -> Result<String, String> {
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("debugfs")
        .env("PATH", path)
        .args(["-R", request])
        .arg(disk)
        .output()
        .map_err(|error| format!("debugfs: {error}; it is in the package e2fsprogs"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn freed(files: &Files) -> Run {
    let instance = Instance::run(files, SOFTWARE, 0, 1024)?;
    instance.wait()?;
    let [_, vmm] = instance.processes()?;
    let mebibytes = || resident(vmm) as f64 / f64::from(1 << 20);
    let exec = |name: &str, command: &str| croft(&["exec", name, "--", "sh", "-c", command]);
    // What the boot has freed comes back first.
    thread::sleep(GIVING_BACK);
    let start = mebibytes();
    let worker = {
        let name = instance.name.clone();
        // tail keeps all of it until its input ends.
        let work = "head -c 512M /dev/zero | tail -c 512M >/dev/null";
        thread::spawn(move || exec(&name, work))
    };
    let mut most = start;
    while !worker.is_finished() {
        most = most.max(mebibytes());
        thread::sleep(Duration::from_millis(20));
    }
    worker.join().map_err(|_| "the thread panicked")??;
    thread::sleep(GIVING_BACK);
    if most - start < 500.0 {
        return Err(format!("the guest took {:.0} MiB, not 512", most - start));
    }
    // Of what was taken, what did not come back.
    Ok(vec![512.0 - (most - mebibytes()), most])
}

fn many(files: &Files) -> Result<[f64; 2], String> {
    let instances = (0..IDLE)
        .map(|number| Instance::run(files, SOFTWARE, number, IDLE_MIB))
        .collect::<Result<Vec<_>, _>>()?;
    let mut processes = Vec::new();
    for instance in &instances {
        instance.wait()?;
        processes.extend(instance.processes()?);
    }
    thread::sleep(SETTLE);
    let used = || processes.iter().map(|pid| cpu_time(*pid)).sum::<Duration>();
    let (start, before) = (Instant::now(), used());
    thread::sleep(WATCHED);
    let share = (used() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    let memory: u64 = processes.iter().map(|pid| resident_except(*pid, 0)).sum();
    let each = memory as f64 / f64::from(1 << 20) / f64::from(IDLE);
    Ok([share * 100.0, each])
}
