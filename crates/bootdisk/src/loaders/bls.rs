//! Boot loader entries: one file for each kernel, read by systemd-boot and by
//! the GRUB of Fedora and its relatives.
//!
//! UAPI group, Boot Loader Specification, type 1.

use crate::error::BootError;
use crate::filesystem::FileSystem;
use crate::kernels::join;
use crate::version::compare;

use super::{Choice, absolute, environment};

/// Most entries read.
const ENTRIES_MAX: usize = 64;

/// An entry.
#[derive(Debug)]
struct Entry {
    /// Its file's name without `.conf`.
    id: String,
    version: String,
    choice: Choice,
}

/// The entries in `directory`: the one that is the default, then the newest.
pub fn choices(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    let entries = join(directory, "loader/entries");
    let mut names = fs.list(&entries)?;
    names.retain(|name| name.ends_with(".conf"));
    names.sort_unstable_by(|a, b| compare(b, a));
    let mut found = Vec::new();
    for name in names.into_iter().take(ENTRIES_MAX) {
        let id = name.trim_end_matches(".conf").to_owned();
        if let Some(text) = fs.text(&join(&entries, &name))? {
            found.extend(parse(id, &text, &variables(fs, directory)?));
        }
    }
    found.sort_by(|a, b| compare(&b.version, &a.version));
    let default = match environment(fs, directory, "saved_entry")? {
        Some(id) => Some(id),
        None => fs
            .text(&join(directory, "loader/loader.conf"))?
            .and_then(|text| value(&text, "default").map(str::to_owned)),
    };
    if let Some(pattern) = default {
        // Stable: the others stay in their order.
        found.sort_by_key(|entry| !matches(&entry.id, pattern.trim_end_matches(".conf")));
    }
    Ok(found.into_iter().map(|entry| entry.choice).collect())
}

/// What `$kernelopts` stands for.
fn variables(fs: &dyn FileSystem, directory: &str) -> Result<String, BootError> {
    Ok(environment(fs, directory, "kernelopts")?.unwrap_or_default())
}

/// The value of a key, the last one if there are several.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    values(text, key).next_back()
}

fn values<'a>(text: &'a str, key: &str) -> impl DoubleEndedIterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (there, value) = line.trim().split_once([' ', '\t'])?;
        (there == key).then(|| value.trim())
    })
}

fn parse(id: String, text: &str, kernelopts: &str) -> Option<Entry> {
    let kernel = absolute(value(text, "linux")?, "/");
    // Words that begin with `$` are variables of GRUB's: of tools that tune.
    let plain = |word: &&str| !word.starts_with('$');
    let initrds = values(text, "initrd")
        .flat_map(str::split_whitespace)
        .filter(plain)
        .map(|path| absolute(path, "/"))
        .collect();
    let options: Vec<&str> = values(text, "options")
        .flat_map(str::split_whitespace)
        .flat_map(|word| {
            match word {
                "$kernelopts" | "${kernelopts}" => kernelopts,
                word => word,
            }
            .split_whitespace()
        })
        .filter(plain)
        .collect();
    Some(Entry {
        id,
        version: value(text, "version").unwrap_or_default().to_owned(),
        choice: Choice {
            kernel,
            initrds,
            options: Some(options.join(" ")),
            chosen_by: "a boot loader entry",
        },
    })
}

/// Whether `name` fits a pattern in which `*` stands for any text and `?` for
/// one character.
fn matches(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.as_bytes(), pattern.as_bytes());
    let (mut at, mut of) = (0, 0);
    // Where the last star was, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while at < name.len() {
        match pattern.get(of) {
            Some(b'*') => {
                star = Some((of + 1, at));
                of += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == name.get(at) => {
                at += 1;
                of += 1;
            }
            _ => match star.as_mut() {
                Some((after, taken)) => {
                    *taken += 1;
                    (of, at) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(of).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    #[test]
    fn the_default_is_first_then_the_newest() {
        let entry = |version: &str| {
            format!(
                "title x\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /ucode.img $tuned_initrd\n\
                 initrd /initramfs-{version}.img\noptions root=UUID=1 ro $tuned_params\noptions $kernelopts\n"
            )
        };
        let mut tree = Tree::new(&[
            ("/boot/loader/entries/m-6.9.conf", &entry("6.9")),
            ("/boot/loader/entries/m-6.10.conf", &entry("6.10")),
            ("/boot/loader/entries/m-0-rescue.conf", &entry("0-rescue")),
            ("/boot/loader/entries/readme", "linux /x"),
            ("/boot/grub2/grubenv", "# GRUB\nkernelopts=quiet a=b\n####"),
        ]);
        let kernels = |tree: &Tree| -> Vec<String> {
            let found = choices(tree, "/boot").unwrap();
            found.into_iter().map(|choice| choice.kernel).collect()
        };
        assert_eq!(
            kernels(&tree),
            ["/vmlinuz-6.10", "/vmlinuz-6.9", "/vmlinuz-0-rescue"]
        );
        let first = choices(&tree, "/boot").unwrap().remove(0);
        assert_eq!(first.initrds, ["/ucode.img", "/initramfs-6.10.img"]);
        assert_eq!(first.options.unwrap(), "root=UUID=1 ro quiet a=b");
        tree.add("/boot/loader/loader.conf", "timeout 3\ndefault m-6.9*\n");
        assert_eq!(kernels(&tree)[0], "/vmlinuz-6.9");
        tree.add("/boot/grub2/grubenv", "saved_entry=m-0-rescue\n");
        assert_eq!(kernels(&tree)[0], "/vmlinuz-0-rescue");
        assert!(choices(&Tree::new(&[]), "/boot").unwrap().is_empty());
    }

    #[test]
    fn patterns() {
        for (name, pattern, fits) in [
            ("abc", "abc", true),
            ("abc", "a*", true),
            ("abc", "*c", true),
            ("abc", "a?c", true),
            ("abcabc", "*bc", true),
            ("abc", "ab", false),
            ("abc", "*d", false),
            ("", "*", true),
            ("", "?", false),
        ] {
            assert_eq!(matches(name, pattern), fits, "{name} {pattern}");
        }
    }
}
