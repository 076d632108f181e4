//! The kinds of limits.

use std::fmt;

use bitflags::bitflags;

bitflags! {
    /// Controllers (Linux `Documentation/admin-guide/cgroup-v2.rst` and
    /// `cgroup-v1/`). Version 1 has some that version 2 has as a part of
    /// another, or has not.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Controllers: u32 {
        /// Shares and quota of processors.
        const CPU = 1;
        /// Processor time taken; part of `cpu` in version 2.
        const CPUACCT = 1 << 1;
        /// Which processors and memory nodes.
        const CPUSET = 1 << 2;
        /// Memory and swap.
        const MEMORY = 1 << 3;
        /// Block devices: `blkio` in version 1.
        const IO = 1 << 4;
        /// Processes and threads.
        const PIDS = 1 << 5;
        /// Huge pages.
        const HUGETLB = 1 << 6;
        /// Device nodes; a BPF program in version 2.
        const DEVICES = 1 << 7;
        /// Stopping all of a group; a file of each group in version 2.
        const FREEZER = 1 << 8;
        /// Remote memory access.
        const RDMA = 1 << 9;
        /// Counted resources of single kinds of hardware.
        const MISC = 1 << 10;
        /// Marks of packets.
        const NET_CLS = 1 << 11;
        /// Priorities of packets.
        const NET_PRIO = 1 << 12;
        /// Profiling a group.
        const PERF_EVENT = 1 << 13;
        /// No controller: the hierarchy that systemd keeps its units in.
        const SYSTEMD = 1 << 14;
    }
}

/// Names in version 1, which are those of version 2 but for `blkio`.
const WORDS: [(Controllers, &str); 15] = [
    (Controllers::CPU, "cpu"),
    (Controllers::CPUACCT, "cpuacct"),
    (Controllers::CPUSET, "cpuset"),
    (Controllers::MEMORY, "memory"),
    (Controllers::IO, "blkio"),
    (Controllers::PIDS, "pids"),
    (Controllers::HUGETLB, "hugetlb"),
    (Controllers::DEVICES, "devices"),
    (Controllers::FREEZER, "freezer"),
    (Controllers::RDMA, "rdma"),
    (Controllers::MISC, "misc"),
    (Controllers::NET_CLS, "net_cls"),
    (Controllers::NET_PRIO, "net_prio"),
    (Controllers::PERF_EVENT, "perf_event"),
    (Controllers::SYSTEMD, "name=systemd"),
];

impl Controllers {
    /// What version 2 has in every group, without a controller.
    pub const ALWAYS_IN_2: Controllers = Controllers::CPUACCT
        .union(Controllers::DEVICES)
        .union(Controllers::FREEZER)
        .union(Controllers::PERF_EVENT);

    /// The controller of a name in either version; empty for one that is not
    /// known.
    pub fn of_word(word: &str) -> Controllers {
        let word = if word == "io" { "blkio" } else { word };
        let known = WORDS.iter().find(|(_, one)| *one == word);
        known.map_or(Controllers::empty(), |(controller, _)| *controller)
    }

    /// Those of a list with this separator.
    pub fn of_list(list: &str, separator: char) -> Controllers {
        list.split(separator)
            .map(|word| Controllers::of_word(word.trim()))
            .collect()
    }

    /// Names, as version 2 has them.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        WORDS
            .iter()
            .filter(move |(controller, _)| self.contains(*controller))
            .map(|(controller, word)| match *controller {
                Controllers::IO => "io",
                _ => *word,
            })
    }
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.words().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{word}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_both_ways() {
        let some = Controllers::of_list("cpu,cpuacct,blkio,unknown", ',');
        assert_eq!(
            some,
            Controllers::CPU | Controllers::CPUACCT | Controllers::IO
        );
        assert_eq!(some.to_string(), "cpu cpuacct io");
        assert_eq!(
            Controllers::of_list("io memory\n", ' ').to_string(),
            "memory io"
        );
        assert_eq!(Controllers::of_word("name=systemd"), Controllers::SYSTEMD);
    }
}
