//! What takes long says how far it is.

/// Hears how far something is.
pub trait Progress {
    /// Something new begins: "making the file system".
    fn phase(&mut self, what: &str);
    /// So much of it is done; `total` is 0 where it is not known. Bytes.
    fn bytes(&mut self, done: u64, total: u64);
}

/// Hears nothing.
#[derive(Debug)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&mut self, _: &str) {}

    fn bytes(&mut self, _: u64, _: u64) {}
}
