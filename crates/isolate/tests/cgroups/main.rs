//! Control groups on the hierarchies that this host has, with real processes.

mod group;
mod hardware;
mod limits;
