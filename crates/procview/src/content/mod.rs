//! What is in each file: the host's text with a container's numbers.

mod memory;
mod processors;
mod rest;

use std::fs;

use crate::FILES;
use crate::load::Loads;
use crate::reader::Reader;

pub use processors::visible;

/// The text of a file for a reader; the host's for one of the host.
pub fn text(file: usize, reader: Option<&Reader>, loads: &mut Loads) -> String {
    let Some(file) = FILES.get(file) else {
        return String::new();
    };
    let host = host(file.destination);
    let Some(reader) = reader else {
        return host;
    };
    let online = self::host("/sys/devices/system/cpu/online");
    match file.name {
        "meminfo" => memory::meminfo(&host, &reader.bounds),
        "swaps" => memory::swaps(&self::host("/proc/meminfo"), &host, &reader.bounds),
        "cpuinfo" => processors::cpuinfo(&host, &visible(&reader.bounds, &online)),
        "stat" => {
            let count = visible(&reader.bounds, &online).len();
            processors::stat(&host, count, &reader.stats.cpu, reader.age)
        }
        "online" => processors::online(visible(&reader.bounds, &online).len()),
        "uptime" => {
            let count = visible(&reader.bounds, &online).len();
            rest::uptime(count, &reader.stats.cpu, reader.age)
        }
        "diskstats" => rest::diskstats(&host, &reader.stats.io),
        "loadavg" => loads.text(reader),
        _ => host,
    }
}

/// What the kernel shows the host; nothing where it has no such file.
fn host(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
