use std::collections::{BTreeMap, HashSet};

use croft_api::container::{ContainerLimits, IoLimit, Volume, VolumeSource};
use oci_spec::runtime::Capability;

use super::*;

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "web_1".to_owned(),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), "true".to_owned()],
        env: vec!["PATH=/bin".to_owned(), "A=b".to_owned()],
        ids: Some(IdRange {
            first: 500_000,
            count: 65_536,
        }),
        ..ContainerSpec::default()
    }
}

fn described(container: &ContainerSpec, user: &User) -> Spec {
    let given = Given {
        container,
        user,
        files: &[("/var/x/hosts".into(), "/etc/hosts")],
        volumes: &["/srv/data".into()],
        devices: &[HostDevice {
            path: "/dev/fuse".into(),
            block: false,
            major: 10,
            minor: 229,
            access: "rw".to_owned(),
        }],
        disks: &[Disk { major: 8, minor: 0 }],
        group: Path::new("/croft/web_1"),
        maker: None,
        unified_memory: true,
        profile: None,
    };
    describe(&given).unwrap()
}

fn mount_of<'a>(spec: &'a Spec, destination: &str) -> &'a [String] {
    let mut mounts = spec.mounts().as_ref().unwrap().iter();
    let found = mounts.find(|mount| mount.destination() == Path::new(destination));
    found.unwrap().options().as_ref().unwrap()
}

#[test]
fn an_application_gets_what_its_image_says_and_no_more() {
    let container = container();
    let spec = described(&container, &User::root());
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &container.command);
    assert_eq!(
        process.env().as_ref().unwrap(),
        &["PATH=/bin", "A=b", "HOSTNAME=web-1", "HOME=/root"]
    );
    assert_eq!(process.cwd(), Path::new("/"));
    assert_eq!(process.terminal(), Some(false));
    let rights = process.capabilities().as_ref().unwrap();
    assert!(
        !rights
            .bounding()
            .as_ref()
            .unwrap()
            .contains(&Capability::SysAdmin)
    );
    assert_eq!(rights.bounding(), rights.effective());
    let linux = spec.linux().as_ref().unwrap();
    let mapping = linux.uid_mappings().as_ref().unwrap();
    assert_eq!(
        (mapping[0].container_id(), mapping[0].host_id()),
        (0, 500_000)
    );
    assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
    assert!(mount_of(&spec, "/sys/fs/cgroup").contains(&"ro".to_owned()));
    assert!(mount_of(&spec, "/etc/hosts").contains(&"rw".to_owned()));
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .as_ref()
        .unwrap();
    assert!(!rules[0].allow());
    assert_eq!(rules.last().unwrap().minor(), Some(229));
    assert!(linux.seccomp().is_some());
    for masked in ["/proc/kcore", "/sys/firmware"] {
        let paths = linux.masked_paths().as_ref().unwrap();
        assert!(paths.iter().any(|path| path == masked));
    }
    assert!(
        linux
            .readonly_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/sys".to_owned())
    );
}

#[test]
fn a_user_has_no_rights_but_what_set_id_programs_give() {
    let user = User {
        uid: 1000,
        gid: 1000,
        groups: vec![27],
        home: "/home/a".to_owned(),
    };
    let spec = described(&container(), &user);
    let process = spec.process().as_ref().unwrap();
    let rights = process.capabilities().as_ref().unwrap();
    assert!(rights.effective().as_ref().unwrap().is_empty());
    assert!(!rights.bounding().as_ref().unwrap().is_empty());
    assert_eq!(process.user().uid(), 1000);
    assert!(
        process
            .env()
            .as_ref()
            .unwrap()
            .contains(&"HOME=/home/a".to_owned())
    );
}

#[test]
fn a_system_may_manage_itself() {
    let mut container = container();
    container.role = ContainerRole::System;
    container.tty = true;
    container.cap_drop = vec!["SYS_NICE".to_owned()];
    let spec = described(&container, &User::root());
    let process = spec.process().as_ref().unwrap();
    let env = process.env().as_ref().unwrap();
    assert!(env.contains(&"container=croft".to_owned()) && env.contains(&"TERM=linux".to_owned()));
    let rights = process.capabilities().as_ref().unwrap();
    let bounding = rights.bounding().as_ref().unwrap();
    assert!(bounding.contains(&Capability::SysAdmin));
    assert!(!bounding.contains(&Capability::SysNice));
    assert!(!bounding.contains(&Capability::SysModule));
    assert!(mount_of(&spec, "/sys/fs/cgroup").contains(&"rw".to_owned()));
    assert!(mount_of(&spec, "/run").contains(&"nosuid".to_owned()));
}

#[test]
fn capabilities_are_added_and_dropped_by_name() {
    let mut container = container();
    container.cap_drop = vec!["ALL".to_owned()];
    container.cap_add = vec!["CAP_NET_ADMIN".to_owned(), "CHOWN".to_owned()];
    assert_eq!(
        capabilities(&container).unwrap(),
        HashSet::from([Capability::NetAdmin, Capability::Chown])
    );
    container.cap_add = vec!["NET_EVERYTHING".to_owned()];
    assert!(capabilities(&container).unwrap_err().contains("NET_ADMIN"));
}

#[test]
fn limits_of_processes_are_named_and_in_order() {
    let mut container = container();
    container.rlimits = BTreeMap::from([("nofile".to_owned(), (10, 20))]);
    let process = process(&container, &User::root()).unwrap();
    assert_eq!(process.rlimits().as_ref().unwrap()[0].hard(), 20);
    for bad in [("nofile", (2, 1)), ("files", (1, 1))] {
        container.rlimits = BTreeMap::from([(bad.0.to_owned(), bad.1)]);
        assert!(super::process(&container, &User::root()).is_err());
    }
}

#[test]
fn volumes_are_bound_and_read_only_where_said() {
    let mut container = container();
    container.volumes = vec![Volume {
        source: VolumeSource::Path("/srv/data".into()),
        destination: "/data".to_owned(),
        read_only: true,
    }];
    let spec = described(&container, &User::root());
    assert!(mount_of(&spec, "/data").contains(&"ro".to_owned()));
}

#[test]
fn limits_are_the_ocis() {
    let all = ContainerLimits {
        cpus: Some(1500),
        cpu_weight: Some(100),
        cpuset: Some("0-1".to_owned()),
        memory: Some(64 << 20),
        memory_high: Some(48 << 20),
        swap: Some(0),
        pids: Some(100),
        io_weight: Some(10_000),
        io: vec![IoLimit {
            read_bytes: Some(1 << 20),
            ..IoLimit::default()
        }],
    };
    let disks = [Disk {
        major: 8,
        minor: 16,
    }];
    let made = resources::limits(&all, &disks, true).unwrap();
    let cpu = made.cpu().as_ref().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
    let memory = made.memory().as_ref().unwrap();
    assert_eq!(memory.limit(), Some(64 << 20));
    assert_eq!(memory.swap(), Some(64 << 20));
    assert_eq!(
        made.unified().as_ref().unwrap()["memory.high"],
        (48 << 20).to_string()
    );
    assert_eq!(made.pids().as_ref().unwrap().limit(), 100);
    let io = made.block_io().as_ref().unwrap();
    assert_eq!(io.weight(), Some(1000));
    let throttle = io.throttle_read_bps_device().as_ref().unwrap();
    assert_eq!((throttle[0].minor(), throttle[0].rate()), (16, 1 << 20));
    assert!(io.throttle_write_bps_device().as_ref().unwrap().is_empty());
    // What is taken away has no limit any more.
    let none = resources::limits(&ContainerLimits::default(), &[], false).unwrap();
    assert_eq!(none.memory().as_ref().unwrap().limit(), Some(-1));
    assert_eq!(none.cpu().as_ref().unwrap().quota(), Some(-1));
    assert_eq!(none.pids().as_ref().unwrap().limit(), -1);
    let high = ContainerLimits {
        memory_high: Some(1 << 20),
        ..ContainerLimits::default()
    };
    let old = resources::limits(&high, &[], false).unwrap();
    assert_eq!(old.memory().as_ref().unwrap().reservation(), Some(1 << 20));
}

#[test]
fn weights_come_back() {
    for weight in [1u16, 2, 50, 100, 101, 5000, 9_999, 10_000] {
        let limits = ContainerLimits {
            cpu_weight: Some(weight),
            ..ContainerLimits::default()
        };
        let made = resources::limits(&limits, &[], true).unwrap();
        let shares = made.cpu().as_ref().unwrap().shares().unwrap();
        assert_eq!(1 + (shares - 2) * 9_999 / 262_142, u64::from(weight));
    }
}

#[test]
fn a_volume_with_a_name_has_the_ids_of_containers() {
    let volume = |source| Volume {
        source,
        destination: "/data".to_owned(),
        read_only: true,
    };
    let mut container = container();
    container.volumes = vec![volume(VolumeSource::Named("db".to_owned()))];
    let spec = described(&container, &User::root());
    assert_eq!(
        mount_of(&spec, "/data"),
        ["rbind", "rprivate", "ro", "idmap"]
    );
    container.volumes = vec![volume(VolumeSource::Path("/srv".into()))];
    let spec = described(&container, &User::root());
    assert_eq!(mount_of(&spec, "/data"), ["rbind", "rprivate", "ro"]);
    // Ids that are the host's are so already.
    container.volumes = vec![volume(VolumeSource::Named("db".to_owned()))];
    container.ids = None;
    let spec = described(&container, &User::root());
    assert_eq!(mount_of(&spec, "/data"), ["rbind", "rprivate", "ro"]);
}
