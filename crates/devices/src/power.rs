//! What a guest asks of the machine as a whole.

/// Implemented by the machine. Called on vCPU threads under a device's lock:
/// note the request, kick whoever acts on it, and return.
pub trait PowerSink: Send + Sync {
    /// The guest entered S5.
    fn power_off(&self);

    /// The guest asked for a reset of the whole machine.
    fn reset(&self);

    /// The guest reported a panic; `events` are the bits of
    /// [`pvpanic`](crate::pvpanic).
    fn panicked(&self, events: u8);

    /// A test suite ended; `status` is the exit status it asks for, already
    /// in the form `(value << 1) | 1`. Hosts keep only its low eight bits.
    fn debug_exit(&self, status: u32);
}
