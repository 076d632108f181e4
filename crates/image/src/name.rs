//! Names of images.
//!
//! `debian:12`, `web`, `team/web:2026-11`: parts of small letters, digits,
//! `.`, `_` and `-`, a letter or digit first, joined by `/`; after a colon a
//! tag, which may have capitals. A name without a tag is just that name: no
//! tag is added in silence.

use crate::Error;

/// Longest name, in bytes.
const LONGEST: usize = 128;

/// Checks a name that an image is to get.
pub fn check(name: &str) -> Result<(), Error> {
    let wrong = |why| {
        Err(Error::Name {
            name: name.to_owned(),
            why,
        })
    };
    if name.is_empty() {
        return wrong("it is empty");
    }
    if name.len() > LONGEST {
        return wrong("it is longer than 128 bytes");
    }
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name, None),
    };
    let part = |text: &str, capitals: bool| {
        let letter = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || (capitals && c.is_ascii_uppercase())
        };
        text.starts_with(letter)
            && text
                .chars()
                .all(|c| letter(c) || matches!(c, '.' | '_' | '-'))
    };
    if !path.split('/').all(|text| part(text, false)) {
        return wrong("parts are small letters, digits, '.', '_' and '-', a letter or digit first");
    }
    if tag.is_some_and(|tag| !part(tag, true)) {
        return wrong("a tag is letters, digits, '.', '_' and '-', a letter or digit first");
    }
    if tag.is_none() && is_id(path) {
        return wrong("it looks like an id");
    }
    Ok(())
}

/// Whether a reference can be the beginning of an id: at least eight
/// hexadecimal digits.
pub fn is_id(reference: &str) -> bool {
    (8..=64).contains(&reference.len())
        && reference
            .bytes()
            .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in [
            "debian:12",
            "a",
            "team/web:2026-11",
            "x.y_z-1:A",
            "0a",
            "deadbee",
        ] {
            check(good).unwrap();
        }
        let long = "a".repeat(129);
        for bad in [
            "", "Debian", "/etc", "../x", "a//b", "a:", ":1", "a:b:c", "a b", "ü", "a/", "-x",
            "a:-1", "a\n", "deadbeef", &long,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
