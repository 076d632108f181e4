//! Containers of users who are not root.
//!
//! A user is made up for a run of tests: a number that nobody has, whose name
//! and subordinate ids are in files laid over the host's in a mount namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

use crate::images::IMAGE;
use crate::stage::{Stage, eventually, wait};

/// The user's number, and its group's: of no other run at the same time.
fn user() -> u32 {
    1_400_000_000 + std::process::id()
}

/// The first of its subordinate ids.
const FIRST: u32 = 1_500_000_000;
/// Runs the words behind it as the user, whose number is the second one.
const AS_USER: &str = r#"set -e
mount --make-rprivate /
for file in passwd subuid subgid; do
    [ -e /etc/$file ] || continue
    mount --bind "$1/$file" /etc/$file
done
# Of some hosts it is root's alone.
if [ -e /dev/net/tun ] && [ -e "$1/tun" ]; then mount --bind "$1/tun" /dev/net/tun; fi
cd "$1/home"
id=$2
shift 2
exec setpriv --reuid $id --regid $id --clear-groups "$@""#;

/// A user, with everything of a stage.
struct User {
    stage: Stage,
}

impl User {
    /// With subordinate ids, or without; says why not.
    fn new(subordinate: bool) -> Option<Self> {
        let stage = Stage::new();
        if !stage.with_image() {
            return None;
        }
        let home = stage.path("home");
        fs::create_dir(&home).unwrap();
        let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
        passwd.push_str(&format!(
            "rootless:x:{0}:{0}::{1}:/bin/sh\n",
            user(),
            home.display()
        ));
        fs::write(stage.path("passwd"), passwd).unwrap();
        let given = if subordinate {
            format!("rootless:{FIRST}:65536\n")
        } else {
            String::new()
        };
        for file in ["subuid", "subgid"] {
            fs::write(stage.path(file), &given).unwrap();
        }
        let tun = stage.path("tun").display().to_string();
        // Where it cannot be, there is no user network.
        let _ = Command::new("mknod")
            .args(["-m", "666", &tun, "c", "10", "200"])
            .status();
        // Its home is closed to all others, its own container's users too.
        for (path, mode) in [(stage.path(""), 0o755), (home, 0o700)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        chown(stage.path("home"), Some(user()), Some(user())).unwrap();
        let user = User { stage };
        let missing = |file: &str| !Path::new("/etc").join(file).exists();
        if subordinate && (missing("subuid") || missing("subgid")) {
            println!("skipped: this host has no /etc/subuid to be laid over");
            return None;
        }
        let works = user.run(&["unshare", "--user", "--net", "true"]);
        if works.0 != Some(0) {
            println!("skipped: no user may make namespaces here: {}", works.1);
            return None;
        }
        let mapped = user.run(&["sh", "-c", "command -v newuidmap newgidmap"]);
        if subordinate && mapped.0 != Some(0) {
            println!("skipped: uidmap is not installed");
            return None;
        }
        let layout = user.home("layout");
        copy(&user.stage.path("data/layout"), &layout);
        user.done(&["image", "import", &layout.to_string_lossy(), IMAGE]);
        Some(user)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.stage.path("home").join(name)
    }

    /// A command as the user: its exit code, and what it said.
    fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", AS_USER, "sh"])
            .arg(self.stage.path(""))
            .arg(user().to_string())
            .args(words)
            .env_clear()
            .env("HOME", self.home(""))
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = wait(&mut child);
        let output = child.wait_with_output().unwrap();
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        (status.code(), said)
    }

    /// `croft` with these words.
    fn ask(&self, words: &[&str]) -> (Option<i32>, String) {
        let croft = self.stage.path("croft");
        let mut all = vec![croft.to_str().unwrap()];
        all.extend(words);
        self.run(&all)
    }

    fn done(&self, words: &[&str]) -> String {
        let (code, said) = self.ask(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        said
    }

    /// A container that sleeps, in the background.
    fn start(&self, options: &[&str]) {
        let mut words = vec!["run", "--container", "-d", "--name", &self.stage.name];
        words.extend(options);
        words.extend([IMAGE, "sh", "-c", "echo up; exec sleep 1000"]);
        self.done(&words);
    }

    /// Nothing of any instance is left.
    fn assert_nothing_left(&self) {
        self.stage.wait_for_silence();
        for directory in ["instances", "run"] {
            let path = self.home(".local/share/croft").join(directory);
            let left = fs::read_dir(path).unwrap().flatten();
            let left = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let left: Vec<String> = left.filter(|name| name != ".ids.lock").collect();
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

/// A port of the loopback interface, and what keeps the kernel from giving it
/// to anybody else. Who binds it by its number and lets others reuse addresses,
/// as servers do, can have it, since nobody listens there yet.
fn free_port() -> (u16, OwnedFd) {
    let kept = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&kept, true).unwrap();
    bind(&kept, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let at = SocketAddr::try_from(getsockname(&kept).unwrap()).unwrap();
    (at.port(), kept)
}

/// Copies a directory, for the user.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    chown(to, Some(user()), Some(user())).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            chown(target, Some(user()), Some(user())).unwrap();
        }
    }
}

#[test]
fn a_users_container_lives_and_leaves_nothing() {
    let Some(user) = User::new(true) else { return };
    let name = user.stage.name.clone();
    user.start(&["--net", "none"]);
    eventually("it is up", || user.done(&["logs", &name]).contains("up\n"));
    let exec = |command: &str| user.ask(&["exec", &name, "sh", "-c", command]);
    // It has users of its own, and its root is none of the host's.
    assert!(exec("id").1.starts_with("uid=0(root) gid=0(root)"));
    let (code, said) =
        exec("touch /srv/file && busybox chown 33:34 /srv/file && stat -c %u:%g /srv/file");
    assert_eq!((code, said.as_str()), (Some(0), "33:34\n"));
    let on_host = user.home(".local/share/croft/instances").join(&name);
    let about = fs::metadata(on_host.join("upper/srv/file")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&about), FIRST + 33);
    // Another user of it.
    let (code, said) = user.ask(&["exec", "-u", "web", &name, "id"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("uid=33(web)"), "{said}");
    assert!(exec("cat /proc/net/dev").1.contains("lo:"));
    assert_eq!(exec("exit 5").0, Some(5));
    // Nobody has given this user a group to hold it by: that is said at once.
    let (code, said) = user.ask(&["pause", &name]);
    assert_ne!(code, Some(0));
    assert!(said.contains("control group"), "{said}");
    assert_eq!(exec("echo on").1, "on\n");
    user.done(&["stop", "--timeout", "1", &name]);
    // What it wrote is there at its next start.
    user.done(&["start", &name]);
    assert_eq!(exec("stat -c %u /srv/file").1, "33\n");
    user.done(&["delete", "--force", &name]);
    user.assert_nothing_left();
    // In the foreground, and gone with its end.
    let words = [
        "run",
        "--container",
        "--rm",
        "--net",
        "none",
        "--name",
        &name,
    ];
    let (code, said) = user.ask(&[&words[..], &[IMAGE, "sh", "-c", "touch /x; exit 7"]].concat());
    assert_eq!(code, Some(7), "{said}");
    user.assert_nothing_left();
}

#[test]
fn a_users_volumes_and_directories() {
    let Some(user) = User::new(true) else { return };
    fs::create_dir(user.home("shared")).unwrap();
    chown(user.home("shared"), Some(self::user()), Some(self::user())).unwrap();
    let shared = format!("{}:/shared", user.home("shared").display());
    let run = |script: &str| {
        let words = [
            "run",
            "--container",
            "--rm",
            "--net",
            "none",
            "-v",
            &shared,
            "-v",
            "new:/etc",
        ];
        user.ask(&[&words[..], &[IMAGE, "sh", "-c", script]].concat())
    };
    let (code, said) =
        run("cat /etc/plain; stat -c %u /etc/plain; echo kept >/etc/kept; echo out >/shared/file");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("not a program\n0\n"), "{said}");
    assert_eq!(
        fs::read_to_string(user.home("shared/file")).unwrap(),
        "out\n"
    );
    let (code, said) = run("cat /etc/kept");
    assert_eq!((code, said.as_str()), (Some(0), "kept\n"));
    user.done(&["volume", "delete", "new"]);
    user.assert_nothing_left();
}

#[test]
fn a_user_without_subordinate_ids_has_programs() {
    let Some(user) = User::new(false) else { return };
    let name = user.stage.name.clone();
    let words = [
        "run",
        "--container",
        "--rm",
        "--net",
        "none",
        "--name",
        &name,
        IMAGE,
    ];
    let run = |command: &[&str]| user.ask(&[&words[..], command].concat());
    let (code, said) = run(&[
        "sh",
        "-c",
        "id; touch /root/x; cat /proc/self/uid_map; exit 3",
    ]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("uid=0(root)"), "{said}");
    assert!(said.contains("--add-subuids"), "{said}");
    user.assert_nothing_left();
    // As somebody who is not there.
    let words = [
        "run",
        "--container",
        "--rm",
        "--net",
        "none",
        "-u",
        "web",
        "--name",
        &name,
        IMAGE,
        "id",
    ];
    let (code, said) = user.ask(&words);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("subordinate ids"), "{said}");
    user.assert_nothing_left();
    user.start(&["--net", "none"]);
    assert!(user.done(&["exec", &name, "id"]).starts_with("uid=0(root)"));
    user.done(&["delete", "--force", &name]);
    user.assert_nothing_left();
}

#[test]
fn a_user_has_a_network() {
    let Some(user) = User::new(true) else { return };
    if !Path::new("/usr/bin/pasta").exists() {
        println!("skipped: pasta is not installed");
        return;
    }
    let name = user.stage.name.clone();
    let (port, _kept) = free_port();
    user.start(&[
        "--net",
        "user",
        "--publish",
        &format!("127.0.0.1:{port}:8000"),
    ]);
    let list = user.done(&["list"]);
    assert!(list.contains("10.199.15.15"), "{list}");
    let hosts = user.done(&["exec", &name, "cat", "/etc/hosts"]);
    assert!(hosts.contains("10.199.15.15"), "{hosts}");
    // What is published is reached.
    let server = "while :; do echo served | busybox nc -l -p 8000; done";
    user.done(&[
        "exec",
        &name,
        "sh",
        "-c",
        &format!("({server}) >/dev/null 2>&1 &"),
    ]);
    eventually("it is reached from the host", || {
        let mut text = String::new();
        let stream = std::net::TcpStream::connect(("127.0.0.1", port));
        stream.is_ok_and(|mut stream| {
            let patience = std::time::Duration::from_secs(2);
            let _ = stream.set_read_timeout(Some(patience));
            let _ = std::io::Read::read_to_string(&mut stream, &mut text);
            text == "served\n"
        })
    });
    // A NIC that goes and comes.
    user.done(&["nic", "detach", &name, "net0"]);
    assert!(
        !user
            .done(&["exec", &name, "cat", "/proc/net/dev"])
            .contains("eth0")
    );
    assert_eq!(
        user.done(&["nic", "attach", &name, "--net", "user"]),
        "net0\n"
    );
    assert!(
        user.done(&["exec", &name, "cat", "/proc/net/dev"])
            .contains("eth0")
    );
    // Managed networks are not for users.
    let (code, said) = user.ask(&["nic", "attach", &name, "--net", "lan"]);
    assert!(code != Some(0) && said.contains("--net user"), "{said}");
    user.done(&["delete", "--force", &name]);
    user.assert_nothing_left();
}
