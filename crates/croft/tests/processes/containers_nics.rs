//! NICs of containers: their addresses, and those that come and go while the
//! container runs.

use std::path::Path;

use serde_json::Value;

use crate::images::IMAGE;
use crate::namespace::inside;
use crate::stage::{Stage, eventually};

impl Stage {
    /// `croft` with these words, which succeeds: what it prints.
    fn say(&self, words: &[&str]) -> String {
        let (code, said) = self.ask(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        said
    }

    /// A container on these networks that sleeps.
    fn start_on(&self, nets: &[&str]) {
        let mut words = vec!["run", "--container", "-d", "--name", &self.name];
        for net in nets {
            words.extend(["--net", net]);
        }
        words.extend([IMAGE, "sleep", "1000"]);
        self.say(&words);
    }

    /// The container's addresses, as `croft list` has them.
    fn addresses(&self) -> Vec<String> {
        let all: Value = serde_json::from_str(&self.say(&["list", "-o", "json"])).unwrap();
        let mut all = all.as_array().unwrap().iter();
        let known = all.find(|known| known["name"] == self.name.as_str());
        let addresses = known.unwrap()["addresses"].as_array().unwrap().iter();
        addresses
            .map(|address| address.as_str().unwrap().to_owned())
            .collect()
    }

    /// The names of its interfaces.
    fn interfaces(&self) -> Vec<String> {
        let (_, said) = self.exec(&["ls", "/sys/class/net"]);
        said.split_whitespace().map(str::to_owned).collect()
    }

    fn kept_nics(&self) -> Vec<String> {
        let known = self.known(&self.name).unwrap();
        let nics = known["config"]["nics"].as_array().unwrap().iter();
        nics.map(|nic| nic["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn a_container_has_the_user_network_when_nothing_is_said() {
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    let words = ["run", "--container", "--rm", IMAGE, "ls", "/sys/class/net"];
    let (code, said) = stage.ask(&words);
    assert_eq!(code, Some(0), "{said}");
    if Path::new("/usr/bin/pasta").exists() {
        assert_eq!(said, "eth0\nlo\n");
    } else {
        assert!(said.contains("croft: no network: "), "{said}");
        assert!(said.starts_with("lo\n"), "{said}");
    }
}

#[test]
fn nics_come_and_go_while_a_container_runs() {
    if !inside("containers_nics::nics_come_and_go_while_a_container_runs") {
        return;
    }
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    stage.say(&["network", "create", "one", "--ipv4", "10.81.1.0/24"]);
    stage.say(&["network", "create", "two", "--ipv4", "10.81.2.0/24"]);
    stage.start_on(&["one,ipv4=10.81.1.7"]);
    // Its interface's addresses, of both versions.
    let first = stage.addresses();
    assert!(first.contains(&"10.81.1.7".to_owned()), "{first:?}");
    assert!(first.iter().all(|address| !address.starts_with("127.")));
    let shown = stage.say(&["show", &stage.name]);
    assert!(shown.contains("10.81.1.7"), "{shown}");
    assert!(shown.contains("net0") && shown.contains("one, "), "{shown}");
    assert!(stage.say(&["list"]).contains("10.81.1.7"));

    // Another one: at once, with addresses and names, and kept.
    let name = stage.name.as_str();
    let attached = stage.say(&["nic", "attach", name, "--net", "two,ipv4=10.81.2.9"]);
    assert_eq!(attached, "net1\n");
    assert_eq!(stage.interfaces(), ["eth0", "eth1", "lo"]);
    assert!(stage.addresses().contains(&"10.81.2.9".to_owned()));
    assert!(stage.exec(&["cat", "/etc/hosts"]).1.contains("10.81.2.9 "));
    assert!(stage.say(&["show", name]).contains("two, "));
    assert_eq!(stage.kept_nics(), ["net0", "net1"]);
    // One that is there until the next start only.
    let live = ["nic", "attach", name, "--live-only", "--net", "one"];
    assert_eq!(stage.say(&live), "net2\n");
    assert!(stage.say(&["show", name]).contains("until the next start"));
    assert_eq!(stage.interfaces(), ["eth0", "eth1", "eth2", "lo"]);
    assert_eq!(stage.kept_nics(), ["net0", "net1"]);

    // The first one goes; the others stay what they are, also at the next
    // start.
    stage.say(&["nic", "detach", name, "net0"]);
    assert_eq!(stage.interfaces(), ["eth1", "eth2", "lo"]);
    assert!(!stage.addresses().contains(&"10.81.1.7".to_owned()));
    assert!(!stage.exec(&["cat", "/etc/hosts"]).1.contains("10.81.1.7"));
    assert_eq!(stage.kept_nics(), ["net1"]);
    let network: Value =
        serde_json::from_str(&stage.say(&["network", "show", "one", "-o", "json"])).unwrap();
    assert_eq!(
        network["attached"].as_array().unwrap().len(),
        1,
        "{network}"
    );
    stage.say(&["restart", "--timeout", "0", name]);
    eventually("it runs again", || stage.phase() == "running");
    assert_eq!(stage.interfaces(), ["eth1", "lo"]);
    eventually("it has its address", || {
        stage.addresses().contains(&"10.81.2.9".to_owned())
    });

    // What is wrong is said, and changes nothing.
    for (words, why) in [
        (&["nic", "detach", name, "net7"][..], "there is no NIC"),
        (&["nic", "detach", name, "disk0"], "there is no NIC"),
        (&["nic", "attach", name, "--net", "none-such"], "none-such"),
        (
            &["nic", "attach", name, "--net", "bridge=br-none"],
            "br-none",
        ),
    ] {
        let (code, said) = stage.ask(words);
        assert!(code != Some(0) && said.contains(why), "{words:?}: {said}");
    }
    assert_eq!(stage.interfaces(), ["eth1", "lo"]);
    assert_eq!(stage.kept_nics(), ["net1"]);

    // A shell completes their names.
    let complete = |words: &[&str]| {
        let index = words.len().to_string();
        let output = stage
            .croft(&[&["--", "croft"], words].concat())
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index)
            .env("_CLAP_IFS", "\n")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete(&["network", "show", "on"]), "one");
    assert_eq!(complete(&["network", "delete", "one", "tw"]), "two");
    assert_eq!(complete(&["run", "--net", "t"]), "two");
    assert_eq!(complete(&["nic", "attach", name, "--net", "us"]), "user");

    // The user network comes and goes too.
    if Path::new("/usr/bin/pasta").exists() {
        assert_eq!(
            stage.say(&["nic", "attach", name, "--net", "user"]),
            "net0\n"
        );
        assert_eq!(stage.interfaces(), ["eth0", "eth1", "lo"]);
        stage.say(&["nic", "detach", name, "net0"]);
        assert_eq!(stage.interfaces(), ["eth1", "lo"]);
        assert_eq!(
            stage.say(&["nic", "attach", name, "--net", "user"]),
            "net0\n"
        );
    }
    stage.say(&["delete", "--force", name]);
    for network in ["one", "two"] {
        stage.say(&["network", "delete", network]);
    }
    stage.assert_nothing_left();
}

#[test]
fn an_instance_that_does_not_run_has_no_address() {
    if !inside("containers_nics::an_instance_that_does_not_run_has_no_address") {
        return;
    }
    let stage = Stage::new();
    if !stage.with_image() {
        return;
    }
    stage.say(&["network", "create", "one", "--ipv4", "10.81.1.0/24"]);
    stage.start_on(&["one"]);
    assert!(!stage.addresses().is_empty());
    stage.done(&["kill"]);
    assert_eq!(stage.addresses(), Vec::<String>::new());
    stage.done(&["delete"]);
    stage.start_on(&["none"]);
    assert_eq!(stage.addresses(), Vec::<String>::new());
    stage.say(&["delete", "--force", &stage.name]);
}
