//! Tests in network namespaces of their own.

use std::env;
use std::path::Path;
use std::process::Command;

/// Says to the test that it is in the namespace.
const INSIDE: &str = "CROFT_TEST_NAMESPACE";

/// Runs the test `name` once more, in a network namespace; true in there.
///
/// # Panics
/// When it fails there.
pub fn inside(name: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let tried = Command::new("unshare").args(["--net", "true"]).output();
    let tap = Path::new("/dev/net/tun").exists();
    if !tap || !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: no network namespace or no taps; run as root, with /dev/net/tun");
        return false;
    }
    let this = env::current_exe().expect("this program");
    let mut command = Command::new("unshare");
    command.arg("--net").arg(this);
    command.args(["--exact", name, "--nocapture"]);
    let ran = command.env(INSIDE, "1").status().expect("unshare");
    assert!(ran.success(), "{name} failed in its namespace");
    false
}

/// `ip` with these words: what it printed.
///
/// # Panics
/// When it fails.
pub fn ip(words: &str) -> String {
    let ran = Command::new("ip").args(words.split(' ')).output();
    let ran = ran.expect("ip");
    assert!(ran.status.success(), "ip {words}: {ran:?}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}
