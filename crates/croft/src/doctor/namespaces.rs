//! Namespaces: whether this user can make them.

use std::fs;
use std::process::{Command, Stdio};

use super::finding::{Finding, Part};

const PART: Part = Part::Namespaces;

/// Tries each kind in a process that ends at once. Settings are many
/// (sysctls, AppArmor, seccomp filters of container runtimes): only a try
/// tells.
pub fn findings() -> Vec<Finding> {
    let user = attempt(&["--user", "--map-root-user"]);
    let mut found = vec![match &user {
        Ok(()) => Finding::ok(PART, "user", "this user can make them"),
        Err(error) => Finding::missing(PART, "user", error.clone(), user_remedy(setting)),
    }];
    for (name, option) in [("mount", "--mount"), ("network", "--net"), ("pid", "--pid")] {
        let inside = attempt(&["--user", "--map-root-user", option, "--fork"]);
        let finding = match inside.or_else(|_| attempt(&[option, "--fork"])) {
            Ok(()) => Finding::ok(PART, name, "this user can make them"),
            Err(error) => Finding::missing(
                PART,
                name,
                error,
                "run as root, or allow user namespaces (above)",
            ),
        };
        found.push(finding);
    }
    found
}

fn attempt(options: &[&str]) -> Result<(), String> {
    let output = Command::new("unshare")
        .args(options)
        .arg("true")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot try: unshare (util-linux): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("unshare failed").to_owned())
}

fn setting(path: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}

/// What to do where user namespaces are refused, from the kernel's settings.
fn user_remedy(setting: impl Fn(&str) -> Option<u64>) -> String {
    if setting("user/max_user_namespaces") == Some(0) {
        "as root: sysctl -w user.max_user_namespaces=15000".to_owned()
    } else if setting("kernel/unprivileged_userns_clone") == Some(0) {
        "as root: sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor restricts them; as root: \
         sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile for croft"
            .to_owned()
    } else {
        "a container runtime's or security module's policy refuses; allow them there".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_follow_the_settings() {
        let with =
            |name: &'static str, value| user_remedy(move |asked| (asked == name).then_some(value));
        assert!(with("user/max_user_namespaces", 0).contains("max_user_namespaces=15000"));
        assert!(with("kernel/unprivileged_userns_clone", 0).contains("userns_clone=1"));
        let apparmor = "kernel/apparmor_restrict_unprivileged_userns";
        assert!(with(apparmor, 1).contains("AppArmor"));
        assert!(with(apparmor, 0).contains("policy"));
    }
}
