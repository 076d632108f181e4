//! Huge pages.

use oci_spec::runtime::LinuxHugepageLimit;

use super::writes::Writes;
use crate::cgroups::{Controllers, Error, Version};

/// Sets the limit of one size, and of what is reserved of it.
pub fn apply(writes: &mut Writes<'_>, limit: &LinuxHugepageLimit) -> Result<(), Error> {
    let size = limit.page_size();
    if size.is_empty() || size.len() > 16 || !size.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(Error::Value {
            what: "hugepageLimits.pageSize",
            value: size.clone(),
            why: "a size such as 2MB or 1GB is wanted".to_owned(),
        });
    }
    let Some((dir, version)) = writes.place(Controllers::HUGETLB) else {
        return Ok(());
    };
    let (name, value) = match (version, limit.limit()) {
        (Version::One, value) => ("limit_in_bytes", value.max(-1).to_string()),
        (Version::Two, ..0) => ("max", "max".to_owned()),
        (Version::Two, value) => ("max", value.to_string()),
    };
    let file = format!("hugetlb.{size}.{name}");
    if !dir.has(&file) {
        writes.leave_out(
            format!("huge pages of {size}"),
            "this host has none of that size",
        );
        return Ok(());
    }
    dir.write(&file, &value)?;
    // Reserved and not used yet; since Linux 5.7.
    let reserved = format!("hugetlb.{size}.rsvd.{name}");
    match dir.has(&reserved) {
        true => dir.write(&reserved, &value),
        false => Ok(()),
    }
}
