//! Puts the initrd as high as the kernel allows.

use croft_memory::{GuestRam, Range};

use super::Image;
use super::error::Problem;
use super::source::Source;
use crate::memory_map;

/// Copies the initrd below both `image.initrd_max` and the end of low RAM,
/// above the kernel, page-aligned, and returns where it is.
pub fn place(source: &dyn Source, image: &Image, ram: &GuestRam) -> Result<Range, Problem> {
    let len = source.size();
    let low_ram = ram.ranges().first().map_or(0, |range| range.len);
    let top = low_ram.min(image.initrd_max.saturating_add(1));
    let start = top.checked_sub(len).map(memory_map::page_floor);
    // Above both the kernel and everything below 1 MiB.
    let floor = match image.start < memory_map::LOW_RAM_END {
        true => image.end.max(memory_map::HIGH_MEMORY),
        false => memory_map::HIGH_MEMORY,
    };
    let Some(start) = start.filter(|start| *start >= floor) else {
        return Err(Problem::InitrdTooLarge { len });
    };
    source.copy_to(0, len, ram, start, "contents")?;
    Ok(Range { start, len })
}
