//! Limits on what hardware a host has: disks, huge pages, devices for remote
//! memory access.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use croft_isolate::cgroups::Controllers;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxHugepageLimitBuilder, LinuxRdmaBuilder, LinuxResources,
    LinuxResourcesBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
};
use rustix::fs::{major, minor};

use crate::group::Temporary;

/// A directory on a disk, and the disk's number.
struct Disk {
    directory: tempfile::TempDir,
    number: (u32, u32),
}

impl Disk {
    fn find() -> Option<Self> {
        let places = [env::temp_dir(), "/var/tmp".into(), "/root".into()];
        let found = places.into_iter().find_map(|place| {
            let device = fs::metadata(&place).ok()?.dev();
            let (major, minor) = (major(device), minor(device));
            let mut disk = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
            // The limits of a part are those of the whole.
            if disk.join("partition").exists() {
                disk.pop();
            }
            let number = fs::read_to_string(disk.join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            Some(Disk {
                directory: tempfile::tempdir_in(place).ok()?,
                number: (major.parse().ok()?, minor.parse().ok()?),
            })
        });
        if found.is_none() {
            eprintln!("skipped: no directory for temporary files is on a disk");
        }
        found
    }

    fn throttled(&self, bytes: u64) -> Vec<LinuxThrottleDevice> {
        let (major, minor) = self.number;
        let one = LinuxThrottleDeviceBuilder::default()
            .major(major)
            .minor(minor)
            .rate(bytes);
        vec![one.build().unwrap()]
    }
}

#[test]
fn a_disk_takes_no_more_than_its_rate() {
    const RATE: u64 = 1 << 20;
    let Some(one) = Temporary::new("rates", Controllers::IO) else {
        return;
    };
    let Some(disk) = Disk::find() else { return };
    let apply = |rate| {
        let io = LinuxBlockIoBuilder::default()
            .throttle_write_bps_device(disk.throttled(rate))
            .throttle_read_iops_device(disk.throttled(rate));
        let io = io.build().unwrap();
        one.apply(
            &LinuxResourcesBuilder::default()
                .block_io(io)
                .build()
                .unwrap(),
        );
    };
    let files = ["io.max", "blkio.throttle.write_bps_device"];
    let (major, minor) = disk.number;
    let name = format!("{major}:{minor} ");
    apply(RATE);
    let text = one.read(Controllers::IO, files);
    let line = text.lines().find(|line| line.starts_with(&name));
    assert!(
        line.is_some_and(|line| line.contains(&RATE.to_string())),
        "{text:?}"
    );
    let file = disk.directory.path().join("file");
    let output = format!("of={}", file.display());
    let copy = [
        "if=/dev/zero",
        &output,
        "bs=64K",
        "count=48",
        "oflag=direct",
    ];
    let begun = Instant::now();
    assert!(one.spawn("dd", &copy).wait().unwrap().success());
    // Nothing can make it faster than the rate; a slow disk makes it slower.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "3 MiB took {took:?}");
    let stats = one.group.stats().unwrap();
    let own = |one: &&croft_isolate::cgroups::Io| (one.major, one.minor) == disk.number;
    let written = stats.io.iter().find(own).map(|one| one.written_bytes);
    assert!(written >= Some(3 << 20), "{:?}", stats.io);
    // None, while the group is in use.
    apply(0);
    let text = one.read(Controllers::IO, files);
    assert!(!text.contains(&RATE.to_string()), "{text}");
}

#[test]
fn disks_have_weights_where_the_scheduler_has() {
    let Some(one) = Temporary::new("weights", Controllers::IO) else {
        return;
    };
    let io = LinuxBlockIoBuilder::default().weight(500_u16);
    let io = io.build().unwrap();
    let resources = LinuxResourcesBuilder::default().block_io(io);
    let left_out = one.group.apply(&resources.build().unwrap()).unwrap();
    if let Some(left_out) = left_out.first() {
        eprintln!("skipped: {left_out}");
        return;
    }
    let directory = one.group.path_of(Controllers::IO).unwrap();
    let names = [
        ("io.bfq.weight", "default 500"),
        ("io.weight", "default 4950"),
        ("blkio.bfq.weight", "500"),
        ("blkio.weight", "500"),
    ];
    let found = names.iter().find_map(|(file, wanted)| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        Some((text.lines().next()?.to_owned(), *wanted))
    });
    let (is, wanted) = found.expect("a file of weights");
    assert_eq!(is, wanted);
}

/// Where files of huge pages are.
struct HugePages(tempfile::TempDir);

impl HugePages {
    /// `None` where the host has less than so many free: it says so.
    fn mount(wanted: u64) -> Option<Self> {
        let free = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free = fs::read_to_string(free).unwrap_or_default();
        if free.trim().parse::<u64>().unwrap_or(0) < wanted {
            eprintln!("skipped: less than {wanted} huge pages of 2 MB are free (vm.nr_hugepages)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"]);
        let mounted = command.arg(directory.path()).status();
        assert!(mounted.unwrap().success());
        Some(HugePages(directory))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn huge_pages_end_at_the_limit() {
    const PAGE: u64 = 2 << 20;
    let Some(one) = Temporary::new("hugepages", Controllers::HUGETLB) else {
        return;
    };
    let Some(pages) = HugePages::mount(3) else {
        return;
    };
    let limit = |size: &str, bytes: i64| -> LinuxResources {
        let limit = LinuxHugepageLimitBuilder::default()
            .page_size(size.to_owned())
            .limit(bytes);
        LinuxResourcesBuilder::default()
            .hugepage_limits(vec![limit.build().unwrap()])
            .build()
            .unwrap()
    };
    one.apply(&limit("2MB", PAGE.cast_signed()));
    let takes = |name: &str, count: u64| {
        let size = (count * PAGE).to_string();
        let file = pages.file(name);
        let words = ["-l", &size, file.to_str().unwrap()];
        one.spawn("fallocate", &words).wait().unwrap().success()
    };
    assert!(takes("one", 1));
    assert!(!takes("two", 1));
    let stats = one.group.stats().unwrap();
    let own = stats
        .hugepages
        .iter()
        .find(|one| one.size == "2MB")
        .unwrap();
    assert_eq!(own.used, PAGE, "{own:?}");
    assert!(own.limit_met > 0, "{own:?}");
    one.apply(&limit("2MB", (2 * PAGE).cast_signed()));
    assert!(takes("two", 1));
    for name in ["one", "two"] {
        fs::remove_file(pages.file(name)).unwrap();
    }
    let left_out = one.group.apply(&limit("3MB", 0)).unwrap();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
}

#[test]
fn devices_of_remote_memory_have_limits() {
    let Some(one) = Temporary::new("rdma", Controllers::RDMA) else {
        return;
    };
    let devices = fs::read_dir(Path::new("/sys/class/infiniband"));
    let Some(device) = devices.ok().and_then(|mut all| all.next()) else {
        eprintln!("skipped: no device for remote memory access");
        return;
    };
    let name = device.unwrap().file_name().into_string().unwrap();
    let limits = LinuxRdmaBuilder::default()
        .hca_handles(3_u32)
        .hca_objects(100_u32);
    let all = HashMap::from([(name.clone(), limits.build().unwrap())]);
    one.apply(&LinuxResourcesBuilder::default().rdma(all).build().unwrap());
    let text = one.read(Controllers::RDMA, ["rdma.max", ""]);
    let line = format!("{name} hca_handle=3 hca_object=100");
    assert!(text.lines().any(|one| one == line), "{text}");
}
