//! Ways out that others have had.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde_json::json;

use crate::stage::{driver, stage};

#[test]
fn links_of_an_image_lead_nowhere_else() {
    let Some(mut stage) = stage() else { return };
    let outside = stage.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, stage.inside("absolute")).unwrap();
    symlink("../outside", stage.inside("relative")).unwrap();
    for to in ["/absolute/made", "/relative/made"] {
        stage.mount(json!({
            "destination": to, "type": "tmpfs", "source": "tmpfs", "options": []
        }));
    }
    let said = stage.ask(&["pid"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn procfs_is_not_mounted_where_a_link_leads() {
    let Some(mut stage) = stage() else { return };
    for name in ["proc", "sys"] {
        fs::remove_dir(stage.inside(name)).unwrap();
        symlink("/tmp", stage.inside(name)).unwrap();
        let said = stage.ask(&["pid"]);
        assert_eq!(said.code, Some(125));
        assert!(said.errors.contains("symbolic link"), "{said:?}");
        fs::remove_file(stage.inside(name)).unwrap();
        fs::create_dir(stage.inside(name)).unwrap();
    }
}

#[test]
fn no_working_directory_leads_out() {
    let Some(mut stage) = stage() else { return };
    let mut inside = 0;
    for number in 3..20 {
        stage.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let said = stage.ask(&["cwd", "list=../../../..", "list=/"]);
        // One of them is the container's own root.
        if said.code == Some(0) {
            assert_eq!(said.to("cwd"), "/", "{number}: {said:?}");
            assert_eq!(said.to("list=../../../.."), said.to("list=/"));
            inside += 1;
        } else {
            assert_eq!(said.code, Some(125), "{number}: {said:?}");
            assert!(said.answers.is_empty(), "{said:?}");
        }
    }
    assert!(inside <= 1);
    symlink("/proc/self/fd/5", stage.inside("way")).unwrap();
    stage.spec["process"]["cwd"] = json!("/way");
    let said = stage.ask(&["cwd"]);
    assert!(said.code == Some(125) || said.to("cwd") == "/", "{said:?}");
}

#[test]
fn masks_cover_what_a_link_leads_to() {
    let Some(mut stage) = stage() else { return };
    fs::write(stage.inside("secret"), "s").unwrap();
    symlink("/secret", stage.inside("way")).unwrap();
    stage.spec["linux"]["maskedPaths"] = json!(["/way"]);
    let said = stage.ask(&["read=/secret", "stat=/secret"]);
    assert_eq!(said.to("read=/secret"), "");
    // The null device, 1:3.
    assert!(said.to("stat=/secret").ends_with(" 259"), "{said:?}");
}

#[test]
fn the_old_root_is_gone() {
    let Some(mut stage) = stage() else { return };
    let said = stage.ask(&[
        "read=/proc/self/mountinfo",
        "link=/proc/1/cwd",
        "link=/proc/1/root",
    ]);
    let table = said.to("read=/proc/self/mountinfo");
    // Root, what is mounted, what covers: no more.
    assert!(
        !table.contains("/run/") && !table.contains("ext4 /boot"),
        "{table}"
    );
    assert_eq!(said.to("link=/proc/1/root"), "/");
}

#[test]
fn the_maker_s_program_is_out_of_reach() {
    let Some(mut stage) = stage() else { return };
    let flags = statvfs(driver()).unwrap().f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        println!("skipped: nobody can write to the maker's program anyway");
        return;
    }
    let maker = fs::metadata(driver()).unwrap().ino();
    // Its own link as the program, and as the interpreter of one.
    stage.program("bin/script", "#!/proc/self/exe\n");
    let mut processes = Vec::new();
    for (number, words) in [
        json!(["/proc/self/exe", "/bin/driver", "inside", "sleep=0.3"]),
        json!(["/bin/script"]),
        json!(["/bin/driver", "inside", "sleep=0.1"]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut process = stage.spec["process"].clone();
        process["args"] = words;
        let path = stage.path(&format!("exec{number}"));
        fs::write(&path, process.to_string()).unwrap();
        processes.push(path.to_str().unwrap().to_owned());
    }
    let hunt = format!("hunt={maker},/ended");
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", hunt, "exit=6"]);
    let processes: Vec<&str> = processes.iter().map(String::as_str).collect();
    let said = stage.run_joined(&processes);
    assert_eq!(said.code, Some(6), "{said:?}");
    let hunted = said.to(&hunt);
    assert!(hunted.starts_with("nothing in "), "{said:?}");
    assert_eq!(said.rest.len(), 3, "{said:?}");
    // As the container's own program it is a page of memory that runs nothing
    // of the maker's.
    stage.spec["process"]["args"] = json!(["/bin/script"]);
    assert_ne!(stage.run(&[]).code, Some(2));
}

/// The runtime's handle of the host's `/proc` is no way to a program.
#[test]
fn no_program_is_reached_by_a_descriptor() {
    let Some(mut stage) = stage() else { return };
    stage.own_ids();
    for number in 3..24 {
        let path = format!("/proc/self/fd/{number}/self/exe");
        stage.spec["process"]["args"] = json!([path, "inside", "pid"]);
        let said = stage.run(&[]);
        assert_eq!(said.code, Some(127), "{said:?}");
        assert!(said.answers.is_empty(), "{said:?}");
    }
}

/// Whatever the container can do to a program that comes in, its maker is not
/// held up.
#[test]
fn who_stops_programs_on_their_way_in_stops_nobody_else() {
    let Some(mut stage) = stage() else { return };
    stage.own_ids();
    let mut options = vec!["--patience".to_owned(), "2".to_owned()];
    for number in 0..3 {
        let mut process = stage.spec["process"].clone();
        process["args"] = json!(["/bin/driver", "inside", "pid"]);
        let path = stage.path(&format!("exec{number}"));
        fs::write(&path, process.to_string()).unwrap();
        options.extend(["--exec".to_owned(), path.to_str().unwrap().to_owned()]);
    }
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", "stop=5"]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let said = stage.run(&options);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.rest.len(), 3, "{said:?}");
}

/// A sysctl of a namespace that is the host's after all would be the host's.
#[test]
fn settings_of_a_joined_namespace_are_not_the_hosts() {
    let Some(mut stage) = stage() else { return };
    stage.without_namespace("network");
    stage.namespace(json!({ "type": "network", "path": "/proc/self/ns/net" }));
    let now = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    stage.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": now.trim() });
    let said = stage.ask(&["pid"]);
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.errors.contains("the host's"), "{said:?}");
}

/// Where the kernel refuses a container its own procfs, because the host's is
/// covered in part, the host's is no replacement.
#[test]
fn the_hosts_processes_are_not_shown_instead() {
    let Some(mut stage) = stage() else { return };
    stage.own_ids();
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", "list=/proc"]);
    fs::write(stage.path("config.json"), stage.spec.to_string()).unwrap();
    let script = "mount -t tmpfs none /proc/fs && exec timeout -s KILL 300 \"$@\"";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(driver())
        .arg("run")
        .arg(stage.path("."))
        .output()
        .unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(125), "{text} {errors}");
    assert!(errors.contains("proc"), "{errors}");
}

#[test]
fn devices_of_the_host_are_those_of_the_description_and_stay_as_they_are() {
    let Some(mut stage) = stage() else { return };
    let dev = stage.path("hostdev");
    fs::create_dir(&dev).unwrap();
    let script = format!("mknod -m 600 {}/null c 1 3", dev.display());
    let made = std::process::Command::new("sh")
        .args(["-c", &script])
        .status();
    if !made.unwrap().success() {
        println!("skipped: no device can be made here");
        return;
    }
    let mounts = stage.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|one| !one["destination"].as_str().unwrap().starts_with("/dev"));
    stage.mount(json!({
        "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"]
    }));
    stage.spec["linux"]["devices"] = json!([{
        "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666,
        "uid": 5, "gid": 5
    }]);
    let said = stage.ask(&["pid"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let found = fs::metadata(dev.join("null")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, 0));

    // Of another name there, it is still the device of the number.
    let Some(mut stage) = self::stage() else {
        return;
    };
    stage.own_ids();
    for (major, minor, code) in [(1, 5, 0), (4000, 77, 125)] {
        stage.spec["linux"]["devices"] = json!([{
            "path": "/etc/hostname", "type": "c", "major": major, "minor": minor
        }]);
        let said = stage.ask(&["stat=/etc/hostname"]);
        assert_eq!(said.code, Some(code), "{said:?}");
        if code == 0 {
            assert!(said.to("stat=/etc/hostname").ends_with(" 261"), "{said:?}");
        } else {
            assert!(said.errors.contains("4000:77"), "{said:?}");
        }
    }
}
