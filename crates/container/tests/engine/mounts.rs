//! What a container sees of files.

use std::fs;

use serde_json::json;

use crate::stage::{Said, Stage, own, stage};

#[test]
fn dev_masks_and_read_only_paths() {
    let Some(mut stage) = stage() else { return };
    let said = stage.ask(&[
        "list=/dev",
        "stat=/dev/null",
        "link=/dev/fd",
        "link=/dev/ptmx",
        "read=/proc/kcore",
        "list=/proc/acpi",
        "list=/sys/firmware",
        "write=/proc/sys/kernel/hostname",
        "write=/sys/kernel/uevent_helper",
        "mounted=/dev",
        "mounted=/sys",
    ]);
    let list = "core fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero";
    let given = said.to("list=/dev").replace("core ", "");
    assert_eq!(given, list.replace("core ", ""));
    // A character device, 1:3.
    assert_eq!(said.to("stat=/dev/null"), "20666 0:0 259");
    assert_eq!(said.to("link=/dev/fd"), "/proc/self/fd");
    assert_eq!(said.to("link=/dev/ptmx"), "pts/ptmx");
    let kcore = said.to("read=/proc/kcore");
    assert!(
        kcore.is_empty() || kcore.contains("No such file"),
        "{kcore}"
    );
    for directory in ["list=/proc/acpi", "list=/sys/firmware"] {
        let listed = said.to(directory);
        assert!(
            listed.is_empty() || listed.contains("No such file"),
            "{listed}"
        );
    }
    assert!(
        said.to("write=/proc/sys/kernel/hostname")
            .contains("Read-only")
    );
    assert!(
        said.to("write=/sys/kernel/uevent_helper")
            .contains("Read-only")
    );
    assert!(said.to("mounted=/dev").starts_with("rw,nosuid"));
    assert!(
        said.to("mounted=/sys")
            .starts_with("ro,nosuid,nodev,noexec")
    );
}

#[test]
fn binds_of_all_kinds() {
    let Some(mut stage) = stage() else { return };
    let from = stage.path("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("file"), "text").unwrap();
    let bind = |to: &str, options: &[&str]| json!({ "destination": to, "type": "bind", "source": from, "options": options });
    stage.mount(bind("/plain", &["rbind"]));
    stage.mount(bind(
        "/strict",
        &["bind", "ro", "nosuid", "noexec", "rprivate"],
    ));
    stage.mount(bind("/all", &["rbind", "rro"]));
    stage.mount(json!({
        "destination": "/a/file", "source": "from/file", "options": ["bind", "rslave"]
    }));
    stage.mount(json!({
        "destination": "/late", "type": "tmpfs", "source": "t", "options": ["ro", "size=1m"]
    }));
    stage.mount(bind("/late/in", &["bind"]));
    let said = stage.ask(&[
        "write=/plain/new",
        "write=/strict/new",
        "write=/all/new",
        "read=/a/file",
        "mounted=/strict",
        "mounted=/late",
        "list=/late/in",
    ]);
    assert_eq!(said.to("write=/plain/new"), "done", "{said:?}");
    assert!(said.to("write=/strict/new").contains("Read-only"));
    assert!(said.to("write=/all/new").contains("Read-only"));
    assert_eq!(said.to("read=/a/file"), "text");
    let strict = said.to("mounted=/strict");
    assert!(strict.starts_with("ro,nosuid,noexec"), "{strict}");
    assert!(said.to("mounted=/late").starts_with("ro"));
    assert_eq!(said.to("list=/late/in"), "file new sub");
    assert!(from.join("new").exists());
}

#[test]
fn a_tmpfs_can_begin_with_what_was_there() {
    let Some(mut stage) = stage() else { return };
    fs::create_dir(stage.inside("data")).unwrap();
    fs::write(stage.inside("data/file"), "kept").unwrap();
    stage.mount(json!({
        "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]
    }));
    let said = stage.ask(&["read=/data/file", "write=/data/file"]);
    assert_eq!(said.to("read=/data/file"), "kept");
    assert_eq!(said.to("write=/data/file"), "done");
    assert_eq!(
        fs::read_to_string(stage.inside("data/file")).unwrap(),
        "kept"
    );
}

/// Asks in a container whose root is the stage's and the layers beside it, with
/// ids of its own.
fn of_layers(stage: &mut Stage, questions: &[&str]) -> Said {
    let layers = stage.path("layers");
    for name in ["upper", "work"] {
        fs::create_dir_all(layers.join(name)).unwrap();
        own(&layers.join(name));
    }
    fs::rename(stage.path("rootfs"), layers.join("lower0")).unwrap();
    fs::create_dir_all(stage.path("rootfs")).unwrap();
    stage.own_ids();
    let program = ["/bin/driver", "inside"].iter().chain(questions);
    stage.spec["process"]["args"] = program.copied().collect();
    stage.run(&["--overlay", layers.to_str().unwrap()])
}

#[test]
fn roots_are_read_only_or_layers() {
    let Some(mut stage) = stage() else { return };
    stage.spec["root"]["readonly"] = json!(true);
    let said = stage.ask(&["write=/new"]);
    assert!(said.to("write=/new").contains("Read-only"));
    stage.spec["root"]["readonly"] = json!(false);
    let layers = stage.path("layers");
    fs::create_dir_all(layers.join("lower1")).unwrap();
    fs::write(layers.join("lower1/over"), "second").unwrap();
    let said = of_layers(
        &mut stage,
        &["write=/new", "read=/over", "stat=/over", "mounted=/"],
    );
    assert_eq!(said.to("write=/new"), "done", "{said:?}");
    assert_eq!(said.to("read=/over"), "second");
    assert_eq!(said.to("stat=/over"), "100644 0:0 0");
    assert!(said.to("mounted=/").contains("overlay"));
    assert!(layers.join("upper/new").exists());
    assert!(!layers.join("lower0/new").exists());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(layers.to_str().unwrap()), "{table}");
}

#[test]
fn a_root_has_many_layers() {
    let Some(mut stage) = stage() else { return };
    for number in 1..128 {
        let layer = stage.path(&format!("layers/lower{number}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("over"), number.to_string()).unwrap();
        fs::write(layer.join(format!("own{number}")), "").unwrap();
    }
    let said = of_layers(&mut stage, &["read=/over", "stat=/own1", "stat=/own126"]);
    if said.errors.contains("newer kernel") {
        println!("skipped: {}", said.errors);
        return;
    }
    assert_eq!(said.to("read=/over"), "127", "{said:?}");
    for own in ["stat=/own1", "stat=/own126"] {
        assert_eq!(said.to(own), "100644 0:0 0");
    }
}

#[test]
fn devices_of_a_description_are_made() {
    let Some(mut stage) = stage() else { return };
    stage.spec["linux"]["devices"] = json!([
        { "path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": 3 },
        { "path": "/run/pipe", "type": "p" }
    ]);
    let said = stage.ask(&["stat=/dev/own", "stat=/run/pipe"]);
    assert_eq!(said.to("stat=/dev/own"), "20600 3:0 261", "{said:?}");
    assert_eq!(said.to("stat=/run/pipe"), "10666 0:0 0");
}

#[test]
fn control_groups_are_the_container_s_own() {
    let Some(mut stage) = stage() else { return };
    stage.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "ro"]
    }));
    let name = format!("mounts-{}", std::process::id());
    for own in [false, true] {
        if own {
            stage.own_ids();
        }
        stage.spec["process"]["args"] = json!([
            "/bin/driver",
            "inside",
            "read=/proc/self/cgroup",
            "list=/sys/fs/cgroup",
            "mounted=/sys/fs/cgroup"
        ]);
        let said = stage.run(&["--group", &name]);
        let groups = said.to("read=/proc/self/cgroup");
        assert!(!groups.contains(&name) && groups.contains(":/"), "{groups}");
        assert!(!said.to("list=/sys/fs/cgroup").is_empty());
        assert!(
            said.to("mounted=/sys/fs/cgroup").starts_with("ro"),
            "{said:?}"
        );
    }
}
