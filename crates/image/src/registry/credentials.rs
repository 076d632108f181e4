//! Who asks a registry: names and passwords in files of Docker's form
//! (`config.json`), and the programs that such files name.
//!
//! ```text
//! croft's file ─► ~/.docker/config.json ─► credHelpers, auths, credsStore ─► login
//! ```

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Error;

/// Longest file of credentials, and longest answer of a helper, in bytes.
const LONGEST: u64 = 1 << 20;
/// Time that a helper may take: some ask their user.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time in which what a helper has said at last is read.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How Docker's own registry is called in such files.
const HUB: &str = "https://index.docker.io/v1/";
/// The user that stands for a token in helpers' answers.
const TOKEN: &str = "<token>";

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user with a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Whoever has this token, for which the registry's token server gives
    /// others.
    Token(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Login::Password { user, .. } => write!(f, "Password({user:?})"),
            Login::Token(_) => f.write_str("Token"),
        }
    }
}

/// A helper's answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Docker's own file, if this user can have one.
pub fn docker_file() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let directory = set("DOCKER_CONFIG").map(PathBuf::from);
    let directory = directory.or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker")));
    Some(directory?.join("config.json"))
}

/// Who asks a registry, by the first of some files that knows.
pub fn find(files: &[PathBuf], host: &str) -> Result<Option<Login>, Error> {
    for path in files {
        let Some(config) = read(path)? else { continue };
        if let Some(login) = lookup(path, &config, host)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// Keeps a user's password for a registry in a file that only its owner reads.
pub fn keep(path: &Path, host: &str, user: &str, password: &str) -> Result<(), Error> {
    let mut config = read(path)?.unwrap_or_default();
    let auths = config
        .entry("auths")
        .or_insert_with(|| Value::Object(Map::new()));
    let Some(auths) = auths.as_object_mut() else {
        return Err(unfit(path, "its 'auths' are none"));
    };
    let auth = STANDARD.encode(format!("{user}:{password}"));
    auths.retain(|key, _| !is_of(key, host));
    auths.insert(key(host), json!({ "auth": auth }));
    write(path, &config)
}

/// Forgets a registry's password: whether there was one.
pub fn forget(path: &Path, host: &str) -> Result<bool, Error> {
    let Some(mut config) = read(path)? else {
        return Ok(false);
    };
    let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) else {
        return Ok(false);
    };
    let before = auths.len();
    auths.retain(|key, _| !is_of(key, host));
    if auths.len() == before {
        return Ok(false);
    }
    write(path, &config)?;
    Ok(true)
}

fn lookup(path: &Path, config: &Map<String, Value>, host: &str) -> Result<Option<Login>, Error> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let helpers = config.get("credHelpers").and_then(Value::as_object);
    let own = helpers.and_then(|helpers| helpers.iter().find(|(key, _)| is_of(key, host)));
    if let Some(helper) = text(own.map(|(_, value)| value)) {
        return ask(&helper, host);
    }
    let auths = config.get("auths").and_then(Value::as_object);
    let found = auths.and_then(|auths| auths.iter().find(|(key, _)| is_of(key, host)));
    if let Some((_, entry)) = found {
        if let Some(token) = text(entry.get("identitytoken")).filter(|token| !token.is_empty()) {
            return Ok(Some(Login::Token(token)));
        }
        if let Some(auth) = text(entry.get("auth")).filter(|auth| !auth.is_empty()) {
            let login = decode(&auth)
                .ok_or_else(|| unfit(path, &format!("its 'auth' for {host} is not base64")))?;
            return Ok(Some(login));
        }
        if let (Some(user), Some(password)) =
            (text(entry.get("username")), text(entry.get("password")))
        {
            return Ok(Some(Login::Password { user, password }));
        }
    }
    match text(config.get("credsStore")).filter(|helper| !helper.is_empty()) {
        Some(helper) => ask(&helper, host),
        None => Ok(None),
    }
}

fn decode(auth: &str) -> Option<Login> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login::Password {
        user: user.to_owned(),
        // Some old clients have written a zero byte at its end.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// What a registry is called in such files.
fn key(host: &str) -> String {
    match host {
        "docker.io" => HUB.to_owned(),
        other => other.to_owned(),
    }
}

/// Whether an entry is a registry's: with a scheme and a path, or without.
fn is_of(entry: &str, host: &str) -> bool {
    let entry = entry.strip_prefix("https://").unwrap_or(entry);
    let entry = entry.strip_prefix("http://").unwrap_or(entry);
    let entry = entry.split('/').next().unwrap_or_default();
    entry == host
        || (host == "docker.io" && matches!(entry, "index.docker.io" | "registry-1.docker.io"))
}

/// Asks a credential helper (docker-credential-helpers, "Development").
fn ask(helper: &str, host: &str) -> Result<Option<Login>, Error> {
    let program = format!("docker-credential-{helper}");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(plain) {
        return Err(Error::Tool {
            program,
            why: "no program is called like this".to_owned(),
        });
    }
    ask_program(&program, host)
}

fn ask_program(program: &str, host: &str) -> Result<Option<Login>, Error> {
    let failed = |why: String| Error::Tool {
        program: program.to_owned(),
        why,
    };
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            failed(format!(
                "cannot be started: {error}; install it, or take it out of config.json"
            ))
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says what is wrong by its end.
        let _ = stdin.write_all(key(host).as_bytes());
    }
    let output = child.stdout.take();
    let (sender, answers) = mpsc::channel();
    thread::spawn(move || {
        let mut output = output.map(|output| output.take(LONGEST));
        let mut piece = [0; 4096];
        while let Some(Ok(count @ 1..)) = output.as_mut().map(|output| output.read(&mut piece)) {
            let piece = piece.get(..count).unwrap_or_default();
            // Nobody waits any more.
            if sender.send(piece.to_vec()).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("does not answer".to_owned()));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    // Until it is whole, or at its end: it may have started a program that stays,
    // and has its output open (agents of pass do so).
    let mut bytes = Vec::new();
    while !(status.success() && serde_json::from_slice::<Answer>(&bytes).is_ok()) {
        match answers.recv_timeout(LAST_WORDS) {
            Ok(more) => bytes.extend(more),
            Err(_) => break,
        }
    }
    if !status.success() {
        let text = String::from_utf8_lossy(&bytes);
        // The words that all helpers have for it.
        if text.contains("credentials not found") {
            return Ok(None);
        }
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(failed(format!("failed ({status}): {text}")));
    }
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|error| failed(format!("answers what is no answer: {error}")))?;
    Ok(match answer.username.as_str() {
        "" => None,
        TOKEN => Some(Login::Token(answer.secret)),
        _ => Some(Login::Password {
            user: answer.username,
            password: answer.secret,
        }),
    })
}

fn unfit(path: &Path, why: &str) -> Error {
    Error::Unfit(format!(
        "'{}' cannot be read as Docker's config.json: {why}; correct it or move it away",
        path.display()
    ))
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| unfit(path, &error.to_string()))
}

/// Writes the file whole, or not at all.
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), Error> {
    let bytes =
        serde_json::to_vec_pretty(config).map_err(|error| unfit(path, &error.to_string()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(Error::io("make", &temporary))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    fn found(text: &str, host: &str) -> Result<Option<Login>, Error> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        fs::write(&path, text).unwrap();
        find(&[place.path().join("missing"), path], host)
    }

    #[test]
    fn files_are_read_as_docker_writes_them() {
        // "me:pass:word"
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6cGFzczp3b3Jk"},
            "reg.example:5000": {"identitytoken": "t"}, "empty.example": {}},
            "HttpHeaders": {"x": "y"}}"#;
        assert_eq!(
            found(text, "docker.io").unwrap(),
            password("me", "pass:word")
        );
        let token = Some(Login::Token("t".to_owned()));
        assert_eq!(found(text, "reg.example:5000").unwrap(), token);
        assert_eq!(found(text, "reg.example").unwrap(), None);
        assert_eq!(found(text, "empty.example").unwrap(), None);
        assert!(!format!("{:?}", password("me", "secret")).contains("secret"));
        for bad in ["{", "[]", r#"{"auths": {"x": {"auth": "!"}}}"#] {
            let error = found(bad, "x").unwrap_err().to_string();
            assert!(error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_forgotten() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("auth.json");
        let files = [path.clone()];
        keep(&path, "docker.io", "a", "1").unwrap();
        keep(&path, "reg.example", "b", "2").unwrap();
        keep(&path, "reg.example", "b", "3").unwrap();
        assert_eq!(find(&files, "docker.io").unwrap(), password("a", "1"));
        assert_eq!(find(&files, "reg.example").unwrap(), password("b", "3"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(forget(&path, "docker.io").unwrap());
        assert!(!forget(&path, "docker.io").unwrap());
        assert_eq!(find(&files, "docker.io").unwrap(), None);
        assert_eq!(find(&files, "reg.example").unwrap(), password("b", "3"));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_helper_that_leaves_a_program_behind_is_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("helper");
        let kept = place.path().join("kept");
        let script = "#!/bin/sh\nsleep 1000 &\necho $! >${0%/*}/kept\n\
                      printf '{\"Username\": \"a\", \"Secret\": \"1\"}'\n";
        // By another process: what this one writes is busy as long as a child
        // that another thread begins in that moment has not become its program.
        fs::write(place.path().join("script"), script).unwrap();
        let mut install = Command::new("install");
        install.args(["-m", "700"]).arg(place.path().join("script"));
        assert!(install.arg(&path).status().unwrap().success());
        let begun = Instant::now();
        let login = ask_program(path.to_str().unwrap(), "reg.example").unwrap();
        assert_eq!(login, password("a", "1"));
        assert!(begun.elapsed() < Duration::from_secs(900), "{begun:?}");
        let pid = fs::read_to_string(kept).unwrap().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn helpers_that_are_no_programs_are_named() {
        let text = r#"{"credHelpers": {"a.example": "no-such-one", "b.example": "../sh"}}"#;
        let error = found(text, "a.example").unwrap_err().to_string();
        assert!(error.contains("docker-credential-no-such-one"), "{error}");
        let error = found(text, "b.example").unwrap_err().to_string();
        assert!(error.contains("no program"), "{error}");
    }
}
