//! Containers with ids of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::stage::{AWAIT_THEM, IDS, stage};

/// Somebody without privilege.
const USER: u32 = 54_321;

#[test]
fn root_of_a_container_is_nobody_outside() {
    let Some(mut stage) = stage() else { return };
    stage.own_ids();
    let said = stage.ask(&[
        "ids",
        "pid",
        "read=/proc/self/uid_map",
        "write=/new",
        "write=/dev/null",
        "stat=/dev/zero",
        "write=/proc/sys/kernel/printk",
        "list=/dev/mqueue",
        "rights",
    ]);
    assert_eq!(
        said.to("ids"),
        "Uid 0 0 0 0; Gid 0 0 0 0; Groups",
        "{said:?}"
    );
    assert_eq!(said.to("pid"), "1");
    assert!(
        said.to("read=/proc/self/uid_map")
            .contains(&IDS.to_string())
    );
    assert_eq!(said.to("write=/new"), "done");
    assert_eq!(said.to("write=/dev/null"), "done");
    assert!(
        said.to("rights").contains("CapEff 0000000000000021"),
        "{said:?}"
    );
    assert_ne!(said.to("write=/proc/sys/kernel/printk"), "done");
    assert_eq!(fs::metadata(stage.inside("new")).unwrap().uid(), IDS);
}

#[test]
fn binds_can_have_their_ids_mapped() {
    let Some(mut stage) = stage() else { return };
    fs::create_dir(stage.path("data")).unwrap();
    fs::write(stage.path("data/file"), "x").unwrap();
    let bind = |to: &str, options: &[&str]| json!({ "destination": to, "type": "bind", "source": "data", "options": options });
    stage.own_ids();
    stage.mount(bind("/mapped", &["rbind", "idmap"]));
    stage.mount(bind("/plain", &["rbind"]));
    let said = stage.ask(&["stat=/mapped/file", "stat=/plain/file", "write=/mapped/new"]);
    assert_eq!(said.to("stat=/mapped/file"), "100644 0:0 0", "{said:?}");
    assert_eq!(said.to("stat=/plain/file"), "100644 65534:65534 0");
    assert_eq!(said.to("write=/mapped/new"), "done");
    assert_eq!(fs::metadata(stage.path("data/new")).unwrap().uid(), 0);
}

#[test]
fn a_mount_can_have_a_map_of_its_own() {
    let Some(mut stage) = stage() else { return };
    fs::create_dir(stage.path("data")).unwrap();
    fs::write(stage.path("data/file"), "x").unwrap();
    let map = json!([{ "containerID": 0, "hostID": 5000, "size": 10 }]);
    stage.mount(json!({
        "destination": "/mapped", "type": "bind", "source": "data",
        "options": ["bind"], "uidMappings": map, "gidMappings": map
    }));
    let said = stage.ask(&["stat=/mapped/file"]);
    assert_eq!(
        said.to("stat=/mapped/file"),
        "100644 5000:5000 0",
        "{said:?}"
    );
}

#[test]
fn namespaces_of_others_are_joined() {
    let Some(mut stage) = stage() else { return };
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for (kind, file) in [
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
    ] {
        stage.without_namespace(kind);
        let path = format!("/proc/{}/ns/{file}", std::process::id());
        stage.namespace(json!({ "type": kind, "path": path }));
    }
    // It would be the host's that got the name.
    stage.spec["hostname"] = json!("");
    let said = stage.ask(&[
        "link=/proc/self/ns/net",
        "link=/proc/self/ns/uts",
        "link=/proc/self/ns/pid",
        "pid",
    ]);
    for file in ["net", "uts", "pid"] {
        let question = format!("link=/proc/self/ns/{file}");
        assert_eq!(said.to(&question), own(file).to_str().unwrap(), "{said:?}");
    }
    assert_ne!(said.to("pid"), "1");
}

/// Somebody who has namespaces of their own, and something to do in them.
struct Other(std::process::Child);

impl Other {
    fn new(options: &[&str], script: &str) -> Self {
        use std::io::Read;
        let mut child = std::process::Command::new("unshare")
            .args(options)
            .args(["sh", "-c", &format!("{script} && echo && exec cat")])
            // It ends with whoever has the other end.
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It is there.
        let mut said = [0];
        let output = child.stdout.as_mut().unwrap();
        output.read_exact(&mut said).unwrap();
        Other(child)
    }

    fn namespace(&self, file: &str) -> String {
        format!("/proc/{}/ns/{file}", self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that joins the container, and what it is asked.
fn joining(stage: &crate::stage::Stage, words: &[&str]) -> String {
    let path = stage.path("process");
    let mut process = stage.spec["process"].clone();
    process["args"] = json!(words);
    fs::write(&path, process.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn without_a_mount_namespace_the_root_is_the_container_s_all_the_same() {
    let Some(mut stage) = stage() else { return };
    stage.without_namespace("mount");
    stage.spec["mounts"] = json!([]);
    let linux = stage.spec["linux"].as_object_mut().unwrap();
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
    let joins = joining(&stage, &["/bin/driver", "inside", "list=/"]);
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", AWAIT_THEM]);
    let said = stage.run_joined(&[&joins]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.rest, ["0"], "{said:?}");
    let root: Vec<&str> = said.to("list=/").split(' ').collect();
    assert!(root.contains(&"bin") && !root.contains(&"home"), "{said:?}");
}

#[test]
fn a_mount_namespace_of_others_is_joined() {
    let Some(mut stage) = stage() else { return };
    let place = stage.inside("tmp").display().to_string();
    let script = format!("mount -t tmpfs tmpfs '{place}' && touch '{place}/inside'");
    let other = Other::new(&["--mount"], &script);
    let path = other.namespace("mnt");
    let theirs = fs::read_link(&path).unwrap();
    stage.without_namespace("mount");
    stage.namespace(json!({ "type": "mount", "path": path }));
    // What is mounted there is theirs to say.
    stage.spec["mounts"] = json!([]);
    let linux = stage.spec["linux"].as_object_mut().unwrap();
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
    let joins = joining(&stage, &["/bin/driver", "inside", "write=/tmp/joined"]);
    stage.spec["process"]["args"] = json!([
        "/bin/driver",
        "inside",
        "list=/tmp",
        "write=/tmp/new",
        "list=/",
        AWAIT_THEM
    ]);
    let said = stage.run_joined(&[&joins]);
    assert_eq!(said.code, Some(0), "{said:?}");
    // The other may be there first.
    let names = said.to("list=/tmp").split(' ').next();
    assert_eq!(names, Some("inside"), "{said:?}");
    assert_eq!(said.to("write=/tmp/new"), "done");
    assert_eq!(said.to("write=/tmp/joined"), "done", "{said:?}");
    let root: Vec<&str> = said.to("list=/").split(' ').collect();
    assert!(root.contains(&"bin") && !root.contains(&"home"), "{said:?}");
    // In theirs, not in ours.
    assert!(fs::read_dir(stage.inside("tmp")).unwrap().next().is_none());
    for name in ["new", "joined"] {
        let file = format!("/proc/{}/root{place}/{name}", other.0.id());
        assert!(fs::metadata(&file).is_ok(), "{file}");
    }
    assert_ne!(theirs, fs::read_link("/proc/self/ns/mnt").unwrap());
}

#[test]
fn a_user_namespace_of_others_is_joined() {
    let Some(mut stage) = stage() else { return };
    let other = Other::new(&["--user", "--map-root-user"], "true");
    stage.namespace(json!({ "type": "user", "path": other.namespace("user") }));
    // Its groups are not mapped.
    let mounts = stage.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "devpts");
    let said = stage.ask(&["read=/proc/self/uid_map", "pid"]);
    assert_eq!(said.to("pid"), "1", "{said:?}");
    let map: Vec<&str> = said
        .to("read=/proc/self/uid_map")
        .split_whitespace()
        .collect();
    assert_eq!(map, ["0", "0", "1"]);
}

#[test]
fn a_user_who_is_not_root_has_containers_too() {
    let Some(mut stage) = stage() else { return };
    stage.namespace(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
    stage.spec["linux"]["uidMappings"] = map.clone();
    stage.spec["linux"]["gidMappings"] = map;
    // Of the groups but one is mapped.
    for mount in stage.spec["mounts"].as_array_mut().unwrap() {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    stage.spec["process"]["args"] = json!([
        "/bin/driver",
        "inside",
        "ids",
        "pid",
        "write=/new",
        "write=/dev/null",
        "list=/dev"
    ]);
    stage.give_to((USER, USER));
    let said = stage.run_as((USER, USER), &[], &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.to("ids"), "Uid 0 0 0 0; Gid 0 0 0 0; Groups");
    assert_eq!(said.to("pid"), "1");
    assert_eq!(said.to("write=/new"), "done");
    assert_eq!(said.to("write=/dev/null"), "done");
    assert!(said.to("list=/dev").contains("urandom"), "{said:?}");
    assert_eq!(fs::metadata(stage.inside("new")).unwrap().uid(), USER);
}
