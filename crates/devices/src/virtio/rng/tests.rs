use super::VirtioRng;
use crate::device::Device;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, Rig};

#[test]
fn buffers_are_filled() {
    let mut rig = Rig::new(VirtioRng);
    rig.bring_up(0, 1);
    let pieces = [(DATA, 1000, true), (DATA + 5000, 24, true)];
    assert_eq!(rig.request(0, &pieces), 1024);
    let (one, two) = (rig.bytes(DATA, 1000), rig.bytes(DATA + 5000, 24));
    // By chance once in 2^192 runs.
    assert!(two.iter().any(|b| *b != 0));
    assert!(one[976..].iter().any(|b| *b != 0));
    assert!(rig.bytes(DATA + 1000, 4000).iter().all(|b| *b == 0));
    rig.request(0, &pieces);
    assert_ne!(one, rig.bytes(DATA, 1000));
}

#[test]
fn requests_are_bounded() {
    let mut rig = Rig::new(VirtioRng);
    rig.bring_up(0, 1);
    assert_eq!(rig.request(0, &[(DATA, 1 << 20, true)]), 64 << 10);
    // Nothing to write to is no harm.
    assert_eq!(rig.request(0, &[(DATA, 16, false)]), 0);
    assert_eq!(rig.request(0, &[(DATA, 0, true)]), 0);
}

#[test]
fn state_round_trip() {
    let mut one = Rig::new(VirtioRng);
    one.bring_up(0, 1);
    one.request(0, &[(DATA, 16, true)]);
    one.device.pause();
    let mut two = Rig::with_ram(VirtioRng, one.ram.clone());
    two.device.pause();
    round_trip(&mut one.device, &mut two.device);
    refuses_newer(&mut two.device);
}
