//! Trees from one directory to another, and senders that cheat.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::thread;

use croft_api::agent::{Entry, FrameKind, Meta};

use rustix::fs::CWD;

use super::*;
use crate::connection::{Receiver, Sender, halves};

const POLICY: Policy = Policy {
    owner: None,
    keep_owner: false,
    shift: 0,
    mode: 0o777,
};

fn ends() -> (Sender, Receiver) {
    let (a, b) = UnixStream::pair().unwrap();
    let (sender, _) = halves(a.into(), "receiver").unwrap();
    let (_, receiver) = halves(b.into(), "sender").unwrap();
    (sender, receiver)
}

fn copy(from: &Path, to: &Path) -> Result<Arrival, AgentError> {
    let (mut sender, mut receiver) = ends();
    let from = from.to_owned();
    let thread = thread::spawn(move || send(&mut sender, &from));
    let arrival = receive(&mut receiver, to, POLICY);
    drop(receiver);
    let _ = thread.join();
    arrival
}

#[test]
fn a_tree_arrives_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    let large = vec![3; 300_000];
    fs::write(from.join("a/large"), &large).unwrap();
    fs::write(from.join("a/b/empty"), "").unwrap();
    symlink("/etc/passwd", from.join("a/out")).unwrap();
    symlink("nowhere", from.join("broken")).unwrap();
    rustix::fs::mknodat(
        CWD,
        from.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    fs::set_permissions(from.join("a/large"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o750)).unwrap();

    let to = directory.path().join("to");
    let arrival = copy(&from, &to).unwrap();
    assert_eq!(arrival.entries, 7);
    assert_eq!(arrival.skips, 1);
    assert!(arrival.skipped[0].contains("pipe"));
    assert!(fs::read(to.join("a/large")).unwrap() == large);
    assert_eq!(fs::read(to.join("a/b/empty")).unwrap(), b"");
    assert_eq!(
        fs::read_link(to.join("a/out")).unwrap(),
        Path::new("/etc/passwd")
    );
    let mode = |name: &str| fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o7777;
    // Without the set-user-id bit.
    assert_eq!((mode("a/large"), mode("a")), (0o751, 0o750));
    // Once more: what is there is replaced; into a directory that is there.
    fs::write(from.join("a/b/empty"), "new").unwrap();
    let into = copy(&from.join("a"), &to).unwrap();
    assert_eq!(into.entries, 5);
    assert_eq!(fs::read(to.join("a/b/empty")).unwrap(), b"new");
    copy(&from.join("a/large"), &to.join("other")).unwrap();
    assert!(fs::read(to.join("other")).unwrap() == large);
}

#[test]
fn devices_and_directories_are_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    let said = copy(&file, Path::new("/dev/null")).unwrap_err().to_string();
    assert!(said.contains("neither a file nor a directory"), "{said}");
    fs::create_dir_all(directory.path().join("to/file")).unwrap();
    let said = copy(&file, &directory.path().join("to"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("is a directory"), "{said}");
    let said = copy(Path::new("/dev/zero"), &file).unwrap_err();
    assert!(
        said.to_string().contains("neither a file nor a directory"),
        "{said}"
    );
    let said = copy(&file, &directory.path().join("none/x"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("No such file"), "{said}");
}

fn meta(name: &str) -> Meta {
    Meta {
        name: name.into(),
        mode: 0o7777,
        uid: 0,
        gid: 0,
        modified: 0,
    }
}

/// Lets a sender say `entries`, which the receiver must refuse.
fn refuse(to: &Path, entries: &[Entry]) -> String {
    let (mut sender, mut receiver) = ends();
    let entries = entries.to_vec();
    // The receiver may have left before all is said.
    let thread = thread::spawn(move || {
        entries.iter().try_for_each(|entry| {
            sender.message(entry)?;
            match entry {
                Entry::File { size, .. } => {
                    sender.data(FrameKind::File, &vec![b'!'; *size as usize])
                }
                _ => Ok(()),
            }
        })
    });
    let said = receive(&mut receiver, to, POLICY).unwrap_err().to_string();
    drop(receiver);
    let _ = thread.join();
    said
}

#[test]
fn no_sender_leads_out_of_the_destination() {
    let directory = tempfile::tempdir().unwrap();
    let (to, secret) = (directory.path().join("to"), directory.path().join("secret"));
    fs::create_dir_all(&to).unwrap();
    fs::create_dir(&secret).unwrap();
    let file = |name: &str| Entry::File {
        meta: meta(name),
        size: 1,
    };
    let root = || Entry::Directory(meta("root"));
    for name in ["..", ".", "", "a/b", "/x", "../secret/x", "nul\0"] {
        let said = refuse(&to, &[root(), file(name)]);
        assert!(said.contains("a name that is a path"), "{said}");
    }
    // A link, and then a directory or file of the same name.
    let link = |name: &str| Entry::Symlink {
        meta: meta(name),
        target: secret.clone().into(),
    };
    refuse(
        &to,
        &[root(), link("l"), Entry::Directory(meta("l")), file("x")],
    );
    let said = refuse(&to, &[root(), link("l"), file("l"), Entry::Leave]);
    assert!(said.contains("ended the connection"), "{said}");
    assert!(fs::symlink_metadata(to.join("root/l")).unwrap().is_file());
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 0);
    for (entries, expected) in [
        (vec![Entry::Leave], "an end too many"),
        (vec![root(), Entry::End], "an end within a directory"),
        (vec![root(), Entry::Leave, root()], "more than one tree"),
        (vec![file("a"), file("b")], "more than one tree"),
    ] {
        let said = refuse(&to, &entries);
        assert!(said.contains(expected), "{said}");
    }
    let deep: Vec<Entry> = std::iter::repeat_with(root).take(1000).collect();
    assert!(refuse(&to, &deep).contains("too deep"));
}

#[test]
fn half_a_file_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let (mut sender, mut receiver) = ends();
    let entry = Entry::File {
        meta: meta("file"),
        size: 100,
    };
    sender.message(&entry).unwrap();
    sender.data(FrameKind::File, b"abc").unwrap();
    sender.data(FrameKind::File, b"").unwrap();
    let said = receive(&mut receiver, directory.path(), POLICY)
        .unwrap_err()
        .to_string();
    assert!(said.contains("became shorter"), "{said}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
