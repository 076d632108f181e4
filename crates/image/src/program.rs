//! Programs of the distribution that images are made with.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Error;

/// Directories of system programs, which not every user has in the path.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Last words of a program that are repeated when it fails.
const LINES: usize = 12;
/// Longest line of a program that is looked at, in bytes.
const LINE: u64 = 4096;

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| {
            fs::metadata(path)
                .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
        })
}

/// Where a program is, or which package has it.
pub fn need(name: &str, package: &str) -> Result<PathBuf, Error> {
    find(name).ok_or_else(|| Error::Tool {
        program: name.to_owned(),
        why: format!("it is not installed; as root: apt-get install {package}"),
    })
}

/// A command that says everything in plain English, with nothing to read, and
/// that dies with Croft: half of an image is no use to anybody, and its files
/// are swept. `setpriv` sees to that where it is; it is part of util-linux.
pub fn command(program: &OsStr) -> Command {
    let mut command = match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Runs a command; `line` gets what it says on standard error, line by line. A
/// failure repeats its last words.
pub fn run(name: &str, mut command: Command, mut line: impl FnMut(&str)) -> Result<(), Error> {
    let failed = |why: String| Error::Tool {
        program: name.to_owned(),
        why,
    };
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut last: Vec<String> = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut reader = BufReader::new(stderr);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match reader.by_ref().take(LINE).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&bytes);
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            let text = text.trim();
            if !text.is_empty() {
                line(text);
                if last.len() >= LINES {
                    last.remove(0);
                }
                last.push(text.to_owned());
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| failed(format!("cannot be waited for: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let said = if last.is_empty() {
        "it said nothing".to_owned()
    } else {
        last.join("\n  ")
    };
    Err(failed(format!("failed ({status}):\n  {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_repeat_the_last_words() {
        let mut shell = command(OsStr::new("sh"));
        shell.args(["-c", "seq 100 >&2; printf 'x%.0s' $(seq 9000) >&2; exit 3"]);
        let mut lines = 0;
        let error = run("sh", shell, |_| lines += 1).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("\n  100\n"),
            "{error}"
        );
        assert!(lines > 100 && error.len() < 16000);
        let error = need("no-such-program", "some-package")
            .unwrap_err()
            .to_string();
        assert!(error.contains("apt-get install some-package"), "{error}");
    }

    #[test]
    fn success_is_quiet() {
        let mut heard = Vec::new();
        let mut shell = command(OsStr::new("sh"));
        shell.args(["-c", "echo out; echo err >&2"]);
        run("sh", shell, |line| heard.push(line.to_owned())).unwrap();
        assert_eq!(heard, ["err"]);
    }
}
