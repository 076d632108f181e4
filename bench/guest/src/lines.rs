//! The list of what is measured.

use std::io;
use std::path::Path;

use crate::{compute, faults, files, float, memory, processes};

/// Fixed work, done again with each call; gives its checksum.
pub type Work = Box<dyn FnMut() -> io::Result<u64>>;

/// A kind of work.
pub struct Line {
    pub name: &'static str,
    /// What `operations` counts.
    pub unit: &'static str,
    /// Operations in one call of the work.
    pub operations: u64,
    /// Prepares the work; files of it go to the directory.
    pub prepare: fn(&Path) -> io::Result<Work>,
}

/// All of them. One call takes a processor of 2023 some milliseconds, so that
/// an emulation a hundred times slower still ends.
pub fn all() -> Vec<Line> {
    let line = |name, unit, operations, prepare| Line {
        name,
        unit,
        operations,
        prepare,
    };
    vec![
        line("int", "ns", compute::STEPS, compute::xorshift),
        line("sort", "ns/element", compute::ELEMENTS, compute::quicksort),
        line(
            "shellsort",
            "ns/element",
            compute::ELEMENTS,
            compute::shellsort,
        ),
        line("calls", "ns", compute::CALLS, compute::calls),
        line("locks", "ns", compute::LOCKS, compute::locks),
        line("table", "ns/byte", compute::BYTES, compute::table),
        line("fp-scalar", "ns", float::TERMS, float::dot),
        line("fp-vector", "ns", float::PRODUCTS, float::matrices),
        line("chase-l1", "ns", memory::STEPS, memory::chase_l1),
        line("chase-4m", "ns", memory::STEPS, memory::chase_4m),
        line("memcpy", "ns/KiB", memory::KIBIBYTES, memory::copy),
        line(
            "rep-movs",
            "ns/KiB",
            memory::KIBIBYTES,
            memory::copy_by_string,
        ),
        line("syscall", "ns", processes::CALLS, processes::system_calls),
        line("stat", "ns", files::STATS, files::stat),
        line("tmpfs-rw", "ns", files::TRANSFERS, files::read_and_write),
        line("tmpfs-files", "ns", files::FILES, files::small_files),
        line(
            "fork-exit",
            "ns",
            processes::CHILDREN,
            processes::fork_and_exit,
        ),
        line(
            "fork-exec",
            "ns",
            processes::CHILDREN,
            processes::fork_and_exec,
        ),
        line("pipe", "ns", processes::ROUND_TRIPS, processes::pipe),
        line(
            "pipe-threads",
            "ns",
            processes::ROUND_TRIPS,
            processes::pipe_of_threads,
        ),
        line("signal", "ns", processes::SIGNALS, processes::signals),
        line("faults", "ns/page", faults::PAGES, faults::anonymous),
        line("faults-file", "ns/page", faults::PAGES, faults::file),
    ]
}
