//! Usage errors in at most three lines.

use clap::error::ErrorKind;

use crate::exit::Exit;
use crate::say;

/// Prints help where it was asked for, else what is wrong with the command
/// line.
pub fn explain(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe (`croft --help | head -1`) is no failure.
            let _ = error.print();
            Exit::PowerOff
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Exit::Usage
        }
        _ => {
            for line in shorten(&error.render().to_string()) {
                say::line(&line);
            }
            Exit::Usage
        }
    }
}

/// The message, its detail if there is one, and where to read more.
fn shorten(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let usage = lines.iter().find_map(|line| line.strip_prefix("Usage: "));
    let message = lines
        .first()
        .map_or("wrong usage", |line| line.trim_start_matches("error: "));
    let detail: Vec<&str> = lines
        .iter()
        .skip(1)
        .take_while(|line| !line.starts_with("Usage: ") && !line.starts_with("For more"))
        .copied()
        .collect();
    let command = match usage.and_then(|usage| usage.split_whitespace().nth(1)) {
        Some(word) if word.chars().all(|c| c.is_ascii_lowercase()) => format!("croft {word}"),
        _ if message.contains("--") => "croft run".to_owned(),
        _ => "croft".to_owned(),
    };
    let mut short = vec![format!("croft: {message}")];
    if !detail.is_empty() {
        short.push(format!("  {}", detail.join(" ")));
    }
    short.push(format!("  see '{command} --help'"));
    short
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    #[test]
    fn three_lines_are_enough() {
        for (line, names) in [
            ("croft run --kernel x --colour", "--colour"),
            ("croft run", "--kernel"),
            ("croft run --kernel x --memory lots", "512M"),
            ("croft run --kernel x --cpus 0", "1 to 254"),
            ("croft run --kernel x --engine tcg", "software"),
            ("croft run --kernel x --cpu 486", "portable-v1"),
            ("croft run --kernel x stray", "IMAGE"),
            ("croft walk", "walk"),
            ("croft completion csh", "csh"),
        ] {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            let short = shorten(&error.render().to_string());
            assert!(short.len() <= 3, "{line}: {short:?}");
            assert!(short.concat().contains(names), "{line}: {short:?}");
            assert!(short.concat().contains("--help"), "{line}: {short:?}");
        }
    }
}
