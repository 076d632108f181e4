//! Limits as the OCI runtime specification has them ("Control groups" in
//! `config-linux.md`), written to the files of either version (Linux
//! `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`).

mod cpu;
mod cpuset;
pub mod device_program;
mod device_rules;
mod devices;
mod hugepages;
mod io;
mod memory;
mod others;
mod writes;

pub use cpu::{shares_of_weight, weight_of_shares};

use oci_spec::runtime::LinuxResources;

use super::{Error, Group, LeftOut};
use writes::Writes;

impl Group {
    /// Sets what `resources` says, and nothing else: the same for a new group
    /// and for a running one.
    ///
    /// Returns what was asked for and could not be had because the host or
    /// the group has no such controller or file.
    ///
    /// # Errors
    /// A value that the specification or the kernel refuses, with the file
    /// and the value. Limits set before it stay set.
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<LeftOut>, Error> {
        let mut writes = Writes::new(self);
        // Sets first: a quota of processors is checked against nothing, a set
        // may be what makes the rest fit.
        if let Some(cpu) = resources.cpu() {
            cpuset::apply(&mut writes, cpu)?;
            cpu::apply(&mut writes, cpu)?;
        }
        if let Some(memory) = resources.memory() {
            memory::apply(&mut writes, memory)?;
        }
        if let Some(pids) = resources.pids() {
            others::pids(&mut writes, pids)?;
        }
        if let Some(io) = resources.block_io() {
            io::apply(&mut writes, io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            hugepages::apply(&mut writes, limit)?;
        }
        if let Some(rdma) = resources.rdma() {
            others::rdma(&mut writes, rdma)?;
        }
        if let Some(network) = resources.network() {
            others::network(&mut writes, network)?;
        }
        if let Some(devices) = resources.devices() {
            devices::apply(&mut writes, devices)?;
        }
        // Last: what is said in version 2's own words wins.
        if let Some(unified) = resources.unified() {
            others::unified(&mut writes, unified)?;
        }
        Ok(writes.left_out())
    }
}
