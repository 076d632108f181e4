//! Ending the guest in order.

use std::path::Path;
use std::process::{Command, Stdio};

use croft_api::agent::Shutdown;

use super::task::Refusal;

/// There where systemd is the first process (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Begins to end or restart the guest.
pub fn shutdown(how: Shutdown) -> Result<(), Refusal> {
    let word = match how {
        Shutdown::Poweroff => "poweroff",
        Shutdown::Reboot => "reboot",
    };
    let mut command = if Path::new(SYSTEMD).is_dir() {
        let mut command = Command::new("systemctl");
        command.args(["--no-block", word]);
        command
    } else {
        Command::new(word)
    };
    let ended = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Refusal::other(format!("{word} in the guest: {status}"))),
        Err(error) => Err(Refusal::other(format!("{word} in the guest: {error}"))),
    }
}
