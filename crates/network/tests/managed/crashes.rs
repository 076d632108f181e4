//! Whoever is killed at whatever point, the next reconcile leaves a whole
//! network or none.

use std::env;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use croft_network::NewNetwork;

use super::guest::{nic, wait};
use super::namespace::{host, inside, processes};
use super::{assert_comes_to, everything, networks, web};

const VICTIM: &str = "CROFT_TEST_VICTIM";
/// How many processes are killed.
const ROUNDS: u64 = 12;

fn dnsmasq() -> Vec<String> {
    processes("dnsmasq")
}

/// Waits until there is one, which may have a parent for a moment; its number.
fn one_dnsmasq() -> String {
    wait(|| dnsmasq().len() == 1);
    dnsmasq().remove(0)
}

/// Waits until what a killed process had started is over: all processes that
/// are left but this one are servers of names. (Kernel threads are not seen in
/// here.)
fn wait_for_the_started() {
    wait(|| {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let others = entries.filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let is = |line: &str| status.lines().any(|one| one.starts_with(line));
            let rest = !is("State:\tZ") && !is("Name:\tdnsmasq");
            (rest && id != std::process::id()).then_some(id)
        });
        others.count() == 0
    });
}

#[test]
fn a_killed_dnsmasq_comes_back() {
    if !inside("crashes::a_killed_dnsmasq_comes_back") {
        return;
    }
    let networks = web(|_| ());
    let before = one_dnsmasq();
    host(&format!("kill -9 {before}"));
    wait(|| dnsmasq().is_empty());
    networks.reconcile().unwrap();
    let after = one_dnsmasq();
    assert_ne!(after, before);
    // It is the same one from then on.
    networks.reconcile().unwrap();
    assert_eq!(one_dnsmasq(), after);
    // Without its bridge it would listen to nothing.
    host("ip link del cr-web");
    networks.reconcile().unwrap();
    assert_ne!(one_dnsmasq(), after);
    assert!(host("ip addr show cr-web").contains("fe80::1/64"));
}

/// Changes networks without end, to be killed at it.
fn change_forever() {
    let networks = networks();
    let name = "web".parse().unwrap();
    for round in 0u32.. {
        // The process before was killed: all of it may be there or not.
        let _ = networks.create(&name, &NewNetwork::default());
        let instance = format!("i{}", round % 3).parse().unwrap();
        let attached = networks.attach(&instance, &nic(1, |_| ()), 1);
        if round % 2 == 0 {
            let _ = networks.detach(&instance, None);
        }
        drop(attached);
        let _ = networks.delete(&name);
    }
}

#[test]
fn whoever_is_killed_leaves_what_can_be_mended() {
    if env::var_os(VICTIM).is_some() {
        change_forever();
    }
    let test = "crashes::whoever_is_killed_leaves_what_can_be_mended";
    if !inside(test) {
        return;
    }
    let networks = networks();
    let name = "web".parse().unwrap();
    let before = everything();
    for round in 0..ROUNDS {
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", test])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(20 + round * 37 % 260));
        victim.kill().unwrap();
        victim.wait().unwrap();
        wait_for_the_started();
        let faults = networks.reconcile().unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        let there = networks.names().unwrap();
        if there.is_empty() {
            assert_comes_to(&before, &format!("round {round}"));
            assert!(dnsmasq().is_empty());
            continue;
        }
        let network = networks.show(&name).unwrap();
        assert!(network.up && network.attached.is_empty(), "{network:?}");
        one_dnsmasq();
        let mended = everything();
        networks.reconcile().unwrap();
        assert_comes_to(&mended, "mended twice");
        networks.delete(&name).unwrap();
        assert_comes_to(&before, &format!("round {round}"));
    }
}
