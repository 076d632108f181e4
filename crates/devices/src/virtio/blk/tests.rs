use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use croft_disk::{Disk, DiskError, IoMemory, RawDisk};
use proptest::prelude::*;

use super::{BlkOptions, FaultSink, Limits, OnError, VirtioBlk};
use crate::device::Device;
use crate::lock;
use crate::testing::{refuses_newer, round_trip};
use crate::virtio::testing::{DATA, QUEUE_LEN, Rig, World, wait};
use crate::virtio::transport::layout;

const SECTORS: u64 = 2048;
const FLUSH: u64 = 1 << 9;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const PAYLOAD: u64 = DATA + 0x1000;

/// A raw disk that counts and can fail.
struct Probe {
    raw: RawDisk,
    flushes: AtomicUsize,
    full: AtomicBool,
    discarded: Mutex<Vec<(u64, u64)>>,
}

impl Probe {
    fn new(read_only: bool) -> Arc<Self> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * 512).unwrap();
        Arc::new(Probe {
            raw: RawDisk::new(file, read_only).unwrap(),
            flushes: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            discarded: Mutex::default(),
        })
    }
}

impl Disk for Probe {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn is_read_only(&self) -> bool {
        self.raw.is_read_only()
    }

    fn read_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        self.raw.read_at(buffers, offset)
    }

    fn write_at(&self, buffers: &[IoMemory<'_>], offset: u64) -> Result<(), DiskError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(DiskError::Host {
                what: "write",
                offset,
                len: 0,
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        self.raw.write_at(buffers, offset)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.raw.flush()
    }

    fn resize(&self, size: u64) -> Result<(), DiskError> {
        self.raw.resize(size)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        lock(&self.discarded).push((offset, len));
        self.raw.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.raw.write_zeroes(offset, len, unmap)
    }
}

fn device(disk: &Arc<Probe>, queues: u16) -> VirtioBlk {
    device_with(disk, queues, OnError::Report, Limits::default()).0
}

#[derive(Default)]
struct Faults(AtomicUsize);

impl FaultSink for Faults {
    fn disk_failed(&self, error: &DiskError) {
        assert!(error.is_full());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn device_with(
    disk: &Arc<Probe>,
    queues: u16,
    on_error: OnError,
    limits: Limits,
) -> (VirtioBlk, Arc<Faults>) {
    let options = BlkOptions {
        queues,
        serial: "serial-no-1".into(),
        name: "disk0".into(),
        write_through: false,
        limits,
        on_error,
    };
    let faults = Arc::<Faults>::default();
    let log = Arc::<World>::default();
    let device = VirtioBlk::new(disk.clone(), options, log, faults.clone());
    (device, faults)
}

fn live(disk: &Arc<Probe>) -> Rig<VirtioBlk> {
    let mut rig = Rig::new(device(disk, 1));
    rig.bring_up(FLUSH, 1);
    rig
}

fn put_header(rig: &Rig<VirtioBlk>, kind: u32, sector: u64) {
    let mut header = Vec::from(kind.to_le_bytes());
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    rig.ram.write(HEADER, &header).unwrap();
    rig.ram.write(STATUS, &[0xEE]).unwrap();
}

/// A request with its data in one buffer; status and used length.
fn request(
    rig: &mut Rig<VirtioBlk>,
    queue: u16,
    (kind, sector): (u32, u64),
    data: u32,
    writable: bool,
) -> (u8, u32) {
    put_header(rig, kind, sector);
    let mut pieces = vec![(HEADER, 16, false)];
    if data > 0 {
        pieces.push((PAYLOAD, data, writable));
    }
    pieces.push((STATUS, 1, true));
    let used = rig.request(queue, &pieces);
    (rig.bytes(STATUS, 1)[0], used)
}

fn write(rig: &mut Rig<VirtioBlk>, sector: u64, data: &[u8]) -> u8 {
    rig.ram.write(PAYLOAD, data).unwrap();
    request(rig, 0, (1, sector), data.len() as u32, false).0
}

fn read(rig: &mut Rig<VirtioBlk>, sector: u64, len: u32) -> Vec<u8> {
    rig.ram.write(PAYLOAD, &vec![0xDD; len as usize]).unwrap();
    assert_eq!(request(rig, 0, (0, sector), len, true), (OK, len + 1));
    rig.bytes(PAYLOAD, len as usize)
}

/// A request that the host has no room for waits, is in a saved state, and is
/// done when there is room.
#[test]
fn a_full_host_stops_the_machine_and_loses_nothing() {
    for on_error in [OnError::StopIfFull, OnError::Stop] {
        let disk = Probe::new(false);
        let (device, faults) = device_with(&disk, 1, on_error, Limits::default());
        let mut rig = Rig::new(device);
        rig.bring_up(FLUSH, 1);
        disk.full.store(true, Ordering::Relaxed);
        rig.ram.write(PAYLOAD, &[0x5A; 512]).unwrap();
        put_header(&rig, 1, 7);
        let pieces = [
            (HEADER, 16, false),
            (PAYLOAD, 512, false),
            (STATUS, 1, true),
        ];
        let head = rig.chain(0, &pieces);
        rig.offer(0, head);
        rig.notify(0);
        let failed = |count| wait("failures", || faults.0.load(Ordering::Relaxed) >= count);
        failed(1);
        rig.device.pause();
        let before = faults.0.load(Ordering::Relaxed);
        // Still no room.
        rig.device.resume();
        failed(before + 1);
        rig.device.pause();
        assert_eq!(rig.used_index(0), 0);
        let state = rig.device.save();
        let mut two = Rig::with_ram(
            device_with(&disk, 1, on_error, Limits::default()).0,
            rig.ram.clone(),
        );
        two.device.pause();
        two.device.restore(&state).unwrap();
        two.take_over(&rig);
        drop(rig);
        disk.full.store(false, Ordering::Relaxed);
        two.device.resume();
        assert_eq!(two.used(0), (u32::from(head), 1));
        assert_eq!(two.bytes(STATUS, 1), [OK]);
        assert_eq!(read(&mut two, 7, 512), [0x5A; 512]);
    }
}

#[test]
fn limits_hold_and_nothing_waits_for_them() {
    let disk = Probe::new(false);
    let limited = |iops, bytes_per_second| {
        let limits = Limits {
            iops,
            bytes_per_second,
        };
        let (device, _) = device_with(&disk, 1, OnError::Report, limits);
        let mut rig = Rig::new(device);
        rig.bring_up(FLUSH, 1);
        rig
    };
    let mut rig = limited(Some(1), None);
    let start = Instant::now();
    for byte in [1, 2] {
        assert_eq!(write(&mut rig, 0, &[byte; 512]), OK);
    }
    assert!(start.elapsed() >= Duration::from_millis(500));
    // The second one is due after more than eight minutes.
    let mut rig = limited(None, Some(1));
    assert_eq!(write(&mut rig, 0, &[1; 512]), OK);
    put_header(&rig, 1, 1);
    let pieces = [
        (HEADER, 16, false),
        (PAYLOAD, 512, false),
        (STATUS, 1, true),
    ];
    let head = rig.chain(0, &pieces);
    rig.offer(0, head);
    rig.notify(0);
    rig.device.pause();
    rig.device.save();
    rig.device.resume();
    assert!(!rig.has_used(0));
    // A reset does not wait either.
    rig.reset();
    assert!(start.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_disk_that_grows_says_so() {
    let disk = Probe::new(false);
    let device = device(&disk, 1);
    let handle = device.handle();
    let mut rig = Rig::new(device);
    rig.use_msix(1);
    rig.bring_up(FLUSH, 1);
    rig.write(0x10, 2, 0);
    handle.resize((SECTORS + 8) * 512).unwrap();
    assert_eq!(rig.world.take_messages(), [(0xFEE0_0000, 0)]);
    assert_eq!(rig.read(layout::DEVICE, 8), SECTORS + 8);
    assert_eq!(write(&mut rig, SECTORS + 7, &[5; 512]), OK);
    assert_eq!(read(&mut rig, SECTORS + 7, 512), [5; 512]);
    assert!(handle.resize(SECTORS * 512).is_err());
    assert_eq!(rig.read(layout::DEVICE, 8), SECTORS + 8);
}

#[test]
fn the_configuration_tells_the_disk() {
    let mut rig = Rig::new(device(&Probe::new(false), 4));
    let mut at = |offset: u64, len: usize| rig.read(layout::DEVICE + offset, len);
    assert_eq!(at(0, 8), SECTORS);
    assert_eq!(at(12, 4), 254);
    assert_eq!(at(20, 4), 512);
    assert_eq!(at(34, 2), 4);
    assert_eq!(at(56, 1), 1);
    let bits = |features: u64| {
        (0..24)
            .filter(|b| features >> b & 1 != 0)
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(rig.offered()), [2, 6, 9, 10, 12, 13, 14]);
    let mut read_only = Rig::new(device(&Probe::new(true), 1));
    assert_eq!(bits(read_only.offered()), [2, 5, 6, 9, 10]);
    assert_eq!(read_only.config_read(2, 2), 0x1042);
}

#[test]
fn sectors_come_back() {
    let disk = Probe::new(false);
    let mut rig = live(&disk);
    let data: Vec<u8> = (0..4096u32).map(|n| (n * 7) as u8).collect();
    assert_eq!(write(&mut rig, 100, &data), OK);
    assert_eq!(read(&mut rig, 100, 4096), data);
    assert_eq!(read(&mut rig, 104, 512), data[2048..2560]);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 0);
    assert_eq!(request(&mut rig, 0, (4, 0), 0, false), (OK, 1));
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    assert_eq!(request(&mut rig, 0, (8, 0), 20, true), (OK, 21));
    assert_eq!(rig.bytes(PAYLOAD, 20), b"serial-no-1\0\0\0\0\0\0\0\0\0");
}

#[test]
fn any_framing_will_do() {
    let mut rig = live(&Probe::new(false));
    assert_eq!(write(&mut rig, 7, &[0x5A; 512]), OK);
    put_header(&rig, 0, 7);
    // The header in three parts; data and status in odd ones.
    let used = rig.request(
        0,
        &[
            (HEADER, 3, false),
            (HEADER + 3, 0, false),
            (HEADER + 3, 13, false),
            (PAYLOAD, 511, true),
            (PAYLOAD + 2000, 2, true),
        ],
    );
    assert_eq!(used, 513);
    assert_eq!(rig.bytes(PAYLOAD, 511), [0x5A; 511]);
    assert_eq!(rig.bytes(PAYLOAD + 2000, 2), [0x5A, OK]);
    // Header and data to write in one buffer.
    put_header(&rig, 1, 8);
    rig.ram.write(HEADER + 16, &[0xA5; 512]).unwrap();
    let status = PAYLOAD + 3000;
    rig.request(0, &[(HEADER, 16 + 512, false), (status, 1, true)]);
    assert_eq!(rig.bytes(status, 1), [OK]);
    assert_eq!(read(&mut rig, 8, 512), [0xA5; 512]);
}

#[test]
fn what_cannot_be_is_refused() {
    let mut rig = live(&Probe::new(false));
    for (kind, sector, len) in [
        (0, SECTORS, 512),
        (0, SECTORS - 1, 1024),
        (0, u64::MAX, 512),
        (0, u64::MAX / 512, 512),
        (0, 0, 100),
    ] {
        assert_eq!(
            request(&mut rig, 0, (kind, sector), len, true),
            (IOERR, 0),
            "{kind} {sector} {len}"
        );
    }
    assert_eq!(write(&mut rig, SECTORS, &[0; 512]), IOERR);
    assert_eq!(write(&mut rig, 0, &[0; 513]), IOERR);
    for kind in [2, 3, 5, 14, u32::MAX] {
        assert_eq!(request(&mut rig, 0, (kind, 0), 0, false).0, UNSUPP);
    }
    assert_eq!(read(&mut rig, SECTORS - 1, 512), [0; 512]);
}

#[test]
fn requests_without_header_or_status_stop_the_device() {
    let mut rig = live(&Probe::new(false));
    for pieces in [
        &[(HEADER, 15, false), (STATUS, 1, true)][..],
        &[(HEADER, 16, false)],
        &[(STATUS, 1, true)],
    ] {
        let head = rig.chain(0, pieces);
        rig.offer(0, head);
        rig.notify(0);
        rig.expect_failure("a request has no");
        rig.bring_up(FLUSH, 1);
    }
    assert_eq!(read(&mut rig, 0, 512), [0; 512]);
}

fn ranges(rig: &Rig<VirtioBlk>, ranges: &[(u64, u32, u32)]) -> u32 {
    let mut bytes = Vec::new();
    for (sector, count, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    rig.ram.write(PAYLOAD, &bytes).unwrap();
    bytes.len() as u32
}

#[test]
fn discard_and_write_zeroes() {
    let disk = Probe::new(false);
    let mut rig = live(&disk);
    let ask = |rig: &mut Rig<VirtioBlk>, kind: u32, list: &[(u64, u32, u32)]| {
        let len = ranges(rig, list);
        request(rig, 0, (kind, 0), len, false).0
    };
    for sector in 0..8 {
        assert_eq!(write(&mut rig, sector * 8, &[9; 4096]), OK);
    }
    assert_eq!(ask(&mut rig, 13, &[(0, 3, 0), (8, 8, 1)]), OK);
    assert_eq!(read(&mut rig, 0, 1536), [0; 1536]);
    assert_eq!(read(&mut rig, 3, 512), [9; 512]);
    assert_eq!(read(&mut rig, 8, 4096), [0; 4096]);
    assert_eq!(ask(&mut rig, 11, &[(16, 16, 0), (40, 8, 0)]), OK);
    assert_eq!(*lock(&disk.discarded), [(8192, 8192), (20480, 4096)]);
    assert_eq!(read(&mut rig, 32, 4096), [9; 4096]);
    for (kind, list, status) in [
        (11, vec![(0, 8, 1)], UNSUPP),
        (13, vec![(0, 8, 2)], UNSUPP),
        (11, vec![(SECTORS, 1, 0)], IOERR),
        (13, vec![(u64::MAX, u32::MAX, 0)], IOERR),
        (13, vec![(0, 8, 0), (SECTORS - 1, 2, 0)], IOERR),
        (11, vec![], IOERR),
        (11, vec![(0, 1, 0); 17], IOERR),
    ] {
        assert_eq!(ask(&mut rig, kind, &list), status, "{kind} {list:?}");
    }
    // Nothing of a request with one bad range was done.
    assert_eq!(read(&mut rig, 4, 512), [9; 512]);
    ranges(&rig, &[(0, 8, 0)]);
    assert_eq!(request(&mut rig, 0, (13, 0), 15, false).0, IOERR);
}

#[test]
fn read_only_disks_refuse_changes() {
    let disk = Probe::new(true);
    let mut rig = live(&disk);
    assert_eq!(write(&mut rig, 0, &[1; 512]), IOERR);
    for kind in [11, 13] {
        let len = ranges(&rig, &[(0, 8, 0)]);
        assert_eq!(request(&mut rig, 0, (kind, 0), len, false).0, IOERR);
    }
    assert_eq!(read(&mut rig, 0, 512), [0; 512]);
    assert_eq!(request(&mut rig, 0, (4, 0), 0, false).0, OK);
}

#[test]
fn a_full_host_is_an_error_for_the_guest() {
    let disk = Probe::new(false);
    let mut rig = live(&disk);
    assert_eq!(write(&mut rig, 0, &[1; 512]), OK);
    disk.full.store(true, Ordering::Relaxed);
    assert_eq!(write(&mut rig, 0, &[2; 512]), IOERR);
    assert_eq!(read(&mut rig, 0, 512), [1; 512]);
    disk.full.store(false, Ordering::Relaxed);
    assert_eq!(write(&mut rig, 0, &[2; 512]), OK);
}

#[test]
fn drivers_that_do_not_flush_get_it_written_through() {
    let disk = Probe::new(false);
    let mut rig = Rig::new(device(&disk, 1));
    rig.bring_up(0, 1);
    assert_eq!(write(&mut rig, 0, &[1; 512]), OK);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn queues_work_side_by_side() {
    let disk = Probe::new(false);
    let mut rig = Rig::new(device(&disk, 4));
    rig.bring_up(FLUSH, 4);
    let mut heads = Vec::new();
    for queue in 0..4u64 {
        let at = DATA + queue * 0x4000;
        let mut header = Vec::from(1u32.to_le_bytes());
        header.extend([0; 4]);
        header.extend((queue * 8).to_le_bytes());
        rig.ram.write(at, &header).unwrap();
        rig.ram
            .write(at + 0x1000, &[queue as u8 + 1; 4096])
            .unwrap();
        let pieces = [
            (at, 16, false),
            (at + 0x1000, 4096, false),
            (at + 0x100, 1, true),
        ];
        let head = rig.chain(queue as u16, &pieces);
        rig.offer(queue as u16, head);
        heads.push(head);
    }
    (0..4).for_each(|queue| rig.notify(queue));
    for (queue, head) in (0..).zip(heads) {
        assert_eq!(rig.used(queue), (u32::from(head), 1));
    }
    for queue in 0..4u8 {
        assert_eq!(read(&mut rig, u64::from(queue) * 8, 512), [queue + 1; 512]);
    }
}

#[test]
fn state_round_trip() {
    let disk = Probe::new(false);
    let mut one = live(&disk);
    write(&mut one, 0, &[1; 512]);
    one.device.pause();
    let mut two = Rig::with_ram(device(&disk, 1), one.ram.clone());
    two.device.pause();
    round_trip(&mut one.device, &mut two.device);
    refuses_newer(&mut two.device);
    two.take_over(&one);
    two.device.resume();
    assert_eq!(read(&mut two, 0, 512), [1; 512]);
    let state = two.device.save();
    let mut other = Rig::new(device(&Probe::new(true), 1));
    assert!(other.device.restore(&state).is_err());
}

/// Any request: no panic, and the disk neither grows nor changes where it
/// was not asked to.
#[test]
fn any_request_is_survived() {
    let len = prop_oneof![0u32..64, Just(512u32), Just(4096), any::<u32>()];
    let address = prop_oneof![Just(HEADER), Just(PAYLOAD), 0u64..0x40_0000, any::<u64>()];
    let piece = (address, len, any::<bool>());
    let kind = prop_oneof![0u32..16, any::<u32>()];
    let sector = prop_oneof![0..SECTORS, any::<u64>()];
    let pieces = proptest::collection::vec(piece, 0..6);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let requests = proptest::collection::vec((kind, sector, pieces), 1..8);
    proptest!(config, |(requests in requests)| {
        let disk = Probe::new(false);
        let mut rig = live(&disk);
        for (kind, sector, mut pieces) in requests {
            // The rings stay the driver's own.
            pieces.retain(|(address, ..)| *address >= 0x2_0000);
            pieces.iter_mut().for_each(|p| p.1 = p.1.min(0x10_0000));
            put_header(&rig, kind, sector);
            pieces.insert(0, (HEADER, 16, false));
            pieces.sort_by_key(|piece| piece.2);
            pieces.truncate(usize::from(QUEUE_LEN));
            let head = rig.chain(0, &pieces);
            rig.offer(0, head);
            rig.notify(0);
            rig.device.pause();
            rig.device.resume();
        }
        rig.reset();
        rig.bring_up(FLUSH, 1);
        prop_assert_eq!(write(&mut rig, 0, &[3; 512]), OK);
        prop_assert_eq!(disk.raw.size(), SECTORS * 512);
    });
}
