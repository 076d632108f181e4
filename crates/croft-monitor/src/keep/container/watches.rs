//! The inotify instances that a system needs.
//!
//! The kernel counts them for whoever made the outermost user namespace, as
//! that user's on the host (`kernel/ucount.c`): all containers of a user share
//! one limit with the user's other programs, whatever ids are theirs. An init
//! that gets none ends with "Too many open files", which says nothing of it.

use std::os::fd::OwnedFd;

use rustix::fs::inotify::{CreateFlags, init};
use rustix::io::Errno;

/// So many a system of Debian 12 has when it is up: its init, and what that
/// starts.
const SYSTEM: usize = 5;
/// The limit.
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";

/// What there is to say if a system that starts now will not get all that it
/// needs. Whether it will is only known by having them for a moment.
pub fn lack() -> Option<String> {
    let mut had: Vec<OwnedFd> = Vec::new();
    while had.len() < SYSTEM {
        match init(CreateFlags::CLOEXEC) {
            Ok(one) => had.push(one),
            Err(Errno::MFILE) => {
                let limit = std::fs::read_to_string(LIMIT).unwrap_or_default();
                return Some(describe(had.len(), limit.trim()));
            }
            // A kernel without them has systems that do without.
            Err(_) => return None,
        }
    }
    None
}

fn describe(left: usize, limit: &str) -> String {
    format!(
        "its init may fail with \"Too many open files\": a system needs some {SYSTEM} inotify \
         instances, and {left} of the {limit} that this user's containers and programs share are \
         left; as root: sysctl fs.inotify.max_user_instances=1024"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_with_its_remedy() {
        let text = describe(2, "128");
        assert!(text.contains("and 2 of the 128"), "{text}");
        assert!(text.contains("sysctl fs.inotify.max_user_instances"));
    }
}
