//! The user network: `passt`, a child of the monitor.

mod program;

pub use program::{Missing, find};
