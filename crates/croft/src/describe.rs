//! What commands that list things and show them have in common.

use serde::Serialize;

use crate::exit::Exit;
use crate::{print, say};

/// As JSON, for programs.
pub fn json<T: Serialize + ?Sized>(what: &T) -> Result<String, String> {
    serde_json::to_string_pretty(what)
        .map(|text| text + "\n")
        .map_err(|error| format!("cannot write JSON: {error}"))
}

/// Those that can be read; the others are named on standard error, and the exit
/// code says so.
pub fn readable<T, E: std::fmt::Display>(
    all: impl IntoIterator<Item = Result<T, E>>,
) -> (Vec<T>, Exit) {
    let mut exit = Exit::PowerOff;
    let mut known = Vec::new();
    for one in all {
        match one {
            Ok(one) => known.push(one),
            Err(error) => {
                say::line(&format!("croft: {error}"));
                exit = Exit::Failed;
            }
        }
    }
    (known, exit)
}

/// Prints a list, of which `exit` is what it was to make it.
pub fn print_list(text: &str, exit: Exit) -> Exit {
    match print(text.as_bytes()) {
        Exit::PowerOff => exit,
        failed => failed,
    }
}

/// Lines of what is known of a thing.
pub fn page<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let lines = rows.into_iter();
    let lines = lines.map(|(what, value)| format!("{:<14}{value}\n", format!("{what}:")));
    lines.collect()
}

/// Seconds since 1970 as a date and time in UTC.
pub fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(
        || "-".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_of_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_798_761_599, "2026-12-31 23:59"),
            (u64::MAX, "-"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn what_cannot_be_read_does_not_hide_the_rest() {
        let (known, exit) = readable([Ok(1), Err("no"), Ok(3)]);
        assert_eq!((known, exit), (vec![1, 3], Exit::Failed));
        assert_eq!(page([("name", "x".to_owned())]), "name:         x\n");
    }
}
