//! Which devices a container may use in any case.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Number of a kind of device (Linux `Documentation/admin-guide/devices.txt`),
/// and of one of the kind; all of them without.
const USABLE: [(i64, Option<i64>); 9] = [
    // null, zero, full, random, urandom, tty
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    // console, ptmx, and what that makes.
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Rules for `linux.resources.devices`, to be behind a container's own: it may
/// make nodes of any device, which is no use by itself, and use those that are
/// in every container (runtime-spec, `config-linux.md`, Default Devices) and
/// terminals.
pub fn default_devices() -> Vec<LinuxDeviceCgroup> {
    let rule = |typ, numbers: (Option<i64>, Option<i64>), access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(typ));
        rule.set_major(numbers.0);
        rule.set_minor(numbers.1);
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let nodes = [LinuxDeviceType::C, LinuxDeviceType::B];
    let nodes = nodes.map(|typ| rule(typ, (None, None), "m"));
    let usable = USABLE.map(|(major, minor)| rule(LinuxDeviceType::C, (Some(major), minor), "rwm"));
    nodes.into_iter().chain(usable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_all_and_use_of_few() {
        let rules = default_devices();
        assert!(rules.iter().all(LinuxDeviceCgroup::allow));
        let wide = rules.iter().filter(|rule| rule.major().is_none());
        assert!(wide.clone().count() == 2);
        assert!(wide.into_iter().all(|rule| rule.access().as_deref() == Some("m")));
    }
}
