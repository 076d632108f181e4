//! The balloon's configuration (virtio 1.2, 5.5.4).
//!
//! | offset | bytes | contents                                            |
//! |--------|-------|-----------------------------------------------------|
//! | 0      | 4     | pages that the balloon is to have                   |
//! | 4      | 4     | pages that it has; written by the driver            |
//! | 8      | 4     | not offered (F_FREE_PAGE_HINT)                      |
//! | 12     | 4     | what free pages are filled with; by the driver too  |
//!
//! Pages have 4 KiB, whatever the guest's have.

/// Bytes of it.
pub const LEN: usize = 16;
const TARGET: usize = 0;
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// The registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    bytes: [u8; LEN],
}

impl Config {
    /// With these values.
    pub fn new(target: u32, actual: u32, poison: u32) -> Self {
        let mut config = Config::default();
        config.put(TARGET, target);
        config.put(ACTUAL, actual);
        config.put(POISON, poison);
        config
    }

    /// As the driver reads it.
    pub fn bytes(&self) -> [u8; LEN] {
        self.bytes
    }

    /// The driver writes `data` at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let writable = (ACTUAL..ACTUAL + 4).contains(&at) || (POISON..POISON + 4).contains(&at);
            if let (true, Some(place)) = (writable, self.bytes.get_mut(at)) {
                *place = *byte;
            }
        }
    }

    /// Pages that the balloon is to have.
    pub fn target(&self) -> u32 {
        self.get(TARGET)
    }

    /// Sets it; whether that is another number.
    pub fn set_target(&mut self, pages: u32) -> bool {
        let before = self.target();
        self.put(TARGET, pages);
        before != pages
    }

    /// Pages that the driver says it has.
    pub fn actual(&self) -> u32 {
        self.get(ACTUAL)
    }

    /// What free pages are filled with.
    pub fn poison(&self) -> u32 {
        self.get(POISON)
    }

    /// What the driver wrote is gone: it has no balloon any more.
    pub fn reset(&mut self) {
        *self = Config::new(self.target(), 0, 0);
    }

    fn get(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        crate::virtio::copy_config(&self.bytes, at, &mut word);
        u32::from_le_bytes(word)
    }

    fn put(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}
