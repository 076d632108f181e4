//! `croft disk resize`.
//!
//! Images are parsed in the jail alone: a machine that runs grows its disk, and
//! one that is stopped is told for its next start.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use croft_api::control::Request;
use croft_host::{InstanceName, Instances};

use super::image::DISK;
use super::{Fault, SOON, connect};
use crate::args::resize::ResizeOptions;
use crate::exit::Exit;
use crate::say;

/// Where a qcow2 image has its disk's size, big-endian (QEMU, interop/qcow2,
/// "Header").
const SIZE_AT: u64 = 24;
/// The instance's own disk, before those that somebody named.
const OWN: u32 = 0;

/// Makes an instance's own disk larger.
pub fn resize(instances: &Instances, options: &ResizeOptions) -> Result<Exit, Fault> {
    let (name, size) = (&options.name.name, options.size);
    let config = instances.config(name)?;
    super::machine_of(&config, name)?;
    if config.image.is_none() {
        return Err(Fault::usage(format!(
            "{name} has no disk of its own; its disks are files that were named when it was created"
        )));
    }
    if instances.status(name)?.phase.is_live() {
        let request = Request::ResizeDisk {
            disk: OWN,
            bytes: size,
        };
        let mut monitor = connect(instances, name).map_err(|fault| fault.of(name))?;
        monitor
            .ask_within(&request, vec![], Some(SOON))
            .map_err(|error| Fault::from(error).of(name))?;
        say::line(&format!(
            "croft: {name}: the guest sees the new size; its file system grows at its next boot"
        ));
    } else {
        for_next_start(instances, name, size)?;
    }
    Ok(Exit::PowerOff)
}

/// The disk of an instance that does not run.
fn for_next_start(instances: &Instances, name: &InstanceName, size: u64) -> Result<(), Fault> {
    let has = size_now(&instances.directories().instance(name).join(DISK))
        .map_err(|error| Fault::failed(format!("its disk: {error}")).of(name))?;
    if size < has {
        return Err(Fault::usage(format!(
            "{name}: its disk has {has} bytes, and does not become smaller"
        )));
    }
    instances.change(name, |config| {
        let machine = config.machine_mut();
        if let Some(own) = machine.and_then(|machine| machine.disks.first_mut()) {
            own.options.at_least = Some(size);
        }
    })?;
    Ok(())
}

/// What the header of a qcow2 image says of its disk's size.
fn size_now(path: &Path) -> io::Result<u64> {
    let mut size = [0; 8];
    File::open(path)?.read_exact_at(&mut size, SIZE_AT)?;
    Ok(u64::from_be_bytes(size))
}

#[cfg(test)]
mod tests {
    use croft_disk::{Format, create};

    use super::*;

    #[test]
    fn a_size_is_read() {
        let image = tempfile::NamedTempFile::new().unwrap();
        assert!(size_now(image.path()).is_err());
        create(image.reopen().unwrap(), Format::Qcow2, 3 << 30).unwrap();
        assert_eq!(size_now(image.path()).unwrap(), 3 << 30);
    }
}
