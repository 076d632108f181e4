//! The container's program: answers questions about where it is.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Answers each question with a line, `QUESTION: ANSWER`.
pub fn answer(words: &[String]) -> ExitCode {
    let mut code = 0;
    for word in words {
        let (question, about) = word.split_once('=').unwrap_or((word, ""));
        let answer = match question {
            "exit" => {
                code = about.parse().expect("a code");
                continue;
            }
            "sleep" => {
                thread::sleep(Duration::from_secs_f64(about.parse().expect("seconds")));
                continue;
            }
            "await" => {
                until(about);
                continue;
            }
            "ids" => status(&["Uid", "Gid", "Groups"]),
            "rights" => status(&[
                "CapInh",
                "CapPrm",
                "CapEff",
                "CapBnd",
                "CapAmb",
                "NoNewPrivs",
                "Seccomp",
            ]),
            "pid" => std::process::id().to_string(),
            "cwd" => env::current_dir().map_or_else(said, |path| path.display().to_string()),
            "env" => env::var(about).unwrap_or_else(|error| error.to_string()),
            "hostname" => text("/proc/sys/kernel/hostname"),
            "read" => text(about),
            "write" => fs::write(about, "x").map_or_else(said, |()| "done".into()),
            "list" => list(about),
            "mounted" => mounted(about),
            "link" => fs::read_link(about).map_or_else(said, |path| path.display().to_string()),
            "stat" => fs::symlink_metadata(about).map_or_else(said, |found| {
                let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
                format!("{mode:o} {uid}:{gid} {}", found.rdev())
            }),
            "umask" => status(&["Umask"]),
            "fds" => list("/proc/self/fd"),
            "uname" => {
                let name = rustix::system::uname();
                let [node, domain] = [name.nodename(), name.domainname()];
                format!("{} {}", node.to_string_lossy(), domain.to_string_lossy())
            }
            "tty" => rustix::termios::ttyname(std::io::stdin(), Vec::new()).map_or_else(
                |error| error.to_string(),
                |name| name.to_string_lossy().into(),
            ),
            "size" => rustix::termios::tcgetwinsize(std::io::stdin()).map_or_else(
                |error| error.to_string(),
                |size| format!("{}x{}", size.ws_row, size.ws_col),
            ),
            "stop" => stop(about.parse().expect("seconds")),
            "hunt" => {
                let (inode, path) = about.split_once(',').expect("a number, a path");
                hunt(inode.parse().expect("a number"), path)
            }
            "symlink" => symlink(about, "/made-link").map_or_else(said, |()| "done".into()),
            _ => "what?".to_owned(),
        };
        println!("{word}: {}", answer.replace('\n', " ").trim());
    }
    ExitCode::from(code)
}

/// Stops whatever process comes, for so many seconds.
fn stop(seconds: u64) -> String {
    use rustix::process::{Pid, Signal, kill_process};
    let until = std::time::Instant::now() + Duration::from_secs(seconds);
    while std::time::Instant::now() < until {
        for pid in (2..64).filter_map(Pid::from_raw) {
            // Most of them are none.
            let _ = kill_process(pid, Signal::STOP);
        }
    }
    "done".to_owned()
}

/// Waits until there is a file. Who never gets it is killed by who waits for
/// all of it.
fn until(path: &str) {
    while !fs::exists(path).is_ok_and(|there| there) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tries to get hold of a certain file, the maker's program, through any
/// process there is, until there is a file that says that it is enough.
fn hunt(inode: u64, enough: &str) -> String {
    let mut seen = 0;
    while !fs::exists(enough).is_ok_and(|there| there) {
        for pid in 1..200 {
            let path = format!("/proc/{pid}/exe");
            let Ok(file) = fs::File::open(path) else {
                continue;
            };
            seen += 1;
            if file.metadata().is_ok_and(|found| found.ino() == inode) {
                return "caught".to_owned();
            }
        }
    }
    format!("nothing in {seen}")
}

fn said(error: std::io::Error) -> String {
    error.to_string()
}

fn text(path: &str) -> String {
    fs::read(path).map_or_else(said, |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn list(path: &str) -> String {
    let names = fs::read_dir(path).map(|entries| {
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.join(" ")
    });
    names.unwrap_or_else(said)
}

fn status(fields: &[&str]) -> String {
    let text = text("/proc/self/status");
    let line = |field: &&str| {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(*field)?.strip_prefix(':'));
        let words: Vec<&str> = found.unwrap_or_default().split_whitespace().collect();
        format!("{field} {}", words.join(" "))
    };
    fields.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// Options of the uppermost mount at a place.
fn mounted(place: &str) -> String {
    let text = text("/proc/self/mountinfo");
    let found = text.lines().rev().find_map(|line| {
        let mut words = line.split(' ').skip(4);
        (words.next()? == place).then(|| words.collect::<Vec<_>>().join(" "))
    });
    found.unwrap_or_else(|| "not".to_owned())
}
