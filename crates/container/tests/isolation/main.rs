//! Containers that try to get out, as `examples/intruder.rs` does it.
//!
//! Each attempt is made twice where a description can take the protection
//! away: without it, it has to succeed, so that a test whose attempt is
//! harmless by itself is noticed.

mod bundle;
mod engine;
mod limits;
mod rights;
mod runtime;
