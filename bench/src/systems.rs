//! Croft and its peers, started on the same files.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft_tests::files::program;
use croft_tests::{Output, processes};
use rustix::process::{Pid, Signal, kill_process};

/// Guest memory of all contestants, in MiB.
pub const MEMORY_MIB: u64 = 512;

/// What a guest boots from.
#[derive(Clone, Debug)]
pub struct Boot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub append: String,
    /// Virtio disks, which the guest may write to.
    pub disks: Vec<PathBuf>,
    /// Where its virtio NIC leads, if it has one.
    pub net: Option<Net>,
}

/// Where a NIC leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// To the host's sockets; this port of the loopback interface to the
    /// guest's port 80.
    User(u16),
    /// To this bridge. QEMU has a tap of the name with `-tap` behind on it.
    Bridge(&'static str),
    /// The same, and nobody looks at what it sends: as QEMU's tap.
    Open(&'static str),
}

/// What runs a guest.
#[derive(Clone, Debug)]
pub enum System {
    /// Croft's software engine with this CPU model and further arguments.
    Software(&'static str, Vec<String>),
    /// QEMU's translator, with these words on the kernel's command line.
    Tcg(&'static str),
    /// Croft on KVM.
    Kvm,
    /// QEMU on KVM, this machine of it.
    QemuKvm(&'static str),
}

impl System {
    /// For tables.
    pub fn name(&self) -> String {
        match self {
            System::Software(model, more) => {
                let arguments = [&["--cpu", model].map(str::to_owned), more.as_slice()].concat();
                format!("Croft, software engine, `{}`", arguments.join(" "))
            }
            System::Tcg("") => "QEMU, `-accel tcg -cpu max`".to_owned(),
            System::Tcg(words) => format!("QEMU, the same, kernel with `{words}`"),
            System::Kvm => "Croft, `--engine kvm`".to_owned(),
            System::QemuKvm(machine) => format!("QEMU, `-accel kvm -nodefaults -M {machine}`"),
        }
    }

    /// Whether it is not Croft.
    pub fn is_rival(&self) -> bool {
        matches!(self, System::Tcg(_) | System::QemuKvm(_))
    }

    /// Starts a guest.
    pub fn start(&self, boot: &Boot) -> Result<Guest, String> {
        let mut command = match self {
            System::Software(model, more) => {
                let mut command = croft(boot);
                command.args(["--engine", "software", "--cpu", model]);
                command.args(more);
                command
            }
            System::Kvm => {
                let mut command = croft(boot);
                command.args(["--engine", "kvm"]);
                command
            }
            System::Tcg(words) => {
                let mut command = qemu(boot, words);
                command.args(["-accel", "tcg", "-cpu", "max", "-nographic"]);
                command
            }
            System::QemuKvm(machine) => {
                let mut command = qemu(boot, "");
                command.args(["-accel", "kvm", "-cpu", "host", "-M", machine]);
                // As little as it can be asked for.
                command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-serial", "stdio"]);
                command
            }
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        Ok(Guest {
            started,
            child,
            output: Output::new("the console", stdout),
            errors: Output::new("standard error", stderr),
        })
    }
}

fn croft(boot: &Boot) -> Command {
    let mut command = Command::new(program("croft"));
    command.args(["run", "--no-reboot"]);
    command.args(["--memory", &format!("{MEMORY_MIB}M")]);
    command.arg("--kernel").arg(&boot.kernel);
    command.arg("--initrd").arg(&boot.initrd);
    command.args(["--append", &boot.append]);
    for disk in &boot.disks {
        command.arg("--disk").arg(disk);
    }
    match boot.net {
        Some(Net::User(port)) => {
            command.args(["--net", "user", "--publish"]);
            command.arg(format!("127.0.0.1:{port}:80"));
        }
        Some(Net::Bridge(bridge)) => {
            command.arg("--net").arg(format!("bridge={bridge}"));
        }
        Some(Net::Open(bridge)) => {
            command
                .arg("--net")
                .arg(format!("bridge={bridge},spoofing"));
        }
        None => {}
    }
    command
}

/// With `words` behind the kernel's command line.
fn qemu(boot: &Boot, words: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-no-reboot", "-m", &format!("{MEMORY_MIB}M")]);
    command.arg("-kernel").arg(&boot.kernel);
    command.arg("-initrd").arg(&boot.initrd);
    command.args(["-append", format!("{} {words}", boot.append).trim_end()]);
    for (index, disk) in boot.disks.iter().enumerate() {
        let disk = disk.display();
        let drive = format!("file={disk},if=none,id=disk{index},format=raw");
        command.args(["-drive", &drive]);
        command.args(["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    let netdev = boot.net.map(|net| match net {
        Net::User(port) => format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:80"),
        Net::Bridge(bridge) | Net::Open(bridge) => {
            format!("tap,id=net0,ifname={bridge}-tap,script=no,downscript=no")
        }
    });
    match netdev {
        Some(netdev) => {
            command.args(["-netdev", &netdev]);
            command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
        }
        None => {
            command.args(["-nic", "none"]);
        }
    }
    command
}

/// A running guest; killed when dropped.
pub struct Guest {
    started: Instant,
    child: Child,
    output: Output,
    errors: Output,
}

impl Guest {
    /// How long it took from the start of the process until `text` was
    /// printed, or why it was not, within `patience`.
    pub fn time_to(&mut self, text: &str, patience: Duration) -> Result<Duration, String> {
        match self.output.find(text, patience) {
            Ok(()) => Ok(self.started.elapsed()),
            Err(problem) => Err(format!("{problem}\n{}", self.errors.text())),
        }
    }

    /// Everything on its console so far.
    pub fn text(&mut self) -> String {
        self.output.text()
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
