//! A machine: assembles, boots and runs a virtual server on an engine.

pub mod acpi;
pub mod boot;
pub mod loader;
pub mod memory_map;
