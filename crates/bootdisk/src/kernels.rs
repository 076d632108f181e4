//! Kernels by their names in a boot directory.

use crate::error::BootError;
use crate::filesystem::FileSystem;
use crate::loaders::Choice;
use crate::version::compare;

/// Most kernels tried of one directory.
const KERNELS_MAX: usize = 32;

/// Names of a version's initrd: Debian's, Fedora's and others'.
const INITRDS: [(&str, &str); 5] = [
    ("initrd.img-", ""),
    ("initramfs-", ".img"),
    ("initrd-", ""),
    ("initramfs-", ""),
    ("initrd-", ".img"),
];

/// The links that name the kernel to boot: Debian's, in the root or in /boot.
const LINKS: [(&str, &str); 2] = [("vmlinuz", "initrd.img"), ("vmlinuz", "initrd")];

/// The kernels in `directory`, the newest first; those that have an initrd
/// before those that have none, as an upgrade may just not have made it.
pub fn newest(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    let names = fs.list(directory)?;
    let mut versions: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        .filter(|version| !version.ends_with(".old"))
        .collect();
    versions.sort_unstable_by(|a, b| compare(b, a));
    let choice = |version: &str| {
        let initrd = INITRDS.iter().find_map(|(before, after)| {
            let wanted = format!("{before}{version}{after}");
            names.contains(&wanted).then(|| join(directory, &wanted))
        });
        Choice {
            kernel: join(directory, &format!("vmlinuz-{version}")),
            initrds: initrd.into_iter().collect(),
            options: None,
            chosen_by: "the newest kernel",
        }
    };
    let choices = versions.into_iter().take(KERNELS_MAX).map(choice);
    let (mut with, without): (Vec<_>, Vec<_>) =
        choices.partition(|choice| !choice.initrds.is_empty());
    with.extend(without);
    Ok(with)
}

/// The kernel that links in `directory` name.
pub fn linked(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    let mut choices = Vec::new();
    for (kernel, initrd) in LINKS {
        let (kernel, initrd) = (join(directory, kernel), join(directory, initrd));
        if fs.exists(&kernel)? && fs.exists(&initrd)? {
            choices.push(Choice {
                kernel,
                initrds: vec![initrd],
                options: None,
                chosen_by: "the link vmlinuz",
            });
        }
    }
    let kernel = join(directory, "vmlinuz");
    if choices.is_empty() && fs.exists(&kernel)? {
        choices.push(Choice {
            kernel,
            initrds: Vec::new(),
            options: None,
            chosen_by: "the link vmlinuz",
        });
    }
    Ok(choices)
}

/// `name` in `directory`.
pub fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}
