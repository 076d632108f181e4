//! A request in a queue: header and arguments in what the device reads, the
//! answer in what it writes. Data of files goes between guest memory and the
//! host without a copy.

use std::sync::Arc;

use croft_disk::IoMemory;
use croft_memory::GuestRam;
use rustix::io::Errno;
use vm_memory::bitmap::Bitmap;

use super::data::Extent;
use super::host::Result;
use super::share::{Share, WRITE_MAX};
use super::wire::{ANSWER_HEADER, Answer, Args, Header, REQUEST_HEADER, opcode};
use crate::virtio::queue::GuestSlice;
use crate::virtio::{Chain, QueueError, QueueHandler};

/// Most bytes of arguments: an extended attribute, or many that are forgotten.
const ARGUMENTS_MAX: u64 = 128 << 10;
/// Bytes of `fuse_write_in`.
const WRITE_ARGUMENTS: u64 = 40;

/// What is behind the answer's header.
enum Outcome {
    /// This.
    Answer(Answer),
    /// So many bytes, which are there already.
    Data(u64),
}

/// Serves a queue.
pub struct Requests {
    pub share: Arc<Share>,
}

impl QueueHandler for Requests {
    fn serve(&mut self, ram: &GuestRam, chain: &Chain) -> std::result::Result<u32, QueueError> {
        let mut header = [0; REQUEST_HEADER];
        if chain.readable.read(ram, 0, &mut header)? < header.len() {
            return Err(QueueError::Request("has no complete header"));
        }
        let Ok(header) = Header::parse(&header) else {
            return Err(QueueError::Request("has no complete header"));
        };
        let rest = chain.readable.len() - REQUEST_HEADER as u64;
        let len = match header.opcode {
            opcode::WRITE => rest.min(WRITE_ARGUMENTS),
            _ => rest,
        };
        if len > ARGUMENTS_MAX {
            return Err(QueueError::Request("has more arguments than it may"));
        }
        let mut bytes = vec![0; len as usize];
        chain
            .readable
            .read(ram, REQUEST_HEADER as u64, &mut bytes)?;
        let mut args = Args::new(&bytes);
        match header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => {
                // There is no answer, good or bad.
                let _ = self.share.forget(&header, &mut args);
                return Ok(0);
            }
            opcode::INTERRUPT => return Ok(0),
            _ => {}
        }
        let Some(room) = chain.writable.len().checked_sub(ANSWER_HEADER as u64) else {
            return Err(QueueError::Request("has no room for its answer"));
        };
        let outcome = match header.opcode {
            opcode::READ => self.read(ram, chain, &mut args, room)?,
            opcode::WRITE => self.write(ram, chain, &mut args, rest)?,
            _ => {
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                self.share.answer(&header, args, room).map(Outcome::Answer)
            }
        };
        respond(ram, chain, header.unique, room, outcome)
    }
}

impl Requests {
    fn read(
        &self,
        ram: &GuestRam,
        chain: &Chain,
        args: &mut Args<'_>,
        room: u64,
    ) -> std::result::Result<Result<Outcome>, QueueError> {
        let extent = match self.extent(args) {
            Ok(extent) => extent,
            Err(error) => return Ok(Err(error)),
        };
        let len = room.min(u64::from(extent.size.min(WRITE_MAX)));
        let slices = chain.writable.slices(ram, ANSWER_HEADER as u64, len)?;
        let result = self.share.read(extent, &memory(&slices));
        // Also after an error some of it may have been written.
        for slice in &slices {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        Ok(result.map(Outcome::Data))
    }

    fn write(
        &self,
        ram: &GuestRam,
        chain: &Chain,
        args: &mut Args<'_>,
        rest: u64,
    ) -> std::result::Result<Result<Outcome>, QueueError> {
        let extent = match self.extent(args) {
            Ok(extent) => extent,
            Err(error) => return Ok(Err(error)),
        };
        let data = rest.saturating_sub(WRITE_ARGUMENTS);
        if data < u64::from(extent.size) || extent.size > WRITE_MAX {
            return Ok(Err(Errno::INVAL));
        }
        let start = REQUEST_HEADER as u64 + WRITE_ARGUMENTS;
        let slices = chain.readable.slices(ram, start, extent.size.into())?;
        let result = self.share.write(extent, &memory(&slices));
        Ok(result.map(|count| {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            Outcome::Answer(Answer::default().u32(count).u32(0))
        }))
    }

    fn extent(&self, args: &mut Args<'_>) -> Result<Extent> {
        if !self.share.is_mounted() {
            return Err(Errno::IO);
        }
        Extent::parse(args)
    }
}

fn respond(
    ram: &GuestRam,
    chain: &Chain,
    unique: u64,
    room: u64,
    outcome: Result<Outcome>,
) -> std::result::Result<u32, QueueError> {
    let (error, len, body) = match outcome {
        Ok(Outcome::Data(len)) => (0, len, Vec::new()),
        Ok(Outcome::Answer(answer)) if answer.len() as u64 > room => {
            return Err(QueueError::Request("has too little room for its answer"));
        }
        Ok(Outcome::Answer(answer)) => {
            let body = answer.into_bytes();
            (0, body.len() as u64, body)
        }
        Err(error) => (-error.raw_os_error(), 0, Vec::new()),
    };
    let len = u32::try_from(len + ANSWER_HEADER as u64).unwrap_or(u32::MAX);
    let header = Answer::default()
        .u32(len)
        .u32(error.cast_unsigned())
        .u64(unique)
        .into_bytes();
    chain.writable.write(ram, 0, &header)?;
    chain.writable.write(ram, ANSWER_HEADER as u64, &body)?;
    Ok(len)
}

fn memory<'a>(slices: &[GuestSlice<'a>]) -> Vec<IoMemory<'a>> {
    slices.iter().map(IoMemory::of_guest).collect()
}
