//! Users without privilege who have subordinate ids (subuid(5)), and control
//! groups of version 2 that systemd has given them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use crate::stage::{AWAIT_THEM, Stage, stage};

/// How many subordinate ids a container here has.
const IDS: u32 = 65_536;
/// What a service does whose groups are its own: those above groups with
/// controllers have no processes.
const TO_ITS_OWN: &str = "
    group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
    mkdir \"$group/own\" && echo $$ >\"$group/own/cgroup.procs\" && exec \"$@\"\n";

/// Somebody with subordinate ids.
struct User {
    uid: u32,
    gid: u32,
    /// The first subordinate ids.
    first: (u32, u32),
}

impl User {
    /// Somebody of this host; `None` if nobody has any: it says so.
    fn find() -> Option<Self> {
        let mappers = ["newuidmap", "newgidmap"];
        let missing = |one: &&&str| !Path::new("/usr/bin").join(one).exists();
        if let Some(missing) = mappers.iter().find(missing) {
            eprintln!("skipped: {missing} is not installed");
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let found = users.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields.as_slice() else {
                return None;
            };
            let (uid, gid): (u32, u32) = (uid.parse().ok()?, gid.parse().ok()?);
            let first = |file| given(file, name, uid);
            (uid != 0).then_some(())?;
            Some(User {
                uid,
                gid,
                first: (first("/etc/subuid")?, first("/etc/subgid")?),
            })
        });
        if found.is_none() {
            eprintln!("skipped: no user of this host has {IDS} subordinate ids");
        }
        found
    }

    /// Root is the user, all others are subordinate.
    fn map(&self, stage: &mut Stage) {
        let map = |own: u32, first: u32| {
            json!([
                { "containerID": 0, "hostID": own, "size": 1 },
                { "containerID": 1, "hostID": first, "size": IDS - 1 }
            ])
        };
        stage.spec["linux"]["uidMappings"] = map(self.uid, self.first.0);
        stage.spec["linux"]["gidMappings"] = map(self.gid, self.first.1);
        stage.namespace(json!({ "type": "user" }));
    }
}

/// First of the ids that a file gives to a user.
fn given(file: &str, name: &str, uid: u32) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (who, rest) = line.split_once(':')?;
        let (first, count) = rest.split_once(':')?;
        let own = who == name || who == uid.to_string();
        (own && count.parse::<u32>().ok()? >= IDS).then_some(first.parse().ok()?)
    })
}

#[test]
fn subordinate_ids_are_a_container_s() {
    let Some(mut stage) = stage() else { return };
    let Some(user) = User::find() else { return };
    user.map(&mut stage);
    fs::set_permissions(stage.inside("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    let joins = stage.path("process");
    let mut process = stage.spec["process"].clone();
    process["user"] = json!({ "uid": 33, "gid": 34 });
    process["args"] = json!(["/bin/driver", "inside", "write=/tmp/joined"]);
    fs::write(&joins, process.to_string()).unwrap();
    stage.spec["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    stage.spec["process"]["args"] = json!([
        "/bin/driver",
        "inside",
        "ids",
        "read=/proc/self/gid_map",
        "write=/tmp/new",
        "stat=/tmp/new",
        "stat=/etc",
        "write=/dev/null",
        AWAIT_THEM
    ]);
    let joins = joins.to_str().unwrap();
    stage.give_to((user.uid, user.gid));
    let options = stage.joined_by(&[joins]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let said = stage.run_as((user.uid, user.gid), &[], &options);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.to("ids"), "Uid 5 5 5 5; Gid 6 6 6 6; Groups 7");
    let map = said
        .to("read=/proc/self/gid_map")
        .split_whitespace()
        .count();
    assert_eq!(map, 6, "{said:?}");
    assert!(said.to("stat=/tmp/new").contains(" 5:6 "), "{said:?}");
    assert!(said.to("stat=/etc").contains(" 0:0 "), "{said:?}");
    assert_eq!(said.to("write=/dev/null"), "done");
    assert_eq!(said.to("write=/tmp/joined"), "done", "{said:?}");
    for (name, ids) in [("tmp/new", (5, 6)), ("tmp/joined", (33, 34))] {
        let found = fs::metadata(stage.inside(name)).unwrap();
        let wanted = (user.first.0 + ids.0 - 1, user.first.1 + ids.1 - 1);
        assert_eq!((found.uid(), found.gid()), wanted, "{name}");
    }
}

#[test]
fn ids_of_others_are_refused() {
    let Some(mut stage) = stage() else { return };
    let Some(mut user) = User::find() else { return };
    user.first.0 += IDS;
    user.map(&mut stage);
    stage.spec["process"]["args"] = json!(["/bin/driver", "inside", "pid"]);
    stage.give_to((user.uid, user.gid));
    let said = stage.run_as((user.uid, user.gid), &[], &[]);
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.errors.contains("newuidmap refuses"), "{said:?}");
}

#[test]
fn delegated_groups_limit_a_user_s_container() {
    let Some(mut stage) = stage() else { return };
    let Some(user) = User::find() else { return };
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !unified || !Path::new("/run/systemd/system").exists() {
        eprintln!("skipped: needs systemd, and control groups of version 2 only");
        return;
    }
    user.map(&mut stage);
    stage.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev"]
    }));
    stage.spec["linux"]["resources"] = json!({
        "pids": { "limit": 17 },
        "memory": { "limit": 64 << 20 }
    });
    let questions = [
        "read=/proc/self/cgroup",
        "read=/sys/fs/cgroup/pids.max",
        "read=/sys/fs/cgroup/memory.max",
        "write=/sys/fs/cgroup/pids.max",
        "list=/sys/fs/cgroup",
    ];
    let mut words = vec!["/bin/driver", "inside"];
    words.extend(questions);
    stage.spec["process"]["args"] = json!(words);
    let ids = [format!("--uid={}", user.uid), format!("--gid={}", user.gid)];
    let mut service: Vec<&str> = "systemd-run --quiet --wait --collect --pipe"
        .split(' ')
        .collect();
    service.extend(ids.iter().map(String::as_str));
    // In a file: systemd has a meaning of its own for dollars.
    let script = stage.path("to-its-own");
    fs::write(&script, TO_ITS_OWN).unwrap();
    service.extend(["--property=Delegate=yes", "sh", script.to_str().unwrap()]);
    stage.give_to((user.uid, user.gid));
    let said = stage.run_as((0, 0), &service, &["--group", "delegated"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.to("read=/proc/self/cgroup"), "0::/", "{said:?}");
    assert_eq!(said.to("read=/sys/fs/cgroup/pids.max"), "17", "{said:?}");
    let memory = (64_u64 << 20).to_string();
    assert_eq!(said.to("read=/sys/fs/cgroup/memory.max"), memory);
    assert!(said.to("list=/sys/fs/cgroup").contains("cgroup.procs"));
}
