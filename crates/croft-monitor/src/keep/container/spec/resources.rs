//! What a container may use of the host.

use std::collections::HashMap;

use croft_api::ContainerSpec;
use croft_api::container::{CPU, ContainerLimits};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids,
    LinuxResources, LinuxThrottleDeviceBuilder,
};

use super::{Given, HostDevice, kind};

/// Period of the processor limit in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;
/// A disk with limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
}

/// What a container may use, and which devices.
pub fn resources(container: &ContainerSpec, given: &Given<'_>) -> Result<LinuxResources, String> {
    let mut resources = limits(&container.limits, given.disks, given.unified_memory)?;
    resources.set_devices(Some(devices(given.devices)));
    Ok(resources)
}

/// What a container may use. `disks` are those of `limits`, in their order.
pub fn limits(
    limits: &ContainerLimits,
    disks: &[Disk],
    unified_memory: bool,
) -> Result<LinuxResources, String> {
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu(limits)));
    let mut memory = LinuxMemory::default();
    // Of the OCI a limit of -1 is none.
    memory.set_limit(Some(limits.memory.map_or(-1, signed)));
    if let Some(swap) = limits.swap {
        let both = limits
            .memory
            .map(|memory| signed(memory.saturating_add(swap)));
        memory.set_swap(Some(both.unwrap_or(-1)));
    } else if limits.memory.is_none() {
        memory.set_swap(Some(-1));
    }
    if unified_memory {
        let high = limits.memory_high.map(|high| high.to_string());
        let high = high.unwrap_or_else(|| "max".to_owned());
        let unified = HashMap::from([("memory.high".to_owned(), high)]);
        resources.set_unified(Some(unified));
    } else if let Some(high) = limits.memory_high {
        // Version 1 has nothing that slows down; from here on it reclaims.
        memory.set_reservation(Some(signed(high)));
    }
    resources.set_memory(Some(memory));
    let mut pids = LinuxPids::default();
    pids.set_limit(limits.pids.map_or(-1, signed));
    resources.set_pids(Some(pids));
    if limits.io_weight.is_some() || !limits.io.is_empty() {
        resources.set_block_io(Some(io(limits, disks)?));
    }
    Ok(resources)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn cpu(limits: &ContainerLimits) -> LinuxCpu {
    let mut cpu = LinuxCpu::default();
    let quota = limits.cpus.map_or(-1, |thousandths| {
        signed(u64::from(thousandths).saturating_mul(PERIOD) / u64::from(CPU))
    });
    cpu.set_period(Some(PERIOD));
    cpu.set_quota(Some(quota));
    cpu.set_shares(limits.cpu_weight.map(shares));
    cpu.set_cpus(limits.cpuset.clone());
    cpu
}

/// A weight of version 2, 1 to 10000 and usually 100, as shares of version 1,
/// 2 to 262144 and usually 1024: the inverse of what OCI runtimes do
/// (runtime-spec, `config-linux.md`, and crun(1), "cgroup v2").
fn shares(weight: u16) -> u64 {
    let weight = u64::from(weight.clamp(1, 10_000));
    let exact = 2 + (weight - 1) * 262_142;
    // Rounded up, so that it comes back as the same weight.
    2 + (exact - 2).div_ceil(9_999)
}

fn io(limits: &ContainerLimits, disks: &[Disk]) -> Result<LinuxBlockIo, String> {
    let mut io = LinuxBlockIo::default();
    // A weight of version 1 is 10 to 1000.
    let weight = limits.io_weight.map(|weight| {
        let weight = u32::from(weight.clamp(1, 10_000));
        u16::try_from(10 + ((weight - 1) * 990).div_ceil(9_999)).unwrap_or(1000)
    });
    io.set_weight(weight);
    let each = |rate: fn(&croft_api::container::IoLimit) -> Option<u64>| {
        let with = limits.io.iter().zip(disks).filter_map(|(limit, disk)| {
            let device = LinuxThrottleDeviceBuilder::default()
                .major(disk.major)
                .minor(disk.minor)
                .rate(rate(limit)?);
            Some(device.build().map_err(|error| error.to_string()))
        });
        with.collect::<Result<Vec<_>, String>>().map(Some)
    };
    io.set_throttle_read_bps_device(each(|limit| limit.read_bytes)?);
    io.set_throttle_write_bps_device(each(|limit| limit.write_bytes)?);
    io.set_throttle_read_iops_device(each(|limit| limit.reads)?);
    io.set_throttle_write_iops_device(each(|limit| limit.writes)?);
    Ok(io)
}

/// No device but those that all have, and those that it was given.
fn devices(given: &[HostDevice]) -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, typ, numbers: Option<(u32, u32)>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(Some(typ));
        rule.set_major(numbers.map(|(major, _)| major.into()));
        rule.set_minor(numbers.map(|(_, minor)| minor.into()));
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, "rwm")];
    rules.extend(croft_container::allowed_devices());
    rules.extend(given.iter().map(|host| {
        let numbers = Some((host.major, host.minor));
        rule(true, kind(host), numbers, &host.access)
    }));
    rules
}
