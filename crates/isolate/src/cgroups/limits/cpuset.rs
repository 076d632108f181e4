//! Which processors and memory nodes.

use oci_spec::runtime::LinuxCpu;

use super::writes::Writes;
use crate::cgroups::{Controllers, Error};

/// Sets what is said of them, as lists such as `0-3,7`.
pub fn apply(writes: &mut Writes<'_>, cpu: &LinuxCpu) -> Result<(), Error> {
    let said = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    let (cpus, mems) = (said(cpu.cpus()), said(cpu.mems()));
    if cpus.is_none() && mems.is_none() {
        return Ok(());
    }
    let Some((dir, _)) = writes.place(Controllers::CPUSET) else {
        return Ok(());
    };
    for (file, what, list) in [
        ("cpuset.cpus", "cpu.cpus", cpus),
        ("cpuset.mems", "cpu.mems", mems),
    ] {
        let Some(list) = list else { continue };
        if !list.bytes().all(|byte| b"0123456789-,".contains(&byte)) {
            return Err(Error::Value {
                what,
                value: list,
                why: "a list of numbers and ranges such as 0-3,7 is wanted".to_owned(),
            });
        }
        dir.write(file, &list)?;
    }
    Ok(())
}
