//! Names of images.
//!
//! `debian:12`, `web`, `team/web:2026-11`: parts of small letters, digits,
//! `.`, `_` and `-`, a letter or digit first, joined by `/`; after a colon a
//! tag, which may have capitals. A name without a tag is just that name: no
//! tag is added in silence.
//!
//! What comes from a registry has its whole name there: `docker.io/library/web:1`,
//! `registry.example:5000/web@sha256:...`. It is found by what people call it as
//! well, unless that is another image's own name.

use oci_spec::distribution::Reference;

use crate::{Digest, Error};

/// Longest name, in bytes.
const LONGEST: usize = 255;

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
        return wrong("it is longer than 255 bytes");
    }
    let (rest, digest) = match name.split_once("@sha256:") {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|digest| Digest::parse(digest).is_none()) {
        return wrong("what follows @sha256: is no digest");
    }
    // A colon before a slash is of a registry's port.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
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
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() > 1
        && let Some(first) = parts.first_mut()
        && let Some((host, port)) = first.split_once(':')
        && port.parse::<u16>().is_ok()
    {
        *first = host;
    }
    if !parts.iter().all(|text| part(text, false)) {
        return wrong("parts are small letters, digits, '.', '_' and '-', a letter or digit first");
    }
    if tag.is_some_and(|tag| !part(tag, true)) {
        return wrong("a tag is letters, digits, '.', '_' and '-', a letter or digit first");
    }
    if tag.is_none() && digest.is_none() && is_id(path) {
        return wrong("it looks like an id");
    }
    Ok(())
}

/// The whole name that a registry's image has whom people call this; nothing
/// if nobody could.
pub fn whole(name: &str) -> Option<String> {
    let reference: Reference = name.parse().ok()?;
    let whole = reference.whole();
    check(&whole).is_ok().then_some(whole)
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
            "localhost:5000/web",
            "registry.example:5000/team/web:A",
            &format!("docker.io/library/web@sha256:{}", "ab".repeat(32)),
        ] {
            check(good).unwrap();
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "Debian",
            "/etc",
            "../x",
            "a//b",
            "a:",
            ":1",
            "a:b:c",
            "a b",
            "ü",
            "a/",
            "-x",
            "a:-1",
            "a\n",
            "deadbeef",
            &long,
            "a:b/c",
            "h:1:2/c",
            "h:99999/c",
            "web@sha256:12",
            "@sha256:12",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_people_call_it_has_a_whole_name() {
        for (name, wanted) in [
            ("web", "docker.io/library/web:latest"),
            ("team/web:1", "docker.io/team/web:1"),
            ("quay.io/web", "quay.io/web:latest"),
            ("localhost:5000/web:A", "localhost:5000/web:A"),
        ] {
            assert_eq!(whole(name).unwrap(), wanted);
        }
        for bad in ["", "Web", "a b", "a/../b"] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}
