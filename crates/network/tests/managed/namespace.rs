//! A network namespace for each test, with nobody else in it.
//!
//! A test runs itself once more, under `unshare`: in namespaces of network,
//! mounts and processes that end with it, whatever it has started.

use std::env;
use std::fs::File;
use std::process::{Command, Output};
use std::thread;

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INSIDE: &str = "CROFT_TEST_INSIDE";

/// Whether this is the run in namespaces. If not, that one is made, and its
/// end waited for; then the caller returns.
pub fn inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Some(reason) = reason() {
        println!("skipped: {reason}");
        return false;
    }
    let script = "mount -t tmpfs none /run && ip link set lo up && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-c", script, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} failed in its namespaces");
    false
}

fn reason() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("managed networks are root's");
    }
    let works = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(
        "unshare",
        &[
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "true",
        ],
    ) {
        return Some("this host makes no network namespaces");
    }
    if !works("nft", &["--version"]) || !works("dnsmasq", &["--version"]) {
        return Some("nft or dnsmasq is missing");
    }
    if File::open("/dev/net/tun").is_err() || !works("ip", &["-V"]) {
        return Some("/dev/net/tun or ip is missing");
    }
    if !works(&super::guest::busybox(), &["true"]) {
        return Some("busybox is missing; scripts/fetch-busybox has one");
    }
    None
}

/// Runs a command of the host's; what it prints.
pub fn host(command: &str) -> String {
    let output = shell(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{error}");
    text
}

/// The processes of this program that have not ended.
pub fn processes(program: &str) -> Vec<String> {
    let found = host(&format!(
        "for p in /proc/[0-9]*; do grep -qs '^{program}' $p/comm \
         && ! grep -qs 'State:.Z' $p/status && basename $p; done; true"
    ));
    found.lines().map(str::to_owned).collect()
}

fn shell(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

/// Makes a network namespace of this name.
pub fn add(name: &str) {
    host(&format!(
        "ip netns add {name} && ip -n {name} link set lo up"
    ));
}

/// Runs a command in the namespace of this name.
pub fn run(name: &str, command: &str) -> String {
    host(&format!("ip netns exec {name} {command}"))
}

/// Does something in the namespace of this name.
pub fn within<T: Send + 'static>(name: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    let thread = thread::spawn(move || {
        let kind = LinkNameSpaceType::Network;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind)).unwrap();
        act()
    });
    thread.join().unwrap()
}
