//! Programs of the host's that a container's description names (runtime-spec,
//! `config.md`, POSIX-platform Hooks).

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::At;
use crate::{Error, Step};

/// What a hook is told, on its standard input (runtime-spec, `runtime.md`,
/// State).
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The version of the description.
    pub version: &'a str,
    /// The container's name.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'a str,
    /// Its init, while there is one.
    pub pid: Option<Pid>,
    /// Its bundle.
    pub bundle: &'a Path,
    /// What else its description says.
    pub annotations: Option<&'a HashMap<String, String>>,
}

impl State<'_> {
    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": self.status,
            "bundle": self.bundle.to_string_lossy(),
        });
        if let Some(pid) = self.pid {
            state["pid"] = pid.as_raw_nonzero().get().into();
        }
        if let Some(annotations) = self.annotations
            && !annotations.is_empty()
        {
            state["annotations"] = serde_json::json!(annotations);
        }
        state
    }
}

/// Runs these, one after the other, until one fails.
pub fn run(hooks: &[Hook], state: State<'_>) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = state.to_json().to_string();
    for hook in hooks {
        one(hook, text.as_bytes(), state.bundle)?;
    }
    Ok(())
}

/// Runs these all, whichever fails, and returns what did.
pub fn run_all(hooks: &[Hook], state: State<'_>) -> Vec<Error> {
    let text = state.to_json().to_string();
    let results = hooks
        .iter()
        .map(|hook| one(hook, text.as_bytes(), state.bundle));
    results.filter_map(Result::err).collect()
}

fn one(hook: &Hook, state: &[u8], bundle: &Path) -> Result<(), Error> {
    let what = || format!("the hook {}", hook.path().display());
    let wrong = |text: String| Error::new(Step::Hooks, format!("{}: {text}", what()));
    if !hook.path().is_absolute() {
        return Err(wrong("its path does not begin with a slash".into()));
    }
    let deadline = match hook.timeout() {
        None => None,
        Some(seconds) if seconds > 0 => {
            let patience = Duration::from_secs(seconds.unsigned_abs());
            Instant::now().checked_add(patience)
        }
        Some(_) => return Err(wrong("its timeout is not above 0".into())),
    };
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    command.env_clear().stdin(Stdio::piped());
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    // In a container's namespace the bundle may be out of reach.
    if bundle.is_dir() {
        command.current_dir(bundle);
    }
    let mut child = command.spawn().at(Step::Hooks, what)?;
    let result = feed(&mut child, state, deadline).and_then(|()| wait(&mut child, deadline));
    match result {
        Ok(true) => {}
        Ok(false) => {
            // It is ours until it is reaped.
            let _ = child.kill();
            let _ = child.wait();
            return Err(wrong("it took longer than its timeout".into()));
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(wrong(error.to_string()));
        }
    }
    let status = child.wait().at(Step::Hooks, what)?;
    if status.success() {
        return Ok(());
    }
    Err(wrong(format!("it ended with {status}")))
}

/// Writes what it is told. One that does not read is its own business.
fn feed(child: &mut Child, text: &[u8], deadline: Option<Instant>) -> std::io::Result<()> {
    let Some(mut input) = child.stdin.take() else {
        return Ok(());
    };
    rustix::io::ioctl_fionbio(&input, true)?;
    let mut rest = text;
    while !rest.is_empty() {
        match input.write(rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(&input, PollFlags::OUT)];
                if !await_one(&mut wanted, deadline)? {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether it ended in time.
fn wait(child: &mut Child, deadline: Option<Instant>) -> std::io::Result<bool> {
    if deadline.is_none() {
        return Ok(true);
    }
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(id.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    let mut wanted = [PollFd::new(&pidfd, PollFlags::IN)];
    await_one(&mut wanted, deadline)
}

fn await_one(wanted: &mut [PollFd<'_>], deadline: Option<Instant>) -> std::io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose();
        let left = left.map_err(|_| Errno::RANGE)?;
        match poll(wanted, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn state(bundle: &Path) -> State<'_> {
        State {
            version: "1.2.0",
            id: "c",
            status: "creating",
            pid: Pid::from_raw(7),
            bundle,
            annotations: None,
        }
    }

    fn shell(script: &str) -> HookBuilder {
        let words = ["sh", "-c", script].map(str::to_owned);
        HookBuilder::default()
            .path("/bin/sh")
            .args(words)
            .env(vec!["A=b".to_owned()])
    }

    #[test]
    fn hooks_are_told_the_state_in_their_environment() {
        let bundle = tempfile::tempdir().unwrap();
        let hook = shell("cat >state; /usr/bin/env >env").build().unwrap();
        run(&[hook], state(bundle.path())).unwrap();
        let text = std::fs::read(bundle.path().join("state")).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(told["pid"], 7);
        assert_eq!(told["status"], "creating");
        let env = std::fs::read_to_string(bundle.path().join("env")).unwrap();
        assert!(env.contains("A=b") && !env.contains("HOME="), "{env}");
    }

    #[test]
    fn failures_and_timeouts_are_told() {
        let bundle = tempfile::tempdir().unwrap();
        let failing = shell("exit 3").build().unwrap();
        let error = run(std::slice::from_ref(&failing), state(bundle.path())).unwrap_err();
        assert!(error.message.contains("exit status: 3"), "{error}");
        let slow = shell("exec sleep 1000").timeout(1).build().unwrap();
        let error = run(&[slow], state(bundle.path())).unwrap_err();
        assert!(error.message.contains("timeout"), "{error}");
        let fine = shell("touch ran").build().unwrap();
        assert_eq!(run_all(&[failing, fine], state(bundle.path())).len(), 1);
        assert!(bundle.path().join("ran").exists());
    }

    #[test]
    fn more_than_a_pipe_holds_is_not_waited_for() {
        let bundle = tempfile::tempdir().unwrap();
        let long = HashMap::from([("a".to_owned(), "x".repeat(1 << 20))]);
        let deaf = shell("exit 0").build().unwrap();
        let state = State {
            annotations: Some(&long),
            ..state(bundle.path())
        };
        run(&[deaf], state).unwrap();
    }
}
