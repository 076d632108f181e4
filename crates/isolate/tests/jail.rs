//! What threads in the jail can do, by role, and what the process is.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use croft_isolate::launch::Ended;
use croft_isolate::{Child, Launch, Role, trap};
use rustix::pipe::{PipeFlags, pipe_with};

/// The role of a process without a jail.
const FREE: &str = "free";

/// A prisoner, and its three descriptors' other ends.
struct Prisoner {
    child: Child,
    input: OwnedFd,
    output: File,
    errors: File,
}

fn prisoner(role: &str, call: &str) -> Prisoner {
    // target/release/deps/jail-… to target/release/examples/prisoner.
    let here = std::env::current_exe().unwrap();
    let program: PathBuf = here
        .parent()
        .and_then(|deps| deps.parent())
        .map(|release| release.join("examples/prisoner"))
        .unwrap();
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (far_input, input) = pipe();
    let (output, far_output) = pipe();
    let (errors, far_errors) = pipe();
    let launch = Launch {
        program,
        arguments: vec![role.into(), call.into()],
        environment: Vec::new(),
        descriptors: [far_input, far_output, far_errors],
        jail: role != FREE,
        keeps_ids: false,
    };
    Prisoner {
        child: launch.start(None).unwrap(),
        input,
        output: output.into(),
        errors: errors.into(),
    }
}

/// How it ended, what it printed, and what it said of errors.
fn told(role: Role, call: &str) -> (Ended, String, String) {
    tell(prisoner(role.word(), call))
}

fn tell(mut prisoner: Prisoner) -> (Ended, String, String) {
    let (mut output, mut errors) = (String::new(), String::new());
    prisoner.output.read_to_string(&mut output).unwrap();
    prisoner.errors.read_to_string(&mut errors).unwrap();
    let ended = prisoner.child.wait(None).unwrap().unwrap();
    (ended, output, errors)
}

/// The name of the thread that a role's attempt is made on.
fn thread(role: Role) -> String {
    match role {
        Role::Setup | Role::Owner => "prisoner".to_owned(),
        other => format!("a-{}", other.word()),
    }
}

/// Attempts, and the calls that the jail names.
const REFUSED: [(&str, &str); 15] = [
    ("open", "open"),
    ("openat", "openat"),
    ("proc", "openat"),
    ("socket", "socket"),
    ("connect", "connect"),
    ("ptrace", "ptrace"),
    ("execve", "execve"),
    ("mmap", "mmap"),
    ("mprotect", "mprotect"),
    ("clone", "clone"),
    ("fork", "fork"),
    ("kill", "kill"),
    ("tgkill", "tgkill"),
    ("unshare", "unshare"),
    ("ioctl", "ioctl"),
];

#[test]
fn every_role_is_refused_what_no_role_needs() {
    for role in Role::ALL {
        for (call, name) in REFUSED {
            let (ended, output, errors) = told(role, call);
            let expected = format!("{}thread {} called {name}\n", trap::PREFIX, thread(role));
            assert_eq!(errors, expected, "{role:?} {call}: {ended:?} {output}");
            assert_eq!(ended, Ended::Exited(trap::STATUS), "{role:?} {call}");
        }
    }
}

#[test]
fn executable_memory_is_over_once_the_machine_is_made() {
    for role in Role::ALL {
        let (ended, output, errors) = told(role, "mmap-read");
        if role == Role::Setup {
            assert_eq!(ended, Ended::Exited(0), "{errors}");
        } else {
            assert_eq!(ended, Ended::Exited(trap::STATUS), "{role:?}: {output}");
            assert!(errors.ends_with("called mmap\n"), "{role:?}: {errors}");
        }
    }
}

#[test]
fn what_can_be_done_without_is_answered() {
    for role in Role::ALL {
        for call in ["clone3", "io_uring_setup"] {
            let (ended, output, errors) = told(role, call);
            assert_eq!(
                (ended, output.as_str()),
                (Ended::Exited(0), "gave -38\n"),
                "{errors}"
            );
        }
    }
}

#[test]
fn threads_live_under_their_filters() {
    for role in Role::ALL {
        for (call, expected) in [
            ("nothing", "gave 0\n"),
            ("allocate", "gave 0\n"),
            ("thread", "gave 0\n"),
            ("panic", "gave 1\n"),
        ] {
            let (ended, output, errors) = told(role, call);
            assert_eq!(output, expected, "{role:?} {call}: {ended:?} {errors}");
            assert_eq!(ended, Ended::Exited(0), "{role:?} {call}: {errors}");
        }
    }
}

#[test]
fn the_process_has_nothing() {
    let Prisoner {
        mut child,
        input,
        output,
        errors,
    } = prisoner(Role::Vcpu.word(), "wait");
    let mut line = String::new();
    let mut output = BufReader::new(output);
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let proc = PathBuf::from(format!("/proc/{}", child.pid().as_raw_nonzero()));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .trim()
            .to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    // main and maker have two filters more than this, setup's and the
    // answers'; this one has its own and the maker's besides.
    for task in fs::read_dir(proc.join("task")).unwrap().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let filters = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        let expected = match name.trim() {
            "maker" => "3",
            "a-vcpu" => "4",
            _ => "2",
        };
        assert_eq!(filters.map(str::trim), Some(expected), "{name}");
    }
    if rustix::process::geteuid().is_root() {
        let uid: u32 = field("Uid:")
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(uid >= 0x7000_0000, "{uid}");
        assert_eq!(field("CapBnd:"), "0000000000000000");
        let names: Vec<_> = fs::read_dir(proc.join("fd")).unwrap().flatten().collect();
        assert_eq!(names.len(), 3, "{names:?}");
        let limits = fs::read_to_string(proc.join("limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let core = core.unwrap().split_whitespace().nth(4);
        assert_eq!(core, Some("0"), "{limits}");
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
            let link = |of: PathBuf| fs::read_link(of.join("ns").join(kind)).unwrap();
            if link(proc.clone()) == link("/proc/self".into()) {
                println!("skipped: this host makes no {kind} namespaces");
            } else if kind == "mnt" {
                assert_eq!(fs::read_dir(proc.join("root")).unwrap().count(), 0);
                let probe = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(proc.join("root/probe"));
                assert!(probe.is_err());
            }
        }
    } else {
        println!("skipped: who is not root cannot look into it");
    }
    drop(input);
    assert_eq!(child.wait(None).unwrap(), Some(Ended::Exited(0)));
    drop((output, errors));
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    for jail in [true, false] {
        let launch = Launch {
            program: "/nowhere/program".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors: [null(), null(), null()],
            jail,
            keeps_ids: false,
        };
        let error = launch.start(None).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
