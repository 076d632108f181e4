//! Block devices: weights and rates.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::writes::Writes;
use crate::cgroups::dir::Dir;
use crate::cgroups::{Controllers, Error, Version};

/// Bounds of a weight in the specification.
const WEIGHT: (u16, u16) = (10, 1000);

/// Rates of each device: files of version 1, words of version 2's `io.max`.
type Rates<'a> = [(
    &'static str,
    &'static str,
    &'a Option<Vec<LinuxThrottleDevice>>,
); 4];

/// Sets what is said of block devices.
pub fn apply(writes: &mut Writes<'_>, io: &LinuxBlockIo) -> Result<(), Error> {
    let rates: Rates = [
        (
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    let rated = rates.iter().any(|(.., list)| !empty(list));
    let weight = io.weight().filter(|weight| *weight != 0);
    let leaf = io.leaf_weight().filter(|weight| *weight != 0);
    if !rated && weight.is_none() && leaf.is_none() && empty(io.weight_device()) {
        return Ok(());
    }
    let Some((dir, version)) = writes.place(Controllers::IO) else {
        return Ok(());
    };
    if let Some(weight) = weight {
        set_weight(writes, dir, version, None, weight)?;
    }
    if let Some(weight) = leaf {
        let files = match version {
            Version::One => &["blkio.leaf_weight"][..],
            Version::Two => &[],
        };
        writes.first(dir, files, "blockIO leafWeight", &weight.to_string())?;
    }
    for one in io.weight_device().iter().flatten() {
        let device = Some((one.major(), one.minor()));
        if let Some(weight) = one.weight() {
            set_weight(writes, dir, version, device, weight)?;
        }
        if let Some(weight) = one.leaf_weight() {
            let files = match version {
                Version::One => &["blkio.leaf_weight_device"][..],
                Version::Two => &[],
            };
            let value = format!("{}:{} {weight}", one.major(), one.minor());
            writes.first(dir, files, "blockIO leafWeight", &value)?;
        }
    }
    match version {
        Version::One => set_rates_1(writes, dir, &rates),
        Version::Two => set_rates_2(dir, &rates),
    }
}

fn empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// The weight for all devices or for one. Only the BFQ scheduler and
/// `io.cost` know any.
fn set_weight(
    writes: &mut Writes<'_>,
    dir: &Dir,
    version: Version,
    device: Option<(i64, i64)>,
    weight: u16,
) -> Result<(), Error> {
    if !(WEIGHT.0..=WEIGHT.1).contains(&weight) {
        return Err(Error::Value {
            what: "blockIO.weight",
            value: weight.to_string(),
            why: "it is between 10 and 1000".to_owned(),
        });
    }
    let value = |weight: u64| match device {
        Some((major, minor)) => format!("{major}:{minor} {weight}"),
        None => weight.to_string(),
    };
    let what = "blockIO weight";
    let plain = value(weight.into());
    match (version, device) {
        (Version::One, None) => {
            writes.first(dir, &["blkio.bfq.weight", "blkio.weight"], what, &plain)
        }
        (Version::One, Some(_)) => {
            let files = ["blkio.bfq.weight_device", "blkio.weight_device"];
            writes.first(dir, &files, what, &plain)
        }
        (Version::Two, _) if dir.has("io.bfq.weight") => dir.write("io.bfq.weight", &plain),
        (Version::Two, _) => writes.first(dir, &["io.weight"], what, &value(scaled(weight))),
    }
}

/// 10 to 1000 becomes 1 to 10000, along a straight line.
fn scaled(weight: u16) -> u64 {
    let above = u64::from(weight.saturating_sub(WEIGHT.0));
    1 + above * 9_999 / u64::from(WEIGHT.1 - WEIGHT.0)
}

fn set_rates_1(writes: &mut Writes<'_>, dir: &Dir, rates: &Rates<'_>) -> Result<(), Error> {
    for (file, _, list) in rates {
        for one in list.iter().flatten() {
            let value = format!("{}:{} {}", one.major(), one.minor(), one.rate());
            writes.first(dir, &[file], "blockIO throttling", &value)?;
        }
    }
    Ok(())
}

/// One line for each device; a rate of 0 is none, as in version 1.
fn set_rates_2(dir: &Dir, rates: &Rates<'_>) -> Result<(), Error> {
    let mut lines: BTreeMap<(i64, i64), String> = BTreeMap::new();
    for (_, word, list) in rates {
        for one in list.iter().flatten() {
            let line = lines.entry((one.major(), one.minor())).or_default();
            let rate = match one.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            line.push_str(&format!(" {word}={rate}"));
        }
    }
    for ((major, minor), line) in lines {
        dir.write("io.max", &format!("{major}:{minor}{line}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_scaled() {
        assert_eq!(scaled(10), 1);
        assert_eq!(scaled(1000), 10_000);
        assert_eq!(scaled(505), 5_000);
    }
}
