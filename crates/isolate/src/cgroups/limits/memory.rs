//! Memory and swap.

use oci_spec::runtime::LinuxMemory;
use rustix::io::Errno;

use super::writes::{Write, Writes, is, settle};
use crate::cgroups::dir::Dir;
use crate::cgroups::{Controllers, Error, Version};

/// Sets what is said of memory. Zero says nothing; -1 is no limit.
pub fn apply(writes: &mut Writes<'_>, memory: &LinuxMemory) -> Result<(), Error> {
    let said = |value: Option<i64>| value.filter(|value| *value != 0);
    let wanted = Wanted {
        limit: said(memory.limit()),
        total: said(memory.swap()),
        reservation: said(memory.reservation()),
    };
    let others = memory.swappiness().is_some()
        || memory.disable_oom_killer() == Some(true)
        || memory.kernel_tcp().is_some();
    if wanted == Wanted::default() && !others {
        return Ok(());
    }
    let Some((dir, version)) = writes.place(Controllers::MEMORY) else {
        return Ok(());
    };
    if memory.check_before_update() == Some(true) {
        check(dir, version, wanted.limit)?;
    }
    match version {
        Version::One => wanted.apply_1(writes, dir, memory),
        Version::Two => wanted.apply_2(writes, dir, memory),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Bytes of memory.
    limit: Option<i64>,
    /// Bytes of memory and swap together.
    total: Option<i64>,
    /// Bytes that are the last to be taken away.
    reservation: Option<i64>,
}

impl Wanted {
    fn apply_1(
        self,
        writes: &mut Writes<'_>,
        dir: &Dir,
        memory: &LinuxMemory,
    ) -> Result<(), Error> {
        const TOTAL: &str = "memory.memsw.limit_in_bytes";
        const TCP: &str = "memory.kmem.tcp.limit_in_bytes";
        let bytes = |value: i64| value.max(-1);
        let mut all = Vec::new();
        all.extend(
            self.limit
                .map(|limit| Write::new("memory.limit_in_bytes", bytes(limit))),
        );
        // No limit of memory makes one of both meaningless, and the kernel
        // refuses the smaller of the two.
        let unlimited = self.limit.filter(|limit| *limit < 0);
        if let Some(total) = self.total.or(unlimited) {
            match (dir.has(TOTAL), self.total.is_some()) {
                (true, _) => all.push(Write::new(TOTAL, bytes(total))),
                (false, true) => writes.leave_out("swap", "this kernel does not count swap"),
                (false, false) => {}
            }
        }
        settle(dir, all).map_err(|error| match self.limit {
            Some(limit) if is(&error, Errno::BUSY) => below_use(dir, Version::One, limit, error),
            _ => error,
        })?;
        if let Some(reservation) = self.reservation {
            dir.write(
                "memory.soft_limit_in_bytes",
                &bytes(reservation).to_string(),
            )?;
        }
        if let Some(swappiness) = memory.swappiness() {
            if swappiness > 100 {
                return Err(Error::Value {
                    what: "memory.swappiness",
                    value: swappiness.to_string(),
                    why: "it is between 0 and 100".to_owned(),
                });
            }
            dir.write("memory.swappiness", &swappiness.to_string())?;
        }
        if memory.disable_oom_killer() == Some(true) {
            dir.write("memory.oom_control", "1")?;
        }
        // Version 2 counts it as memory, kernels before 5.4 had one for all of
        // the kernel's.
        if let Some(tcp) = memory.kernel_tcp().filter(|value| *value != 0) {
            match dir.has(TCP) {
                true => dir.write(TCP, &bytes(tcp).to_string())?,
                false => writes.leave_out("kernelTCP", "this kernel has no such limit"),
            }
        }
        Ok(())
    }

    fn apply_2(
        self,
        writes: &mut Writes<'_>,
        dir: &Dir,
        memory: &LinuxMemory,
    ) -> Result<(), Error> {
        let bytes = |value: i64| match value {
            ..0 => "max".to_owned(),
            _ => value.to_string(),
        };
        let unlimited = self.limit.filter(|limit| *limit < 0);
        if let Some(total) = self.total.or(unlimited) {
            let swap = match (total, self.limit) {
                (..0, _) => "max".to_owned(),
                (_, Some(limit)) if limit >= 0 => swap_of(total, limit)?,
                (_, Some(_)) => {
                    return Err(Error::Value {
                        what: "memory.swap",
                        value: total.to_string(),
                        why: "it counts memory too, which has no limit".to_owned(),
                    });
                }
                // What memory may be now.
                (_, None) => match dir.read("memory.max")?.trim().parse() {
                    Ok(limit) => swap_of(total, limit)?,
                    Err(_) => {
                        return Err(Error::Value {
                            what: "memory.swap",
                            value: total.to_string(),
                            why: "it counts memory too, which has no limit".to_owned(),
                        });
                    }
                },
            };
            match (dir.has("memory.swap.max"), self.total.is_some()) {
                (true, _) => dir.write("memory.swap.max", &swap)?,
                (false, true) => writes.leave_out("swap", "this kernel does not count swap"),
                (false, false) => {}
            }
        }
        if let Some(limit) = self.limit {
            dir.write("memory.max", &bytes(limit))?;
        }
        if let Some(reservation) = self.reservation {
            dir.write("memory.low", &bytes(reservation))?;
        }
        if memory.swappiness().is_some() {
            writes.leave_out("memory swappiness", "version 2 has no such setting");
        }
        if memory.disable_oom_killer() == Some(true) {
            writes.leave_out("memory disableOOMKiller", "version 2 has no such setting");
        }
        Ok(())
    }
}

/// Swap alone, out of memory and swap.
fn swap_of(total: i64, limit: i64) -> Result<String, Error> {
    match total.checked_sub(limit) {
        Some(swap) if swap >= 0 => Ok(swap.to_string()),
        _ => Err(Error::Value {
            what: "memory.swap",
            value: total.to_string(),
            why: format!("it counts memory too, whose limit is {limit}"),
        }),
    }
}

/// What is in use, in bytes.
fn used(dir: &Dir, version: Version) -> Result<u64, Error> {
    let file = match version {
        Version::One => "memory.usage_in_bytes",
        Version::Two => "memory.current",
    };
    let text = dir.read(file)?;
    text.trim().parse().map_err(|_| Error::Text {
        path: dir.path().join(file),
        text: text.clone(),
    })
}

/// Refuses a limit below what is in use: version 2 would make room by ending
/// processes.
fn check(dir: &Dir, version: Version, limit: Option<i64>) -> Result<(), Error> {
    let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()) else {
        return Ok(());
    };
    match used(dir, version)? {
        used if used > limit => Err(Error::BelowUse { limit, used }),
        _ => Ok(()),
    }
}

fn below_use(dir: &Dir, version: Version, limit: i64, error: Error) -> Error {
    match (used(dir, version), u64::try_from(limit)) {
        (Ok(used), Ok(limit)) => Error::BelowUse { limit, used },
        _ => error,
    }
}
