//! Who a program is, and what it may do.

use serde_json::json;

use crate::stage::stage;

#[test]
fn it_is_alone_and_has_little() {
    let Some(mut stage) = stage() else { return };
    let said = stage.ask(&[
        "pid",
        "hostname",
        "rights",
        "fds",
        "umask",
        "list=/sys/class/net",
        "exit=7",
    ]);
    assert_eq!(said.code, Some(7), "{said:?}");
    assert_eq!(said.to("pid"), "1");
    assert_eq!(said.to("hostname"), "inner");
    // CHOWN is 0, KILL 5.
    let bits = "0000000000000021";
    let rights = said.to("rights");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(rights.contains(&format!("{set} {bits}")), "{rights}");
    }
    assert!(rights.contains("CapAmb 0000000000000000"), "{rights}");
    assert!(rights.contains("NoNewPrivs 1"), "{rights}");
    // The fourth is the list's own.
    assert_eq!(said.to("fds"), "0 1 2 3");
    assert_eq!(said.to("umask"), "Umask 0022");
    assert_eq!(said.to("list=/sys/class/net"), "lo");
}

#[test]
fn users_have_their_ids_home_and_ambient_rights() {
    let Some(mut stage) = stage() else { return };
    std::fs::write(stage.inside("etc/passwd"), "u:x:7:8::/home/u:/bin/sh\n").unwrap();
    stage.spec["process"]["user"] =
        json!({ "uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o77 });
    let kill = json!(["CAP_KILL"]);
    stage.spec["process"]["capabilities"]["inheritable"] = kill.clone();
    stage.spec["process"]["capabilities"]["ambient"] = kill;
    stage.spec["process"]["cwd"] = json!("/work/here");
    let said = stage.ask(&["ids", "rights", "umask", "env=HOME", "cwd"]);
    assert_eq!(said.to("ids"), "Uid 7 7 7 7; Gid 8 8 8 8; Groups 9 10");
    assert!(
        said.to("rights").contains("CapEff 0000000000000020"),
        "{said:?}"
    );
    assert_eq!(said.to("umask"), "Umask 0077");
    assert_eq!(said.to("env=HOME"), "/home/u");
    assert_eq!(said.to("cwd"), "/work/here");
}

#[test]
fn filters_are_put_on_with_and_without_the_promise() {
    let Some(mut stage) = stage() else { return };
    stage.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{
            "names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38
        }, {
            "names": ["readlink", "readlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1
        }]
    });
    for promise in [true, false] {
        stage.spec["process"]["noNewPrivileges"] = json!(promise);
        let said = stage.ask(&["rights", "link=/proc/self/exe"]);
        assert!(said.to("rights").contains("Seccomp 2"), "{said:?}");
        assert!(
            said.to("link=/proc/self/exe").contains("not permitted"),
            "{said:?}"
        );
    }
}

#[test]
fn limits_and_settings_arrive() {
    let Some(mut stage) = stage() else { return };
    stage.spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 40, "hard": 50 }]);
    stage.spec["process"]["oomScoreAdj"] = json!(321);
    stage.spec["domainname"] = json!("dom");
    stage.spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "9000" });
    let said = stage.ask(&[
        "read=/proc/self/limits",
        "read=/proc/self/oom_score_adj",
        "read=/proc/sys/net/ipv4/ip_forward",
        "read=/proc/sys/kernel/msgmax",
        "uname",
    ]);
    let limits: Vec<&str> = said
        .to("read=/proc/self/limits")
        .split_whitespace()
        .collect();
    let at = limits.iter().position(|word| *word == "open").unwrap();
    assert_eq!(limits[at + 2..at + 4], ["40", "50"]);
    assert_eq!(said.to("read=/proc/self/oom_score_adj"), "321");
    assert_eq!(said.to("read=/proc/sys/net/ipv4/ip_forward"), "1");
    assert_eq!(said.to("read=/proc/sys/kernel/msgmax"), "9000");
    assert_eq!(said.to("uname"), "inner dom");
}

#[test]
fn clocks_can_be_ahead() {
    let Some(mut stage) = stage() else { return };
    stage.namespace(json!({ "type": "time" }));
    stage.spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 100_000_000 } });
    for own in [false, true] {
        if own {
            stage.own_ids();
        }
        let said = stage.ask(&["read=/proc/uptime"]);
        let text = said.to("read=/proc/uptime");
        let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!(seconds > 100_000_000.0, "{text}");
    }
}
