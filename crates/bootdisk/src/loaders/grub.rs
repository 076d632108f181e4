//! `grub.cfg`, as `grub-mkconfig` writes it.
//!
//! It is a script. What is taken from it are its menu, without its conditions,
//! and the default entry; a variable that is not known counts as empty, as it
//! does in GRUB.

use crate::error::BootError;
use crate::filesystem::FileSystem;
use crate::kernels::join;

use super::{Choice, absolute, environment};

/// Most entries and submenus.
const NODES_MAX: usize = 512;
/// Deepest submenu.
const DEPTH_MAX: usize = 8;
/// Most of the menu's entries that are tried after the default.
const OTHERS_MAX: usize = 4;

/// A menu entry or a submenu.
#[derive(Clone, Debug, Default)]
struct Node {
    title: String,
    id: Option<String>,
    choice: Option<Choice>,
    children: Vec<Node>,
}

/// A configuration.
#[derive(Debug, Default)]
struct Menu {
    nodes: Vec<Node>,
    /// Values given to `default`, in order.
    defaults: Vec<String>,
}

/// The default entry, then some of the others.
pub fn choices(fs: &dyn FileSystem, directory: &str) -> Result<Vec<Choice>, BootError> {
    for name in ["grub/grub.cfg", "grub2/grub.cfg"] {
        let Some(text) = fs.text(&join(directory, name))? else {
            continue;
        };
        let saved = environment(fs, directory, "saved_entry")?;
        let menu = parse(&text);
        let default = menu.default_path(saved.as_deref());
        let chosen = default.and_then(|path| find(&menu.nodes, &path, 0));
        let mut all = Vec::new();
        flatten(&menu.nodes, &mut all);
        all.truncate(OTHERS_MAX);
        all.retain(|other| Some(other) != chosen.as_ref());
        return Ok(chosen.into_iter().chain(all).collect());
    }
    Ok(Vec::new())
}

impl Menu {
    /// The path of the default entry. `next_entry` is left out: it is for one
    /// boot, and nothing here could take it away again.
    fn default_path(&self, saved: Option<&str>) -> Option<String> {
        let values = self.defaults.iter().rev();
        let mut values = values.filter(|value| !value.contains("next_entry"));
        let value = values.find(|value| !value.is_empty())?;
        if value.contains("saved_entry") {
            return Some(saved.unwrap_or("0").to_owned());
        }
        Some(value.clone())
    }
}

/// The entry at `path`: numbers, ids or titles with `>` between them. A path
/// that ends at a submenu means its first entry.
fn find(nodes: &[Node], path: &str, depth: usize) -> Option<Choice> {
    let (name, rest) = match path.split_once('>') {
        Some((name, rest)) => (name, Some(rest)),
        None => (path, None),
    };
    let by_number = || nodes.get(name.trim().parse::<usize>().ok()?);
    let is = |node: &&Node| node.id.as_deref() == Some(name) || node.title == name;
    // A title may contain the separator.
    let node = nodes
        .iter()
        .find(|node| node.title == path)
        .or_else(|| nodes.iter().find(is))
        .or_else(by_number)?;
    match (&node.choice, rest) {
        (Some(choice), _) => Some(choice.clone()),
        (None, rest) if depth < DEPTH_MAX => find(&node.children, rest.unwrap_or("0"), depth + 1),
        _ => None,
    }
}

fn flatten(nodes: &[Node], into: &mut Vec<Choice>) {
    for node in nodes {
        into.extend(node.choice.clone());
        flatten(&node.children, into);
    }
}

fn parse(text: &str) -> Menu {
    let mut menu = Menu::default();
    // Open menu entries and submenus, the innermost last; functions and the
    // like are open too, without a node.
    let mut open: Vec<Option<Node>> = Vec::new();
    let mut count = 0;
    for line in text.lines() {
        let words = words(line);
        let Some(command) = words.first().map(String::as_str) else {
            continue;
        };
        let opens = words.last().is_some_and(|word| word == "{");
        match command {
            "menuentry" | "submenu" if opens => {
                count += 1;
                if count > NODES_MAX || open.len() >= DEPTH_MAX {
                    break;
                }
                open.push(Some(node(&words)));
            }
            "}" => {
                let Some(closed) = open.pop() else { continue };
                let around = open.iter_mut().rev().flatten().next();
                let siblings = match around {
                    Some(around) => &mut around.children,
                    None => &mut menu.nodes,
                };
                siblings.extend(closed);
            }
            "set" => {
                let value = words.get(1).and_then(|word| word.strip_prefix("default="));
                menu.defaults.extend(value.map(str::to_owned));
            }
            "linux" | "linux16" | "linuxefi" => {
                if let (Some(node), Some(path)) = (innermost(&mut open), words.get(1)) {
                    node.choice = Some(Choice {
                        kernel: absolute(path, "/"),
                        initrds: Vec::new(),
                        options: Some(arguments(&words, 2).join(" ")),
                        chosen_by: "grub.cfg",
                    });
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                if let Some(choice) = innermost(&mut open).and_then(|node| node.choice.as_mut()) {
                    let paths = arguments(&words, 1);
                    choice.initrds = paths.iter().map(|path| absolute(path, "/")).collect();
                }
            }
            _ if opens => {
                if open.len() >= DEPTH_MAX {
                    break;
                }
                open.push(None);
            }
            _ => {}
        }
    }
    menu
}

fn innermost(open: &mut [Option<Node>]) -> Option<&mut Node> {
    open.last_mut()?.as_mut()
}

/// The words from `first` on that are not variables.
fn arguments(words: &[String], first: usize) -> Vec<&str> {
    let words = words.iter().skip(first).map(String::as_str);
    words
        .filter(|word| !word.is_empty() && (!word.starts_with('$') || word.contains('/')))
        .collect()
}

/// From the words `menuentry 'title' --id x {`.
fn node(words: &[String]) -> Node {
    let mut node = Node {
        title: words.get(1).cloned().unwrap_or_default(),
        ..Node::default()
    };
    for pair in words.windows(2) {
        let [option, value] = pair else { continue };
        if option == "--id" || option.contains("menuentry_id_option") {
            node.id = Some(value.clone());
        }
    }
    node
}

/// Splits a line as a shell would: quotes hold words together, a `#` at the
/// beginning of a word starts a comment, `;` is a word of its own.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | ';' => words.extend(word.take()),
            '#' if word.is_none() => break,
            '\'' => {
                let text = word.get_or_insert_default();
                text.extend(letters.by_ref().take_while(|letter| *letter != '\''));
            }
            '"' => {
                let text = word.get_or_insert_default();
                while let Some(letter) = letters.next() {
                    match letter {
                        '"' => break,
                        '\\' => text.extend(letters.next()),
                        letter => text.push(letter),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(letters.next()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    const DEBIAN: &str = r#"
# made by grub-mkconfig
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
else
   set default="DEFAULT"
fi
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; fi
	search --no-floppy --fs-uuid --set=root 1
	linux	/boot/vmlinuz-6.1.0-18-amd64 root=UUID=1 ro  quiet $vt_handoff
	initrd	/boot/initrd.img-6.1.0-18-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'advanced' {
	menuentry 'Debian, with Linux 6.1.0-18' --id six {
		linux /boot/vmlinuz-6.1.0-18-amd64 root=UUID=1 ro single "dyndbg=file a +p"
		initrd /boot/ucode.img $extra /boot/initrd.img-6.1.0-18-amd64
	}
	menuentry 'Debian, with Linux 5.10' --id five {
		linux ($root)/boot/vmlinuz-5.10 root=UUID=1 ro
	}
}
menuentry 'UEFI Firmware Settings' { fwsetup
}
"#;

    fn first(default: &str, saved: &str) -> Choice {
        let text = DEBIAN.replace("DEFAULT", default);
        let tree = Tree::new(&[
            ("/boot/grub/grub.cfg", text.as_str()),
            ("/boot/grub/grubenv", saved),
        ]);
        choices(&tree, "/boot").unwrap().remove(0)
    }

    #[test]
    fn the_default_is_taken() {
        let simple = first("0", "");
        assert_eq!(simple.kernel, "/boot/vmlinuz-6.1.0-18-amd64");
        assert_eq!(simple.initrds, ["/boot/initrd.img-6.1.0-18-amd64"]);
        assert_eq!(simple.options.as_deref(), Some("root=UUID=1 ro quiet"));
        assert_eq!(first("gnulinux-simple-1", ""), simple);
        assert_eq!(first("Debian GNU/Linux", ""), simple);
        // What there is none of, or what is no Linux.
        assert_eq!(first("99", ""), simple);
        assert_eq!(first("2", ""), simple);
    }

    #[test]
    fn paths_lead_into_submenus() {
        let five = first("1>1", "");
        assert_eq!(five.kernel, "/boot/vmlinuz-5.10");
        assert!(five.initrds.is_empty());
        assert_eq!(first("advanced>five", ""), five);
        let six = first("1", "");
        assert_eq!(six.initrds.len(), 2);
        assert!(six.options.unwrap().ends_with("single dyndbg=file a +p"));
    }

    #[test]
    fn a_saved_entry_counts() {
        let saved = "${saved_entry}";
        assert_eq!(
            first(saved, "saved_entry=advanced>five\n").kernel,
            "/boot/vmlinuz-5.10"
        );
        assert_eq!(first(saved, ""), first("0", ""));
        assert_eq!(first("0", "next_entry=advanced>five\n"), first("0", ""));
    }

    #[test]
    fn nesting_and_quotes_without_end_are_bounded() {
        let deep = "submenu 'x' {\n".repeat(10_000);
        assert!(parse(&deep).nodes.is_empty());
        let wide = "menuentry 'x' {\nlinux /v\n}\n".repeat(10_000);
        assert_eq!(parse(&wide).nodes.len(), NODES_MAX);
        assert_eq!(words("a 'b \"c"), ["a", "b \"c"]);
        assert_eq!(words(r#"a "b \" c" d\ e # f"#), ["a", "b \" c", "d e"]);
    }
}
