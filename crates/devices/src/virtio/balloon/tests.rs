use std::sync::Arc;
use std::time::Duration;

use croft_memory::PAGE_SIZE;

use super::{BalloonHandle, VirtioBalloon};
use crate::device::Device;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, RAM, Rig, World};
use crate::virtio::transport::layout;

const STATISTICS: u64 = 1 << 1;
const POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;
/// Memory to give back.
const PAGES: u64 = 0x20_0000;
const PATIENCE: Duration = Duration::from_secs(120);

fn balloon() -> (Rig<VirtioBalloon>, BalloonHandle) {
    let device = VirtioBalloon::new(RAM, "balloon0", Arc::new(World::default()));
    let handle = device.handle();
    (Rig::new(device), handle)
}

/// Fills `count` pages at [`PAGES`].
fn fill(rig: &Rig<VirtioBalloon>, count: usize) {
    let bytes = vec![0xAA; count * PAGE_SIZE as usize];
    rig.ram.write(PAGES, &bytes).unwrap();
}

/// Which of the first `count` pages at [`PAGES`] are zeros now.
fn gone(rig: &Rig<VirtioBalloon>, count: u64) -> Vec<u64> {
    let is_gone = |page: &u64| {
        let bytes = rig.bytes(PAGES + page * PAGE_SIZE, PAGE_SIZE as usize);
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        assert!(zeros == 0 || zeros == bytes.len());
        zeros > 0
    };
    (0..count).filter(is_gone).collect()
}

fn numbers(rig: &Rig<VirtioBalloon>, pages: &[u32]) -> u32 {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    rig.ram.write(DATA, &bytes).unwrap();
    bytes.len() as u32
}

#[test]
fn inflated_pages_go_and_come_back() {
    let (mut rig, handle) = balloon();
    rig.use_msix(5);
    rig.bring_up(0, 2);
    handle.set_target(3 * PAGE_SIZE + 1);
    assert_eq!(rig.world.take_messages().len(), 1);
    assert_eq!(rig.read(layout::DEVICE, 4), 3);
    handle.set_target(3 * PAGE_SIZE);
    assert!(rig.world.take_messages().is_empty());
    fill(&rig, 6);
    let first = (PAGES / PAGE_SIZE) as u32;
    // In any order, once or more.
    let len = numbers(&rig, &[first + 4, first + 1, first + 2, first + 1]);
    assert_eq!(
        rig.request(0, &[(DATA, 6, false), (DATA + 6, len - 6, false)]),
        0
    );
    assert_eq!(gone(&rig, 6), [1, 2, 4]);
    rig.write(layout::DEVICE + 4, 4, 3);
    assert_eq!(handle.report().actual, 3 * PAGE_SIZE);
    fill(&rig, 6);
    rig.request(1, &[(DATA, len, false)]);
    assert!(gone(&rig, 6).is_empty());
    // A reset takes the driver's balloon, not the operator's wish.
    rig.reset();
    let report = handle.report();
    assert_eq!((report.target, report.actual), (3 * PAGE_SIZE, 0));
}

#[test]
fn the_target_is_bounded_by_memory() {
    let (mut rig, handle) = balloon();
    handle.set_target(u64::MAX);
    assert_eq!(rig.read(layout::DEVICE, 4), RAM / PAGE_SIZE);
    // Target and the reserved word are not the driver's.
    rig.write(layout::DEVICE, 8, u64::MAX);
    rig.write(layout::DEVICE + 8, 8, u64::MAX);
    assert_eq!(
        rig.read(layout::DEVICE, 8),
        (0xFFFF_FFFF << 32) | (RAM / PAGE_SIZE)
    );
    assert_eq!(rig.read(layout::DEVICE + 8, 8), 0xFFFF_FFFF << 32);
    assert_eq!(rig.read(layout::DEVICE + 16, 8), 0);
}

#[test]
fn discarded_code_is_forgotten() {
    let (mut rig, _) = balloon();
    rig.bring_up(REPORTING | STATISTICS, 4);
    let ram = rig.ram.clone();
    let (table, _) = ram.table(PAGES).unwrap();
    let index = (PAGES / PAGE_SIZE) as usize;
    let before = table.watch_code(index, 0, 15);
    rig.request(3, &[(PAGES, 4096, true)]);
    assert_ne!(table.watch_code(index, 0, 15), before);
}

#[test]
fn reported_memory_goes_back() {
    let (mut rig, handle) = balloon();
    // Linux counts the queues without gaps, and may do without statistics.
    for (features, queue) in [(STATISTICS, 3), (STATISTICS, 4), (0, 2)] {
        rig.bring_up(REPORTING | features, queue + 1);
        fill(&rig, 8);
        // Only whole pages.
        let pieces = [(PAGES, 8192, true), (PAGES + 3 * 4096 + 1, 8192, true)];
        assert_eq!(rig.request(queue, &pieces), 0);
        assert_eq!(gone(&rig, 8), [0, 1, 4]);
        rig.reset();
    }
    assert_eq!(handle.report().reported, 9 * PAGE_SIZE);
}

#[test]
fn poisoned_pages_stay_unless_zeros_will_do() {
    let (mut rig, handle) = balloon();
    for (poison, expected) in [(0xAAAA_AAAA, 0), (0, PAGE_SIZE)] {
        rig.bring_up(REPORTING | POISON, 5);
        rig.write(layout::DEVICE + 12, 4, poison);
        fill(&rig, 1);
        rig.request(4, &[(PAGES, 4096, true)]);
        assert_eq!(handle.report().reported, expected);
        assert_eq!(gone(&rig, 1).is_empty(), expected == 0);
        rig.reset();
    }
}

#[test]
fn what_is_not_memory_stops_the_device() {
    let (mut rig, _) = balloon();
    for number in [RAM / PAGE_SIZE, 0xFFFF_FFFF] {
        rig.bring_up(0, 2);
        let len = numbers(&rig, &[1 << 8, number as u32]);
        let head = rig.chain(0, &[(DATA, len, false)]);
        rig.offer(0, head);
        rig.notify(0);
        rig.expect_failure("is not in RAM");
    }
    rig.bring_up(0, 2);
    let head = rig.chain(0, &[(0, 1 << 20, false)]);
    rig.offer(0, head);
    rig.notify(0);
    rig.expect_failure("more pages than it may");
    rig.bring_up(REPORTING, 5);
    let head = rig.chain(4, &[(RAM - 4096, 8192, true)]);
    rig.offer(4, head);
    rig.notify(4);
    rig.expect_failure("is not in RAM");
}

#[test]
fn statistics_are_asked_for() {
    let (mut rig, handle) = balloon();
    assert_eq!(handle.statistics(Duration::ZERO), None);
    rig.bring_up(STATISTICS, 3);
    let put = |rig: &mut Rig<VirtioBalloon>, free: u64| {
        let mut bytes = Vec::new();
        for (tag, value) in [(4u16, free), (5, 1000), (777, 1)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        rig.ram.write(DATA, &bytes).unwrap();
        let head = rig.chain(2, &[(DATA, bytes.len() as u32 + 3, false)]);
        rig.offer(2, head);
        rig.notify(2);
    };
    // The question from before the driver came is still open.
    put(&mut rig, 1);
    rig.used(2);
    put(&mut rig, 2);
    rig.used(2);
    // Nobody asks: the buffer stays where it is.
    put(&mut rig, 3);
    rig.device.pause();
    rig.device.resume();
    assert_eq!(rig.used_index(2), 2);
    let asking = std::thread::spawn(move || handle.statistics(PATIENCE).unwrap());
    rig.used(2);
    put(&mut rig, 4);
    rig.used(2);
    let answer = asking.join().unwrap();
    assert_eq!((answer.free, answer.total), (Some(4), Some(1000)));
    assert_eq!(answer.caches, None);
}

#[test]
fn state_round_trip_and_its_limits() {
    let (mut one, handle) = balloon();
    one.bring_up(STATISTICS | REPORTING, 4);
    handle.set_target(5 * PAGE_SIZE);
    one.write(layout::DEVICE + 4, 4, 2);
    one.device.pause();
    let device = VirtioBalloon::new(RAM, "balloon0", Arc::new(World::default()));
    let restored = device.handle();
    let mut two = Rig::with_ram(device, one.ram.clone());
    two.device.pause();
    round_trip(&mut one.device, &mut two.device);
    assert_eq!(restored.report().target, 5 * PAGE_SIZE);
    assert_eq!(restored.report().actual, 2 * PAGE_SIZE);
    refuses_newer(&mut two.device);
    let small = VirtioBalloon::new(4 * PAGE_SIZE, "balloon0", Arc::new(World::default()));
    let mut small = Rig::with_ram(small, one.ram.clone());
    small.device.pause();
    let refused = small.device.restore(&one.device.save()).unwrap_err();
    assert!(refused.to_string().contains("memory"), "{refused}");
}
