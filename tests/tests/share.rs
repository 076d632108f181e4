//! Directories of the host's in a guest, by a stock kernel's virtiofs.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use croft_tests::modules::{load, shell};
use croft_tests::{END, Stage};

const MODULES: [&str; 2] = ["fuse", "virtiofs"];

#[test]
fn a_guest_works_in_shared_directories() {
    let stage = Stage::new();
    let path = |name: &str| stage.path(name);
    for directory in ["rw", "ro", "rw/sub"] {
        fs::create_dir(path(directory)).unwrap();
    }
    fs::write(path("secret"), "host's own").unwrap();
    fs::write(path("rw/hello"), "hello from the host\n").unwrap();
    fs::write(path("ro/hello"), "hello, readers\n").unwrap();
    symlink("../secret", path("rw/out")).unwrap();
    symlink(path("secret"), path("rw/far")).unwrap();
    let mut command = shell(&stage, &MODULES);
    for (name, way) in [("rw", ""), ("ro", ",readonly")] {
        let share = format!("{}:{name}{way}", path(name).display());
        command.args(["--share", &share]);
    }
    let mut machine = stage.start(command);
    load(&mut machine, &MODULES);
    machine.type_in(concat!(
        "mkdir rw ro; mount -t virtiofs rw rw && mount -t virtiofs ro ro; ",
        "cat rw/hello ro/hello\n"
    ));
    machine.expect("\nhello from the host");
    machine.expect("hello, readers");
    machine.type_in(concat!(
        "dd if=/dev/urandom of=rw/big bs=64k count=64 2>/dev/null; sync; ",
        "cp rw/big rw/sub/copy; mv rw/sub/copy rw/moved; cmp rw/big rw/moved && echo same-$((40 + 2)); ",
        "ln rw/moved rw/twice; ln -s moved rw/link; cmp rw/link rw/twice && echo links-$((40 + 2)); ",
        "mkdir rw/new; chmod 750 rw/new; touch -d '2001-02-03 04:05:06' rw/hello; ",
        "i=0; while [ $i -lt 300 ]; do echo $i >rw/new/file-$i; i=$((i + 1)); done; ",
        "echo files-$(ls rw/new | wc -l); rm rw/new/file-1??; echo files-$(ls rw/new | wc -l); ",
        "(exec 3<>rw/gone; rm rw/gone; echo kept >&3; cat /proc/self/fd/3) && echo open-$((40 + 2))\n",
    ));
    for expected in [
        "same-42",
        "links-42",
        "files-300",
        "files-200",
        "kept",
        "open-42",
    ] {
        machine.expect(expected);
    }
    // Links that lead out of it lead to the guest's own files, or nowhere.
    machine.type_in(concat!(
        "cat rw/out rw/far rw/../secret 2>&1 | grep -c 'No such' | sed s/^/nowhere-/; ",
        "echo x >ro/new || echo refused-$((40 + 2)); rm ro/hello || echo kept-$((40 + 2)); ",
        "mknod rw/null c 1 3 || echo device-$((40 + 2)); ",
        "chmod u+s rw/moved || echo setid-$((40 + 2))\n",
    ));
    for expected in [
        "nowhere-3",
        "refused-42",
        "kept-42",
        "device-42",
        "setid-42",
    ] {
        machine.expect(expected);
    }
    machine.type_in("umount rw ro && poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for bad in ["BUG", "WARNING: CPU", "stopped until"] {
        assert!(!ended.stdout.contains(bad), "{ended:#?}");
        assert!(!ended.stderr.contains(bad), "{ended:#?}");
    }
    let big = fs::read(path("rw/big")).unwrap();
    assert_eq!(big.len(), 4 << 20);
    assert!(big == fs::read(path("rw/twice")).unwrap());
    assert_eq!(
        fs::read_link(path("rw/link")).unwrap().to_str(),
        Some("moved")
    );
    assert_eq!(fs::read_to_string(path("rw/new/file-7")).unwrap(), "7\n");
    assert!(!path("rw/gone").exists() && !path("rw/sub/copy").exists());
    assert_eq!(
        fs::read_to_string(path("ro/hello")).unwrap(),
        "hello, readers\n"
    );
    assert_eq!(fs::read_to_string(path("secret")).unwrap(), "host's own");
}

#[test]
fn what_cannot_be_shared() {
    let stage = Stage::new();
    let file = stage.file("file", b"x");
    let directory = stage.path("directory");
    fs::create_dir(&directory).unwrap();
    let refused = |shares: &[&str], words: &[&str]| {
        let mut command = stage.tiny(&[0xF4]);
        for share in shares {
            command.args(["--share", share]);
        }
        let ended = stage.start(command).wait_at_most(END);
        let text = format!("{shares:?}\n{ended:#?}");
        assert_eq!(ended.code, Some(2), "{text}");
        for word in words {
            assert!(ended.stderr.contains(word), "'{word}' is missing: {text}");
        }
    };
    refused(&["/none-such:a"], &["none-such", "no such file", "--share"]);
    refused(&[&format!("{}:a", file.display())], &["not a directory"]);
    refused(&["nothing"], &["a colon and a tag"]);
    let share = |tag: &str| format!("{}:{tag}", directory.display());
    refused(&[&share("a"), &share("a")], &["'a'", "a tag of its own"]);
    let many: Vec<_> = ["a", "b", "c", "d", "e"].map(share).into();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    refused(&many, &["5 shares", "at most 4"]);
}

/// Files of the host's are not part of a machine: it is saved without them,
/// and uses them again afterwards.
#[test]
fn a_machine_is_saved_when_its_shares_are_unmounted() {
    let stage = Stage::new();
    let directory = stage.path("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("hello"), "hello from the host\n").unwrap();
    let (control, file) = (stage.path("control"), stage.path("state"));
    let mut command = shell(&stage, &MODULES);
    command
        .args(["--engine", "software", "--cpu", "portable-v1", "--share"])
        .arg(format!("{}:tag", directory.display()))
        .arg("--control")
        .arg(&control);
    let mut machine = stage.start(command);
    load(&mut machine, &MODULES);
    machine.type_in("mkdir m; mount -t virtiofs tag m; cat m/hello\n");
    machine.expect("\nhello from the host");
    let refused = stage.save(&control, &file);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("share 'tag'"), "{refused:#?}");
    assert!(refused.stderr.contains("unmount it"), "{refused:#?}");
    machine.type_in("umount m; echo gone-$((40 + 2))\n");
    machine.expect("gone-42");
    let saved = stage.save(&control, &file);
    assert_eq!(saved.code, Some(0), "{saved:#?}");
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");
    fs::write(directory.join("hello"), "hello once more\n").unwrap();
    let mut command = stage.restore(&file);
    command.stdin(Stdio::piped());
    let mut machine = stage.start(command);
    machine.type_in("mount -t virtiofs tag m; cat m/hello; umount m; poweroff -f\n");
    machine.expect("\nhello once more");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
