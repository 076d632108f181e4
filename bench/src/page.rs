//! `docs/benchmarks.md`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use croft_tests::files::{Kernel, root};

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Where it is.
pub fn default() -> PathBuf {
    root().join("docs/benchmarks.md")
}

/// Replaces what is between the page's marks.
/// `load` is the host's before the first run, `command` what was typed.
pub fn update(page: &Path, command: &str, load: &str, tables: &[String]) -> io::Result<()> {
    let text = fs::read_to_string(page)?;
    let measured = format!("{}\n{}", circumstances(command, load), tables.join("\n"));
    let Some(text) = replace(&text, &measured) else {
        return Err(io::Error::other(format!(
            "has no lines '{BEGIN}' and '{END}' to write between"
        )));
    };
    fs::write(page, text)
}

fn replace(text: &str, measured: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{measured}\n{END}{after}"))
}

/// The host's load averages, over 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<&str> = text.split(' ').take(3).collect();
    words.join(" ")
}

/// What one must know to measure the same again.
fn circumstances(command: &str, load: &str) -> String {
    let root = root().to_string_lossy();
    let lines = [
        ("Date", said("date", &["+%F"])),
        (
            "Croft",
            said("git", &["-C", &root, "describe", "--always", "--dirty"]),
        ),
        ("Command", command.to_owned()),
        ("Processor", processor()),
        ("Host", said("uname", &["-sr"])),
        ("Load before it", load.to_owned()),
        ("QEMU", said("qemu-system-x86_64", &["--version"])),
        (
            "Kernels",
            [Kernel::Cloud, Kernel::Generic]
                .map(Kernel::release)
                .join(", "),
        ),
    ];
    let lines = lines.map(|(name, value)| format!("- {name}: {value}\n"));
    lines.concat()
}

/// The first line that a program prints.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.as_ref().ok().and_then(|text| text.lines().next());
    line.unwrap_or("unknown").to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name);
    let name = names.next().unwrap_or("unknown");
    let count = names.count() + 1;
    let virtual_machine = if text.contains(" hypervisor") {
        ", itself a virtual machine"
    } else {
        ""
    };
    format!("{name}, {count} cores{virtual_machine}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replace(&text, "new").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n{END}\nb\n"));
        assert_eq!(replace(&new, "new").unwrap(), new);
        assert_eq!(replace("a", "new"), None);
    }

    #[test]
    fn the_page_has_its_marks() {
        let text = fs::read_to_string(default()).unwrap();
        assert!(replace(&text, "").is_some());
    }
}
