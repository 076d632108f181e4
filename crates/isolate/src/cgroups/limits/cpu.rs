//! Processor time: shares, quota, burst.

use oci_spec::runtime::LinuxCpu;

use super::writes::{Write, Writes, settle};
use crate::cgroups::dir::Dir;
use crate::cgroups::{Controllers, Error, Version};

/// Bounds of `cpu.shares` (Linux `kernel/sched/sched.h`, `MIN_SHARES`,
/// `MAX_SHARES`).
const SHARES: (u64, u64) = (2, 1 << 18);
/// Bounds of `cpu.weight` (`cgroup-v2.rst`).
const WEIGHT: (u64, u64) = (1, 10_000);

/// Version 2's weight of version 1's shares: the bounds and the defaults
/// (1024 and 100) go to each other, with a parabola through the three on
/// logarithmic scales between them. The straight line of old made 39 of the
/// default, so that a container had less than half of what any other group
/// of the host has.
pub fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES.0, SHARES.1);
    let weight = 10_f64.powf(exponent((shares as f64).log2())).ceil() as u64;
    weight.clamp(WEIGHT.0, WEIGHT.1)
}

/// The decimal logarithm of the weight from the binary one of the shares:
/// `(1, 0)`, `(10, 2)` and `(18, 4)` are on it.
fn exponent(log: f64) -> f64 {
    log * (log + 125.0) / 612.0 - 7.0 / 34.0
}

/// Version 1's shares of version 2's weight: the least that
/// [`weight_of_shares`] makes this weight of, or the next above it.
pub fn shares_of_weight(weight: u64) -> u64 {
    let weight = weight.clamp(WEIGHT.0, WEIGHT.1);
    let (mut low, mut high) = SHARES;
    while low < high {
        let middle = low.midpoint(high);
        match weight_of_shares(middle) < weight {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// Sets what is said of processor time. Zero says nothing.
pub fn apply(writes: &mut Writes<'_>, cpu: &LinuxCpu) -> Result<(), Error> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let realtime = cpu.realtime_period().filter(|period| *period != 0);
    let nothing = shares.is_none() && quota.is_none() && period.is_none();
    let rest = runtime.is_none() && realtime.is_none();
    if nothing && rest && cpu.burst().is_none() && cpu.idle().is_none() {
        return Ok(());
    }
    let Some((dir, version)) = writes.place(Controllers::CPU) else {
        return Ok(());
    };
    if let Some(idle) = cpu.idle() {
        writes.first(dir, &["cpu.idle"], "cpu idle", &idle.to_string())?;
    }
    // A group that is idle has no weight.
    if let Some(shares) = shares.filter(|_| cpu.idle() != Some(1)) {
        match version {
            Version::One => dir.write("cpu.shares", &shares.to_string())?,
            Version::Two => dir.write("cpu.weight", &weight_of_shares(shares).to_string())?,
        }
    }
    let mut all = Vec::new();
    match version {
        Version::One => {
            all.extend(period.map(|period| Write::new("cpu.cfs_period_us", period)));
            all.extend(quota.map(|quota| Write::new("cpu.cfs_quota_us", quota.max(-1))));
        }
        Version::Two if quota.is_some() || period.is_some() => {
            all.push(Write::new("cpu.max", maximum(dir, quota, period)?));
        }
        Version::Two => {}
    }
    if let Some(burst) = cpu.burst() {
        let file = match version {
            Version::One => "cpu.cfs_burst_us",
            Version::Two => "cpu.max.burst",
        };
        match dir.has(file) {
            true => all.push(Write::new(file, burst)),
            false => writes.leave_out("cpu burst", "this kernel has no such limit"),
        }
    }
    settle(dir, all)?;
    match version {
        Version::One => {
            let mut all = Vec::new();
            all.extend(realtime.map(|period| Write::new("cpu.rt_period_us", period)));
            all.extend(runtime.map(|runtime| Write::new("cpu.rt_runtime_us", runtime)));
            match all.is_empty() || dir.has("cpu.rt_runtime_us") {
                true => settle(dir, all)?,
                false => writes.leave_out("cpu realtime", "this kernel has no such limit"),
            }
        }
        Version::Two if !rest => writes.leave_out("cpu realtime", "version 2 has no such limit"),
        Version::Two => {}
    }
    Ok(())
}

/// The text of `cpu.max`: what is not said stays.
fn maximum(dir: &Dir, quota: Option<i64>, period: Option<u64>) -> Result<String, Error> {
    let quota = match quota {
        Some(quota) if quota < 0 => "max".to_owned(),
        Some(quota) => quota.to_string(),
        None => {
            let text = dir.read("cpu.max")?;
            text.split_whitespace().next().unwrap_or("max").to_owned()
        }
    };
    Ok(match period {
        Some(period) => format!("{quota} {period}"),
        None => quota,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_defaults_of_shares_are_those_of_weights() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (1024, 100),
            (1 << 18, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        for weight in 1..=10_000 {
            let back = weight_of_shares(shares_of_weight(weight));
            assert!(
                back >= weight && back <= weight + weight / 50 + 1,
                "{weight}: {back}"
            );
        }
        assert_eq!(shares_of_weight(1), 2);
        assert_eq!(weight_of_shares(shares_of_weight(100)), 100);
    }
}
