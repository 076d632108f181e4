//! Is code of the bytes that stand there now?

use std::thread;
use std::time::{Duration, Instant};

use crate::block::Block;
use crate::cpu::Cpu;

/// Longest wait for the report of another thread's store: that thread may be
/// without a processor between the two.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

impl Cpu {
    /// The guest's bytes are those that `code` was made of.
    pub fn is_fresh(&mut self, block: &Block, code: usize) -> bool {
        let bytes = guest_bytes(self, block);
        let Some(lockstep) = &mut self.lockstep else {
            return true;
        };
        match lockstep.code.get(&code) {
            Some(known) => **known == *bytes,
            None => {
                lockstep.code.insert(code, bytes.into());
                true
            }
        }
    }
}

/// The block is known to be overwritten. Other threads report a store after
/// they have made it, so the new bytes can be there before the report is.
pub fn is_reported(block: &Block, timeout: Duration) -> bool {
    let start = Instant::now();
    while block.current() {
        if start.elapsed() > timeout {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The guest's bytes where a block was decoded from; none without RAM.
pub fn guest_bytes(cpu: &Cpu, block: &Block) -> Vec<u8> {
    block.bytes(&cpu.shared.ram).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use croft_memory::{GuestRam, Range};

    use super::*;

    /// A page with a block in it.
    fn block() -> (Arc<GuestRam>, Block) {
        let ram = GuestRam::new(&[Range {
            start: 0,
            len: 0x1000,
        }]);
        let ram = Arc::new(ram.unwrap());
        let (table, _) = ram.table(0).unwrap();
        let seen = table.watch_code(0, 0, 5);
        let block = Block::new(
            &ram,
            0,
            Box::default(),
            Box::default(),
            Some((0, seen)),
            None,
        );
        (ram, block)
    }

    #[test]
    fn a_store_that_is_reported_late_is_waited_for() {
        let (ram, block) = block();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                ram.table(0).unwrap().0.written(0, 1);
            });
            assert!(is_reported(&block, Duration::from_secs(60)));
        });
    }

    #[test]
    fn a_store_that_nobody_reports_is_found() {
        let (_ram, block) = block();
        assert!(!is_reported(&block, Duration::from_millis(20)));
    }
}
