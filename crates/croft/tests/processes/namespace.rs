//! Network namespaces for tests, with nobody else in them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::images::busybox;

const INSIDE: &str = "CROFT_TEST_INSIDE";

/// Whether this is the run of `test` in namespaces of its own: of network,
/// mounts and processes, which end with it, whatever it has started. If not,
/// the test runs itself once more, there, and the caller returns.
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
        .env("PATH", path())
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} failed in its namespaces");
    false
}

/// Programs of root's are not in everybody's path.
fn path() -> String {
    let given = env::var("PATH").unwrap_or_default();
    format!("{given}:/usr/sbin:/sbin")
}

fn reason() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("managed networks are root's");
    }
    let works = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output = command.args(arguments).env("PATH", path()).output();
        output.is_ok_and(|output| output.status.success())
    };
    let namespaces = ["--net", "--mount", "--pid", "--fork", "--mount-proc"];
    if !works("unshare", &[&namespaces[..], &["true"]].concat()) {
        return Some("this host makes no network namespaces");
    }
    for program in ["nft", "dnsmasq"] {
        if !works(program, &["--version"]) {
            return Some("nft or dnsmasq is missing");
        }
    }
    if !works("ip", &["-V"]) || !PathBuf::from("/dev/net/tun").exists() {
        return Some("ip or /dev/net/tun is missing");
    }
    busybox()
        .is_none()
        .then_some("busybox is missing; scripts/fetch-busybox has one")
}
