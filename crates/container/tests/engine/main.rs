//! Containers by the engine, as a process with one thread makes them
//! (`examples/driver`). They need root, and skip without.

mod apparmor;
mod aside;
mod errors;
mod escapes;
mod execs;
mod hooks;
mod ids;
mod kills;
mod mounts;
mod rights;
mod stage;
mod terminal;
mod users;
