//! Links in images and volumes, while they are changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::bundle::{Bundle, possible};

/// A directory and a link of the same name, one in the other's place as fast
/// as can be, until told to stop.
fn race((place, aside): &(PathBuf, PathBuf), stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, place, cwd, aside, exchange).unwrap();
    }
}

/// Ends the race however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// CVE-2021-30465: what is mounted in a volume lands outside of the container
/// when a link takes the place of the directory in time.
#[test]
fn a_link_that_comes_in_time_leads_nowhere() {
    if !possible() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "the host's").unwrap();
    let volume = tempfile::tempdir().unwrap();
    let names = (volume.path().join("place"), volume.path().join("aside"));
    fs::create_dir(&names.0).unwrap();
    symlink(&secret, &names.1).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| race(&names, &stop));
        for _ in 0..40 {
            let mut bundle = Bundle::new(&[
                "read=/volume/place/key",
                "write=/volume/place/mark",
                "read=/volume/aside/key",
            ]);
            let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/volume", "type": "bind",
                "source": volume.path(), "options": ["rbind"]}));
            mounts.push(json!({"destination": "/volume/place", "type": "tmpfs",
                "source": "tmpfs", "options": ["mode=755"]}));
            mounts.push(json!({"destination": "/volume/place/deep", "type": "bind",
                "source": volume.path(), "options": ["rbind"]}));
            let output = bundle.run();
            // Whether it starts is chance.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(!text.contains(" bytes"), "{text}");
            let names: Vec<_> = fs::read_dir(&secret).unwrap().flatten().collect();
            assert_eq!(names.len(), 1, "{names:?}");
        }
    });
    // Nor is the host's directory covered.
    assert_eq!(
        fs::read_to_string(secret.join("key")).unwrap(),
        "the host's"
    );
}

/// CVE-2025-31133 and others: what covers masked files is taken from the
/// image, which has a link there.
#[test]
fn masks_are_not_of_the_image() {
    if !possible() {
        return;
    }
    let mut bundle = Bundle::new(&[
        "read=/proc/timer_list",
        "write=/proc/sys/kernel/core_pattern",
    ]);
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|one| one["destination"] != "/dev");
    let null = bundle.root().join("dev/null");
    symlink("/proc/sys/kernel/core_pattern", null).unwrap();
    let output = bundle.run();
    if output.status.success() {
        let found = crate::bundle::outcomes(&output);
        let nothing = found[0].1 == "0 bytes" || found[0].1.contains("No such file");
        assert!(nothing && found[1].1.contains("(os error"), "{found:?}");
    }
}

/// CVE-2019-19921: procfs lands elsewhere by a link of the image, and what is
/// masked there is not.
#[test]
fn a_proc_that_is_a_link_is_masked_all_the_same() {
    if !possible() {
        return;
    }
    let bundle = Bundle::new(&[
        "read=/tmp/elsewhere/timer_list",
        "write=/tmp/elsewhere/sys/vm/swappiness",
        "read=/proc/timer_list",
    ]);
    let root = bundle.root();
    fs::remove_dir(root.join("proc")).unwrap();
    fs::create_dir(root.join("tmp/elsewhere")).unwrap();
    symlink("/tmp/elsewhere", root.join("proc")).unwrap();
    let output = bundle.run();
    if output.status.success() {
        for (attempt, outcome) in crate::bundle::outcomes(&output) {
            let nothing = outcome == "0 bytes" || outcome.contains("(os error");
            assert!(nothing, "{attempt}: {outcome}");
        }
    }
}
