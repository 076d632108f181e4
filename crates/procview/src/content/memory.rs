//! Memory and swap.

use croft_isolate::cgroups::{Bounds, Memory};

/// Bytes of the unit that both files count in.
const KIB: u64 = 1024;

/// Lines of `/proc/meminfo` (proc_meminfo(5)) and where a group counts the
/// same: in `memory.stat` of version 2, of version 1.
const SAME: [(&str, &str, &str); 19] = [
    ("Active(anon)", "active_anon", "total_active_anon"),
    ("Inactive(anon)", "inactive_anon", "total_inactive_anon"),
    ("Active(file)", "active_file", "total_active_file"),
    ("Inactive(file)", "inactive_file", "total_inactive_file"),
    ("Unevictable", "unevictable", "total_unevictable"),
    ("Dirty", "file_dirty", "total_dirty"),
    ("Writeback", "file_writeback", "total_writeback"),
    ("AnonPages", "anon", "total_rss"),
    ("Mapped", "file_mapped", "total_mapped_file"),
    ("Shmem", "shmem", "total_shmem"),
    ("Cached", "file", "total_cache"),
    ("SwapCached", "swapcached", "total_swapcached"),
    ("KReclaimable", "slab_reclaimable", ""),
    ("SReclaimable", "slab_reclaimable", ""),
    ("SUnreclaim", "slab_unreclaimable", ""),
    ("Slab", "slab", ""),
    ("KernelStack", "kernel_stack", ""),
    ("PageTables", "pagetables", ""),
    ("AnonHugePages", "anon_thp", "total_rss_huge"),
];
/// Lines of what no group counts.
const NOT_COUNTED: [&str; 10] = [
    "Buffers",
    "Mlocked",
    "SecPageTables",
    "NFS_Unstable",
    "Bounce",
    "WritebackTmp",
    "Zswap",
    "Zswapped",
    "ShmemHugePages",
    "FileHugePages",
];

/// The number of a line in KiB.
fn kib(meminfo: &str, word: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(word)?.strip_prefix(':'));
    line?.split_whitespace().next()?.parse().ok()
}

fn counted(memory: &Memory, word: &str) -> u64 {
    let found = memory.all.iter().find(|(one, _)| one == word);
    found.map(|(_, number)| *number).unwrap_or_default()
}

/// Total and free swap in KiB.
fn swap(host: &str, bounds: &Bounds) -> (u64, u64) {
    let total = kib(host, "SwapTotal").unwrap_or_default();
    let free = kib(host, "SwapFree").unwrap_or_default();
    match bounds.swap {
        None => (total, free),
        Some(limit) => {
            let limit = (limit / KIB).min(total);
            let used = bounds.taken.swap / KIB;
            (limit, limit.saturating_sub(used).min(free))
        }
    }
}

/// `/proc/meminfo`. Without a limit all of the host's is there, and what
/// others have of it is not.
pub fn meminfo(host: &str, bounds: &Bounds) -> String {
    let (swap_total, swap_free) = swap(host, bounds);
    let total = kib(host, "MemTotal").unwrap_or_default();
    let limit = bounds
        .memory
        .map(|limit| limit / KIB)
        .filter(|limit| *limit < total);
    let taken = &bounds.taken;
    let mut out = String::with_capacity(host.len());
    for line in host.lines() {
        let word = line.split(':').next().unwrap_or_default();
        let value = match (word, limit) {
            ("SwapTotal", _) => Some(swap_total),
            ("SwapFree", _) => Some(swap_free),
            (_, None) => None,
            ("MemTotal", Some(limit)) => Some(limit),
            ("MemFree", Some(limit)) => Some(limit.saturating_sub(taken.used / KIB)),
            ("MemAvailable", Some(limit)) => {
                let free = limit.saturating_sub(taken.used / KIB);
                let files = ["active_file", "inactive_file", "slab_reclaimable"];
                let files = files.into_iter().map(|word| counted(taken, word));
                let old = ["total_active_file", "total_inactive_file"];
                let old = old.into_iter().map(|word| counted(taken, word));
                let given_back: u64 = files.chain(old).sum();
                // What the host has not cannot be had.
                let host = kib(host, "MemAvailable").unwrap_or(u64::MAX);
                Some((free + given_back / KIB).min(limit).min(host))
            }
            ("Active" | "Inactive", Some(_)) => {
                let lower = word.to_lowercase();
                let kinds = ["anon", "file"];
                let sum = kinds.iter().map(|kind| {
                    counted(taken, &format!("{lower}_{kind}"))
                        + counted(taken, &format!("total_{lower}_{kind}"))
                });
                Some(sum.sum::<u64>() / KIB)
            }
            (_, Some(_)) if NOT_COUNTED.contains(&word) => Some(0),
            (_, Some(_)) => SAME
                .iter()
                .find(|(one, ..)| *one == word)
                .map(|(_, new, old)| (counted(taken, new) + counted(taken, old)) / KIB),
        };
        match value {
            Some(value) => out.push_str(&format!("{:<16}{value:>8} kB\n", format!("{word}:"))),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// `/proc/swaps`: the container's share as one area, whose place on the host
/// is not its business.
pub fn swaps(meminfo: &str, host: &str, bounds: &Bounds) -> String {
    let heading = host.lines().next().unwrap_or_default();
    let (total, free) = swap(meminfo, bounds);
    match total {
        0 => format!("{heading}\n"),
        _ => {
            let used = total.saturating_sub(free);
            format!("{heading}\nnone{:36}virtual\t\t{total}\t{used}\t0\n", "")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "MemTotal:       24684092 kB\nMemFree:        12250128 kB\nMemAvailable:   22852884 kB\nBuffers:           87964 kB\nCached:         10196528 kB\nActive:           195512 kB\nSwapTotal:       1000000 kB\nSwapFree:         500000 kB\nHugePages_Total:       0\n";

    fn bounds() -> Bounds {
        Bounds {
            memory: Some(512 << 20),
            swap: Some(100 << 20),
            taken: Memory {
                used: 200 << 20,
                swap: 10 << 20,
                all: vec![
                    ("file".to_owned(), 50 << 20),
                    ("active_file".to_owned(), 20 << 20),
                    ("inactive_file".to_owned(), 30 << 20),
                ],
                ..Memory::default()
            },
            ..Bounds::default()
        }
    }

    #[test]
    fn limits_are_what_there_is() {
        let text = meminfo(HOST, &bounds());
        for (word, value) in [
            ("MemTotal", 524_288),
            ("MemFree", 319_488),
            ("MemAvailable", 370_688),
            ("Buffers", 0),
            ("Cached", 51_200),
            ("Active", 20_480),
            ("SwapTotal", 102_400),
            ("SwapFree", 92_160),
            ("HugePages_Total", 0),
        ] {
            assert_eq!(kib(&text, word), Some(value), "{word} in {text}");
        }
        assert!(text.starts_with("MemTotal:         524288 kB\n"), "{text}");
        let swaps = swaps(HOST, "Filename Type\n/dev/sda 1\n", &bounds());
        assert!(
            swaps.contains("102400\t10240\t0") && !swaps.contains("sda"),
            "{swaps}"
        );
    }

    #[test]
    fn without_limits_it_is_the_hosts() {
        assert_eq!(meminfo(HOST, &Bounds::default()), HOST);
    }
}
