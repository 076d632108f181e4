//! What `croft-vmm --jail` prints: the pieces of its jail on this host, as a
//! JSON array of `croft_isolate::Part`.

/// The argument that asks for it.
pub const ARGUMENT: &str = "--jail";
