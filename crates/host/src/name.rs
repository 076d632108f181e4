//! Names of instances.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

/// Most characters: a label of a host name (RFC 1035, 2.3.4).
const LENGTH_MAX: usize = 63;

/// A name that can be one component of a path: 1 to 63 letters, digits, `-`,
/// `_` and `.`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);

/// A text that is no name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first")]
pub struct NameError;

impl InstanceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= LENGTH_MAX && text.chars().all(plain) {
            Ok(InstanceName(text.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for InstanceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for InstanceName {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component_of_a_path() {
        let long = "x".repeat(LENGTH_MAX + 1);
        for bad in ["", "-x", ".", "..", ".new", "a b", "a/b", "ü", "a\n", &long] {
            assert_eq!(bad.parse::<InstanceName>(), Err(NameError), "{bad}");
        }
        for good in ["a", "web-1.test", "9_", &long[1..]] {
            assert_eq!(good.parse::<InstanceName>().unwrap().as_str(), good);
        }
    }
}
