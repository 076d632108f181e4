//! The system on a disk: which file systems there are, and which kernel of
//! theirs is booted.

use crate::command_line::{self, Root};
use crate::error::BootError;
use crate::filesystem::{self, Contents, FileSystem};
use crate::kernels;
use crate::loaders::{self, Choice};
use crate::partitions::{self, Volume};
use crate::source::Source;
use crate::{BootFile, Limits, System};

/// Most file systems that are opened.
const FILE_SYSTEMS_MAX: usize = 16;
/// Where initrds that follow each other begin (Linux, initramfs buffer
/// format).
const INITRD_ALIGNMENT: usize = 4;

/// A file system of the disk.
struct Opened {
    number: Option<u32>,
    fs: Box<dyn FileSystem>,
}

/// What `disk` boots with.
pub fn find(disk: &Source, limits: Limits) -> Result<System, BootError> {
    let (table, volumes) = partitions::scan(disk)?;
    let mut findings = vec![table.to_owned()];
    let opened = open(volumes, &mut findings)?;
    let root = opened
        .iter()
        .find(|opened| matches!(opened.fs.exists("/etc"), Ok(true)));
    let root = root.map(|opened| Root {
        fs: &*opened.fs,
        number: opened.number,
    });
    // The kernel that was there but for which something was missing.
    let mut rootless = None;
    for (fs, directory) in places(&opened)? {
        for choice in candidates(fs, directory)? {
            let Some((kernel, initrd)) = load(fs, &choice, limits)? else {
                continue;
            };
            let options = choice.options.as_deref();
            match command_line::make(options, root.as_ref(), initrd.is_some())? {
                Some(command_line) => {
                    return Ok(System {
                        kernel,
                        initrd,
                        command_line,
                        chosen_by: choice.chosen_by,
                    });
                }
                None => rootless = rootless.or(Some(kernel.path)),
            }
        }
    }
    let found = findings.join(", ");
    Err(match rootless {
        Some(kernel) => BootError::NoRoot { kernel, found },
        None => BootError::Nothing { found },
    })
}

/// Opens what can be opened, and notes what there is.
fn open(volumes: Vec<Volume>, findings: &mut Vec<String>) -> Result<Vec<Opened>, BootError> {
    let mut opened = Vec::new();
    // A damaged file system counts only if no other one boots.
    for Volume { number, source } in volumes {
        let place = match number {
            Some(number) => format!("partition {number}: "),
            None => String::new(),
        };
        let what = match filesystem::open(&source) {
            Ok(Some(Contents::Readable(fs))) if opened.len() < FILE_SYSTEMS_MAX => {
                opened.push(Opened { number, fs });
                "an ext4 file system without a kernel".to_owned()
            }
            Ok(Some(Contents::Readable(_))) => "one file system too many".to_owned(),
            Ok(Some(Contents::Other(what))) => what.to_owned(),
            Ok(None) => "nothing known".to_owned(),
            Err(BootError::FileSystem(problem)) => problem,
            Err(other) => return Err(other),
        };
        findings.push(format!("{place}{what}"));
    }
    Ok(opened)
}

/// Directories where kernels may be: /boot of each system, then the tops of
/// boot partitions.
fn places(opened: &[Opened]) -> Result<Vec<(&dyn FileSystem, &'static str)>, BootError> {
    let mut places: Vec<(&dyn FileSystem, &'static str)> = Vec::new();
    for directory in ["/boot", "/"] {
        for Opened { fs, .. } in opened {
            if fs.exists(directory)? {
                places.push((&**fs, directory));
            }
        }
    }
    Ok(places)
}

/// What could be booted from `directory`, in the order in which it is tried.
fn candidates(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    let mut all = loaders::choices(fs, directory)?;
    all.extend(kernels::newest(fs, directory)?);
    all.extend(kernels::linked(fs, directory)?);
    Ok(all)
}

/// Reads what was chosen; nothing if a part of it is not there or empty, as a
/// file is that was not yet written when the machine was killed.
fn load(
    fs: &dyn FileSystem,
    choice: &Choice,
    limits: Limits,
) -> Result<Option<(BootFile, Option<BootFile>)>, BootError> {
    let filled = |bytes: Option<Vec<u8>>| bytes.filter(|bytes| !bytes.is_empty());
    let Some(kernel) = filled(fs.read(&choice.kernel, limits.kernel)?) else {
        return Ok(None);
    };
    let mut all: Vec<u8> = Vec::new();
    for path in &choice.initrds {
        let left = limits.initrd.saturating_sub(all.len() as u64);
        let Some(initrd) = filled(fs.read(path, left)?) else {
            return Ok(None);
        };
        if all.is_empty() {
            all = initrd;
        } else {
            all.resize(all.len().next_multiple_of(INITRD_ALIGNMENT), 0);
            all.extend(initrd);
        }
    }
    let kernel = BootFile {
        path: choice.kernel.clone(),
        bytes: kernel,
    };
    let initrd = (!choice.initrds.is_empty()).then(|| BootFile {
        path: choice.initrds.join(" and "),
        bytes: all,
    });
    Ok(Some((kernel, initrd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    fn opened(trees: Vec<Tree>) -> Vec<Opened> {
        let opened = (1..).zip(trees).map(|(number, tree)| Opened {
            number: Some(number),
            fs: Box::new(tree),
        });
        opened.collect()
    }

    #[test]
    fn the_newest_kernel_with_an_initrd_counts() {
        let tree = Tree::new(&[
            ("/boot/vmlinuz-6.1.0-9", "a"),
            ("/boot/initrd.img-6.1.0-9", "i"),
            ("/boot/vmlinuz-6.1.0-10", "b"),
            ("/boot/initrd.img-6.1.0-10", "j"),
            ("/boot/vmlinuz-6.1.0-11", "c"),
        ]);
        let all = candidates(&tree, "/boot").unwrap();
        let names: Vec<&str> = all.iter().map(|choice| choice.kernel.as_str()).collect();
        assert_eq!(
            names,
            [
                "/boot/vmlinuz-6.1.0-10",
                "/boot/vmlinuz-6.1.0-9",
                "/boot/vmlinuz-6.1.0-11"
            ]
        );
    }

    #[test]
    fn what_is_empty_or_missing_is_passed_over() {
        let mut tree = Tree::new(&[
            ("/v", "kernel"),
            ("/a", "12345"),
            ("/b", "67"),
            ("/empty", ""),
        ]);
        let choice = |initrds: &[&str]| Choice {
            kernel: "/v".to_owned(),
            initrds: initrds.iter().map(|path| (*path).to_owned()).collect(),
            options: None,
            chosen_by: "test",
        };
        let limits = Limits::default();
        let (_, initrd) = load(&tree, &choice(&["/a", "/b"]), limits)
            .unwrap()
            .unwrap();
        assert_eq!(initrd.unwrap().bytes, b"12345\0\0\x0067");
        for missing in ["/none", "/empty"] {
            assert!(
                load(&tree, &choice(&["/a", missing]), limits)
                    .unwrap()
                    .is_none()
            );
        }
        tree.add("/v", "");
        assert!(load(&tree, &choice(&[]), limits).unwrap().is_none());
    }

    #[test]
    fn a_systems_boot_directory_is_before_a_boot_partition() {
        let opened = opened(vec![
            Tree::new(&[("/vmlinuz-1", "x")]),
            Tree::new(&[("/boot/vmlinuz-2", "x"), ("/etc/fstab", "")]),
        ]);
        let places = places(&opened).unwrap();
        let directories: Vec<&str> = places.iter().map(|(_, directory)| *directory).collect();
        assert_eq!(directories, ["/boot"]);
    }
}
