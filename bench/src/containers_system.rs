//! A container of a whole system: Debian's systemd as Croft's instance and as
//! LXC's container, of the same image and with ids of their own.

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use croft_tests::PATIENCE;
use croft_tests::files::program;
use serde_json::Value;
use tempfile::TempDir;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};
use crate::files::cache;

/// What both are of.
const IMAGE: &str = "debian:12";
/// Where the image is, in the cache: that of the checks of servers.
const DATA: &str = "server";
/// LXC's container.
const LXC: &str = "croft-bench";
/// How long it is left alone when it is up, before it is stopped.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two looks for the sign that it is up.
const LOOK: Duration = Duration::from_millis(1);

/// A unit behind multi-user.target, which says that this is reached.
const UNIT: &str = "[Unit]\nAfter=multi-user.target\n\n\
                    [Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo >/mark/up'\n";
/// What has it started.
const WANTS: &str = "[Unit]\nWants=bench.service\n";
/// Files of this directory, and where the systems have them.
const FILES: [(&str, &str); 3] = [
    ("mark", "/mark"),
    ("bench.service", "/etc/systemd/system/bench.service"),
    (
        "bench.conf",
        "/etc/systemd/system/multi-user.target.d/bench.conf",
    ),
];

/// Who runs it.
#[derive(Clone, Copy, Debug)]
enum Runtime {
    Croft,
    Lxc,
}

/// Both containers, made and stopped.
struct Systems {
    directory: TempDir,
    /// Croft's instance.
    name: String,
}

/// The case.
pub fn case<'a>() -> Case<'a> {
    let systems: Rc<OnceCell<Result<Systems, String>>> = Rc::default();
    let contestant = |name: &str, runtime: Runtime| {
        let systems = systems.clone();
        Contestant {
            name: name.to_owned(),
            rival: matches!(runtime, Runtime::Lxc),
            run: Box::new(move || match systems.get_or_init(Systems::new) {
                Ok(systems) => systems.cycle(runtime),
                Err(problem) => Err(problem.clone()),
            }),
        }
    };
    let figure = |name: &str| Figure {
        name: name.to_owned(),
        unit: "ms",
        digits: 0,
        target: Some(Target::Share(1, 1.0)),
    };
    Case {
        key: "container-system",
        title: "A container of a whole system".to_owned(),
        about: "systemd of debian:12 with ids and namespaces of its own and without a network, \
                from the start of `croft start`, or `lxc-start`, to a unit behind \
                multi-user.target; a second later `croft stop`, or `lxc-stop`, to its return. \
                Croft's root has layers, LXC's is a copy of the same. Both have been up before.",
        figures: vec![figure("up"), figure("stopped")],
        contestants: vec![
            contestant("Croft", Runtime::Croft),
            contestant("lxc", Runtime::Lxc),
        ],
        layout: Layout::Contestants,
        place: Place::Here,
    }
}

impl Systems {
    fn new() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the files of a system: {error}");
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path();
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
        };
        // Their ids are nobody here.
        open(path, 0o755)?;
        fs::create_dir(path.join("mark")).map_err(failed)?;
        open(&path.join("mark"), 0o777)?;
        fs::write(path.join("bench.service"), UNIT).map_err(failed)?;
        fs::write(path.join("bench.conf"), WANTS).map_err(failed)?;
        fs::create_dir(path.join("lxc")).map_err(failed)?;
        let name = format!("bench-{}-system", std::process::id());
        let mut create = croft(&["create", "--container", "--net", "none", "--name", &name]);
        for (file, place) in FILES {
            create
                .arg("--volume")
                .arg(format!("{}:{place}", path.join(file).display()));
        }
        said(create.arg(IMAGE))?;
        let systems = Systems { directory, name };
        systems.copy()?;
        // The first start writes what later ones find.
        for runtime in [Runtime::Croft, Runtime::Lxc] {
            systems.cycle(runtime)?;
        }
        Ok(systems)
    }

    /// Makes LXC's of what Croft's is made of.
    fn copy(&self) -> Result<(), String> {
        let text = said(&mut croft(&["show", "--output", "json", &self.name]))?;
        let known: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let container = &known["config"]["container"];
        let (Some([Value::String(layer)]), Value::Object(ids)) = (
            container["lowers"].as_array().map(Vec::as_slice),
            &container["ids"],
        ) else {
            return Err(format!("no single layer, or no ids, in {text}"));
        };
        let path = self.directory.path();
        said(
            Command::new("cp")
                .args(["-a", layer])
                .arg(path.join("root")),
        )?;
        let mut config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf\n\
             lxc.include = /usr/share/lxc/config/userns.conf\n\
             lxc.uts.name = bench\n\
             lxc.net.0.type = empty\n\
             lxc.apparmor.profile = unconfined\n\
             lxc.rootfs.path = dir:{}\n\
             lxc.rootfs.options = idmap=container\n",
            path.join("root").display()
        );
        for kind in ["u", "g"] {
            config += &format!("lxc.idmap = {kind} 0 {} {}\n", ids["first"], ids["count"]);
        }
        for (file, place) in FILES {
            let (file, kind) = match path.join(file) {
                file if file.is_dir() => (file, "dir"),
                file => (file, "file"),
            };
            config += &format!(
                "lxc.mount.entry = {} {} none bind,create={kind} 0 0\n",
                file.display(),
                place.trim_start_matches('/')
            );
        }
        fs::write(path.join("lxc.conf"), config).map_err(|error| format!("lxc.conf: {error}"))
    }

    fn command(&self, runtime: Runtime, stop: bool) -> Command {
        let path = self.directory.path();
        match runtime {
            Runtime::Croft => croft(&[if stop { "stop" } else { "start" }, &self.name]),
            Runtime::Lxc => {
                let name = if stop { "lxc-stop" } else { "lxc-start" };
                let mut command = Command::new(Path::new("/usr/bin").join(name));
                // It maps ids by itself where it finds no newuidmap, which
                // would ask /etc/subuid.
                command.env("PATH", "/");
                command.arg("-P").arg(path.join("lxc")).args(["-n", LXC]);
                if !stop {
                    command.arg("-f").arg(path.join("lxc.conf"));
                }
                command
            }
        }
    }

    /// Starts and stops one; how long it took to be up, and to be gone.
    fn cycle(&self, runtime: Runtime) -> Run {
        let mark = self.directory.path().join("mark/up");
        // There is none before the first.
        let _ = fs::remove_file(&mark);
        let before = Instant::now();
        said(&mut self.command(runtime, false))?;
        while !mark.exists() {
            if before.elapsed() > PATIENCE {
                return Err(format!("{runtime:?}: it does not come up"));
            }
            thread::sleep(LOOK);
        }
        let up = before.elapsed();
        thread::sleep(SETTLE);
        let before = Instant::now();
        said(&mut self.command(runtime, true))?;
        let stopped = before.elapsed();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        Ok(vec![milliseconds(up), milliseconds(stopped)])
    }
}

impl Drop for Systems {
    fn drop(&mut self) {
        // One that runs still is in nobody's way, but for these.
        let _ = said(self.command(Runtime::Lxc, true).arg("-k"));
        let _ = said(&mut croft(&["delete", "--force", &self.name]));
    }
}

fn croft(words: &[&str]) -> Command {
    let mut command = Command::new(program("croft"));
    command
        .args(words)
        .env("CROFT_DATA_DIR", cache().join(DATA));
    command
}

/// What a command prints that ends well. What it leaves behind holds its
/// output.
fn said(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let failed = |error: std::io::Error| format!("{name}: {error}");
    let output = tempfile::tempfile().map_err(failed)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?)
        .status()
        .map_err(failed)?;
    let text = text(output).map_err(failed)?;
    if status.success() {
        Ok(text)
    } else {
        Err(format!("{name}: {status}: {}", text.trim()))
    }
}

fn text(mut file: fs::File) -> std::io::Result<String> {
    use std::io::{Read, Seek};
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}
