//! Whoever is killed at whatever point, the next reconcile leaves a whole
//! network or none.

use std::env;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use croft_network::NewNetwork;

use super::guest::{nic, wait};
use super::namespace::{host, inside, processes};
use super::{everything, networks, web};

const VICTIM: &str = "CROFT_TEST_VICTIM";
/// How many processes are killed.
const ROUNDS: u64 = 12;

fn dnsmasq() -> Vec<String> {
    processes("dnsmasq")
}

#[test]
fn a_killed_dnsmasq_comes_back() {
    if !inside("crashes::a_killed_dnsmasq_comes_back") {
        return;
    }
    let networks = web(|_| ());
    let before = dnsmasq();
    assert_eq!(before.len(), 1);
    host(&format!("kill -9 {}", before[0]));
    wait(|| dnsmasq().is_empty());
    networks.reconcile().unwrap();
    let after = dnsmasq();
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
    // It is the same one from then on.
    networks.reconcile().unwrap();
    assert_eq!(dnsmasq(), after);
    // Without its bridge it would listen to nothing.
    host("ip link del cr-web");
    networks.reconcile().unwrap();
    assert_eq!(dnsmasq().len(), 1);
    assert_ne!(dnsmasq(), after);
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
        // What it had started may go on for a moment.
        thread::sleep(Duration::from_millis(50));
        let faults = networks.reconcile().unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        let there = networks.names().unwrap();
        if there.is_empty() {
            assert_eq!(everything(), before, "round {round}");
            assert!(dnsmasq().is_empty());
            continue;
        }
        let network = networks.show(&name).unwrap();
        assert!(network.up && network.attached.is_empty(), "{network:?}");
        assert_eq!(dnsmasq().len(), 1);
        let mended = everything();
        networks.reconcile().unwrap();
        assert_eq!(everything(), mended);
        networks.delete(&name).unwrap();
        assert_eq!(everything(), before, "round {round}");
    }
}
