//! Guest RAM in the stream: runs of pages that are not all zeros.

use std::io;

use croft_memory::{GuestRam, PAGE_SIZE};

use super::SavedError;
use super::sections::{Kind, MEMORY_MAX, Writer};

const PAGE: usize = PAGE_SIZE as usize;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Writes all of `ram`.
pub fn write(writer: &mut Writer<'_>, ram: &GuestRam) -> io::Result<()> {
    let mut buffer = vec![0; MEMORY_MAX as usize];
    for range in ram.ranges() {
        let end = range.start + range.len;
        let mut at = range.start;
        while at < end {
            let len = MEMORY_MAX.min(end - at);
            let pages = &mut buffer[..len as usize];
            ram.read(at, pages).map_err(io::Error::other)?;
            write_runs(writer, at, pages)?;
            at += len;
        }
    }
    Ok(())
}

/// Writes what is not zeros of `pages`, which are at `start`.
fn write_runs(writer: &mut Writer<'_>, start: u64, pages: &[u8]) -> io::Result<()> {
    let is_used = |page: &[u8]| page != ZEROS;
    let runs = pages
        .chunks(PAGE)
        .zip(0u64..)
        .collect::<Vec<_>>()
        .chunk_by(|(a, _), (b, _)| is_used(a) == is_used(b))
        .filter_map(|run| run.first().map(|(page, index)| (*page, *index, run.len())))
        .filter(|(page, ..)| is_used(page))
        .map(|(_, index, count)| (index, count))
        .collect::<Vec<_>>();
    for (index, count) in runs {
        let from = index as usize * PAGE;
        let bytes = pages.get(from..from + count * PAGE).unwrap_or_default();
        let address = start + index * PAGE_SIZE;
        writer.section(Kind::Memory, &[&address.to_le_bytes(), bytes])?;
    }
    Ok(())
}

/// Loads pages into guest RAM.
pub struct Loader<'a> {
    ram: &'a GuestRam,
    /// Nothing below this comes any more.
    next: u64,
}

impl<'a> Loader<'a> {
    /// Into `ram`.
    pub fn new(ram: &'a GuestRam) -> Self {
        Loader { ram, next: 0 }
    }

    /// Loads the payload of a section.
    pub fn load(&mut self, payload: &[u8]) -> Result<(), SavedError> {
        let damaged = |what: &str| SavedError::Damaged(what.to_owned());
        let (address, pages) = payload
            .split_first_chunk()
            .ok_or_else(|| damaged("memory without an address"))?;
        let address = u64::from_le_bytes(*address);
        let len = pages.len() as u64;
        if !address.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(damaged("memory that is not whole pages"));
        }
        if address < self.next {
            return Err(damaged("memory that is there twice"));
        }
        self.ram
            .write(address, pages)
            .map_err(|error| damaged(&error.to_string()))?;
        // Within RAM, so that it does not wrap.
        self.next = address + len;
        Ok(())
    }
}
