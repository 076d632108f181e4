//! What boot loaders are configured to boot, as far as it can be read without
//! executing their scripts.

mod bls;
mod extlinux;
mod grub;

use crate::error::BootError;
use crate::filesystem::FileSystem;

/// A kernel that could be booted, by paths on its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The kernel.
    pub kernel: String,
    /// Its initrds, all of which it needs.
    pub initrds: Vec<String>,
    /// Its command line; without, that of the system counts.
    pub options: Option<String>,
    /// What named it.
    pub chosen_by: &'static str,
}

/// What the boot loaders that are configured in `directory` would boot, the
/// first ones first.
pub fn choices(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    let mut choices = bls::choices(fs, directory)?;
    choices.extend(grub::choices(fs, directory)?);
    choices.extend(extlinux::choices(fs, directory)?);
    Ok(choices)
}

/// The absolute path that a boot loader's file calls `path`: `from` is where
/// relative paths begin. Devices in front (`(hd0,1)/…`, `$root/…`) are left
/// out, since there is one disk.
fn absolute(path: &str, from: &str) -> String {
    let mut path = path;
    if path.starts_with('(')
        && let Some((_, rest)) = path.split_once(')')
    {
        path = rest;
    }
    if path.starts_with('$')
        && let Some(slash) = path.find('/')
    {
        path = path.split_at(slash).1;
    }
    if path.starts_with('/') {
        path.to_owned()
    } else {
        crate::kernels::join(from, path)
    }
}

/// The value of `key` in GRUB's environment block (`grubenv`).
fn environment(
    fs: &dyn FileSystem,
    directory: &str,
    key: &str,
) -> Result<Option<String>, BootError> {
    for name in ["grub/grubenv", "grub2/grubenv"] {
        let path = crate::kernels::join(directory, name);
        let Some(text) = fs.text(&path)? else {
            continue;
        };
        let value = text.lines().find_map(|line| {
            let (there, value) = line.split_once('=')?;
            (there == key).then(|| value.to_owned())
        });
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            return Ok(value);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_left_out() {
        assert_eq!(absolute("(hd0,1)/boot/v", "/x"), "/boot/v");
        assert_eq!(absolute("($root)/boot/v", "/x"), "/boot/v");
        assert_eq!(absolute("${root}/v", "/x"), "/v");
        assert_eq!(absolute("v", "/boot/extlinux"), "/boot/extlinux/v");
        assert_eq!(absolute("(broken", "/"), "/(broken");
    }
}
