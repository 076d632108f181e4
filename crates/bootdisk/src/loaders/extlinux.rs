//! `extlinux.conf`: syslinux and its relatives, U-Boot.

use crate::error::BootError;
use crate::filesystem::FileSystem;
use crate::kernels::join;

use super::{Choice, absolute};

/// Where it is in a boot directory.
const PLACES: [&str; 3] = ["extlinux", "syslinux", "."];
/// Most labels read.
const LABELS_MAX: usize = 64;

/// A label.
#[derive(Debug, Default)]
struct Label {
    name: String,
    is_default: bool,
    kernel: Option<String>,
    initrds: Vec<String>,
    append: String,
}

/// The label that is the default, then the others.
pub fn choices(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    for place in PLACES {
        let from = match place {
            "." => directory.to_owned(),
            place => join(directory, place),
        };
        for name in ["extlinux.conf", "syslinux.cfg"] {
            if let Some(text) = fs.text(&join(&from, name))? {
                return Ok(parse(&text, &from));
            }
        }
    }
    Ok(Vec::new())
}

fn parse(text: &str, from: &str) -> Vec<Choice> {
    let mut default = String::new();
    // Options before the first label are for all that have none.
    let mut labels = vec![Label::default()];
    for line in text.lines() {
        let line = line.trim();
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        let enough = labels.len() > LABELS_MAX;
        let Some(label) = labels.last_mut() else {
            break;
        };
        match key.to_ascii_lowercase().as_str() {
            "default" => default = value.to_owned(),
            "label" if !enough => labels.push(Label {
                name: value.to_owned(),
                ..Label::default()
            }),
            "menu" if value.eq_ignore_ascii_case("default") => label.is_default = true,
            "linux" | "kernel" => label.kernel = Some(absolute(value, from)),
            "initrd" => {
                let paths = value.split(',').filter(|path| !path.is_empty());
                label.initrds = paths.map(|path| absolute(path, from)).collect();
            }
            "append" => label.append = value.to_owned(),
            _ => {}
        }
    }
    let common = labels.remove(0).append;
    labels.sort_by_key(|label| !(label.name == default || default.is_empty() && label.is_default));
    let choice = |label: Label| {
        let append = if label.append.is_empty() {
            common.clone()
        } else {
            label.append
        };
        let words = append.split_whitespace();
        // Syslinux takes the initrd from here too.
        let (initrd, options): (Vec<&str>, Vec<&str>) =
            words.partition(|word| word.starts_with("initrd="));
        let mut initrds = label.initrds;
        if initrds.is_empty() {
            let paths = initrd.iter().filter_map(|word| word.split_once('='));
            let paths = paths.flat_map(|(_, paths)| paths.split(','));
            initrds = paths.map(|path| absolute(path, from)).collect();
        }
        Some(Choice {
            kernel: label.kernel?,
            initrds,
            options: Some(options.join(" ")),
            chosen_by: "extlinux.conf",
        })
    };
    labels.into_iter().filter_map(choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    #[test]
    fn the_default_label_is_first() {
        let text = "DEFAULT new\nTIMEOUT 30\nAPPEND quiet\n\
            LABEL old\n  LINUX ../vmlinuz-1\n  INITRD ../initrd-1\n  APPEND root=/dev/vda1 ro\n\
            LABEL new\n  MENU LABEL New\n  kernel /boot/vmlinuz-2\n  append root=LABEL=x initrd=/a,/b\n\
            LABEL bare\n  LINUX /v\n";
        let tree = Tree::new(&[("/boot/extlinux/extlinux.conf", text)]);
        let found = choices(&tree, "/boot").unwrap();
        assert_eq!(found[0].kernel, "/boot/vmlinuz-2");
        assert_eq!(found[0].initrds, ["/a", "/b"]);
        assert_eq!(found[0].options.as_deref(), Some("root=LABEL=x"));
        assert_eq!(found[1].kernel, "/boot/extlinux/../vmlinuz-1");
        assert_eq!(found[1].options.as_deref(), Some("root=/dev/vda1 ro"));
        assert_eq!(found[2].options.as_deref(), Some("quiet"));
    }
}
