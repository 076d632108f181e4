//! `croft run`, its monitor and a stand-in for the vmm: what goes in and out,
//! how they end, and what they leave behind.

mod containers;
mod containers_nics;
mod containers_system;
mod containers_walk;
mod deaths;
mod devices;
mod images;
mod input_output;
mod instances;
mod machines_walk;
mod namespace;
mod rootless;
mod save;
mod stage;
mod terminal;
mod usage;
mod walk;
