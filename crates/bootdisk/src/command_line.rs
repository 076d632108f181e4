//! The kernel's command line: that of the boot loader or of the system's
//! configuration, made to fit our machines.

use crate::error::BootError;
use crate::filesystem::FileSystem;
use crate::kernels::join;

/// The console of all our machines.
const CONSOLE: &str = "console=ttyS0";
/// Longest command line in bytes: Linux takes 2047, others more.
const LENGTH_MAX: usize = 4096;

/// The root file system, as far as it is known.
pub struct Root<'a> {
    /// It.
    pub fs: &'a dyn FileSystem,
    /// The number of its partition.
    pub number: Option<u32>,
}

impl Root<'_> {
    /// How a kernel finds it: as what it is on our machines, whose first disk
    /// this is. Its UUID would be that of a second disk of the same image too.
    fn argument(&self) -> String {
        match self.number {
            Some(number) => format!("root=/dev/vda{number}"),
            None => "root=/dev/vda".to_owned(),
        }
    }
}

/// The command line for a kernel with these `options`, if its boot loader has
/// some. `None` if it cannot be told where the root is.
pub fn make(
    options: Option<&str>,
    root: Option<&Root<'_>>,
    has_initrd: bool,
) -> Result<Option<String>, BootError> {
    let text = match (options, root) {
        (Some(options), _) => options.to_owned(),
        (None, Some(root)) => configured(root.fs)?,
        (None, None) => return Ok(None),
    };
    let mut words: Vec<String> = text.split_whitespace().map(plain).collect();
    let stated = words.iter().position(|word| word.starts_with("root="));
    match (stated, root) {
        // Its disk may have another name here, and a kernel without initrd
        // knows no UUIDs.
        (Some(at), Some(root)) => {
            if let Some(word) = words.get_mut(at)
                && (is_disk(word) || !has_initrd && word.starts_with("root=UUID="))
            {
                *word = root.argument();
            }
        }
        (Some(_), None) => {}
        (None, Some(root)) => {
            words.insert(0, root.argument());
            if !words.iter().any(|word| word == "ro" || word == "rw") {
                words.insert(1, "ro".to_owned());
            }
        }
        (None, None) => return Ok(None),
    }
    let is_ours = |word: &String| {
        word.strip_prefix(CONSOLE)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
    };
    if !words.iter().any(is_ours) {
        words.push(CONSOLE.to_owned());
    }
    let mut line = words.join(" ");
    line.truncate(cut(&line).len());
    Ok(Some(line))
}

/// As much of `text` as a command line may have.
fn cut(text: &str) -> &str {
    text.split_at(text.floor_char_boundary(LENGTH_MAX)).0
}

/// A word without what does not belong on a command line.
fn plain(word: &str) -> String {
    word.chars().filter(|letter| !letter.is_control()).collect()
}

/// Whether the word is `root=` of a disk by a name that depends on the bus.
fn is_disk(word: &str) -> bool {
    let name = word.strip_prefix("root=/dev/").unwrap_or_default();
    ["sd", "hd", "vd", "xvd", "nvme"]
        .iter()
        .any(|bus| name.starts_with(bus))
}

/// What the system is configured to boot with.
fn configured(fs: &dyn FileSystem) -> Result<String, BootError> {
    for path in ["/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"] {
        if let Some(text) = fs.text(path)? {
            return Ok(text);
        }
    }
    let mut files = vec!["/etc/default/grub".to_owned()];
    let directory = "/etc/default/grub.d";
    let mut names = fs.list(directory)?;
    names.retain(|name| name.ends_with(".cfg"));
    names.sort_unstable();
    files.extend(names.iter().map(|name| join(directory, name)));
    let (mut always, mut usually) = (String::new(), String::new());
    for file in files {
        let Some(text) = fs.text(&file)? else {
            continue;
        };
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else {
                continue;
            };
            let line = match key {
                "GRUB_CMDLINE_LINUX" => &mut always,
                "GRUB_CMDLINE_LINUX_DEFAULT" => &mut usually,
                _ => continue,
            };
            let value = value.trim().trim_matches(['"', '\'']);
            let value = cut(value);
            // Files in grub.d often add to what is there.
            *line = value
                .replace(&format!("${{{key}}}"), line)
                .replace(&format!("${key}"), line);
            line.truncate(cut(line).len());
        }
    }
    Ok(format!("{always} {usually}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    fn line(options: Option<&str>, tree: Option<&Tree>, has_initrd: bool) -> Option<String> {
        let root = tree.map(|tree| Root {
            fs: tree,
            number: Some(2),
        });
        make(options, root.as_ref(), has_initrd).unwrap()
    }

    #[test]
    fn a_boot_loaders_line_is_kept() {
        let tree = Tree::new(&[]);
        let given = "root=UUID=1 ro quiet";
        let wanted = "root=UUID=1 ro quiet console=ttyS0";
        assert_eq!(line(Some(given), Some(&tree), true).unwrap(), wanted);
        assert_eq!(line(Some(given), None, true).unwrap(), wanted);
        let console = "root=LABEL=x console=tty0 console=ttyS0,115200n8";
        assert_eq!(line(Some(console), Some(&tree), true).unwrap(), console);
        assert_eq!(line(Some("quiet"), None, true), None);
    }

    #[test]
    fn disks_have_their_names_here() {
        let tree = Tree::new(&[]);
        let sda = Some("ro root=/dev/sda2 console=ttyS0");
        assert_eq!(
            line(sda, Some(&tree), true).unwrap(),
            "ro root=/dev/vda2 console=ttyS0"
        );
        assert_eq!(
            line(sda, Some(&tree), false).unwrap(),
            "ro root=/dev/vda2 console=ttyS0"
        );
        let mapper = Some("root=/dev/mapper/a-b");
        assert!(
            line(mapper, Some(&tree), true)
                .unwrap()
                .starts_with("root=/dev/mapper/a-b ")
        );
    }

    #[test]
    fn a_systems_configuration_counts_without_a_loader() {
        let mut tree = Tree::new(&[
            (
                "/etc/default/grub",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n# x\nGRUB_CMDLINE_LINUX='a=b'\n",
            ),
            (
                "/etc/default/grub.d/15_x.cfg",
                "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX c\"\nnonsense",
            ),
        ]);
        assert_eq!(
            line(None, Some(&tree), true).unwrap(),
            "root=/dev/vda2 ro a=b c quiet console=ttyS0"
        );
        tree.add("/etc/kernel/cmdline", "root=UUID=2 rw\n");
        assert_eq!(
            line(None, Some(&tree), true).unwrap(),
            "root=UUID=2 rw console=ttyS0"
        );
        assert_eq!(line(None, None, true), None);
    }

    #[test]
    fn lines_do_not_grow_without_bound() {
        let again = "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX$GRUB_CMDLINE_LINUX xx\"\n";
        let tree = Tree::new(&[("/etc/default/grub", again.repeat(100).as_str())]);
        assert!(line(None, Some(&tree), true).unwrap().len() <= LENGTH_MAX);
    }
}
