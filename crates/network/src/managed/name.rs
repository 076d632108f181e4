//! Names of networks, and of what belongs to them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most characters: `cr-` and the name are the name of the bridge, which has
/// room for 15.
const LENGTH_MAX: usize = 12;
/// Words that `--net` has for something else.
const RESERVED: [&str; 4] = ["user", "none", "bridge", "host"];

/// A network's name: 1 to 12 small letters, digits and `-`, a letter first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NetworkName(String);

/// A text that is no network's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkNameError {
    /// By its characters.
    #[error("'{0}' is no name of a network; use 1 to 12 of a-z, 0-9 and '-', a letter first")]
    Form(String),
    /// It means something else.
    #[error("'{0}' means something else to --net; choose another name")]
    Reserved(String),
}

impl NetworkName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its bridge.
    pub fn bridge(&self) -> String {
        format!("cr-{}", self.0)
    }

    /// The name of its VLAN's interface.
    pub fn vlan(&self) -> String {
        format!("cv-{}", self.0)
    }
}

impl FromStr for NetworkName {
    type Err = NetworkNameError;

    fn from_str(text: &str) -> Result<Self, NetworkNameError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins || text.len() > LENGTH_MAX || !text.chars().all(plain) {
            return Err(NetworkNameError::Form(text.to_owned()));
        }
        if RESERVED.contains(&text) {
            return Err(NetworkNameError::Reserved(text.to_owned()));
        }
        Ok(NetworkName(text.to_owned()))
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<Path> for NetworkName {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> String {
        name.0
    }
}

impl TryFrom<String> for NetworkName {
    type Error = NetworkNameError;

    fn try_from(text: String) -> Result<Self, NetworkNameError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web-1", "twelve-chars"] {
            let name: NetworkName = good.parse().unwrap();
            assert!(name.bridge().len() <= crate::link::NAME_MAX);
        }
        for bad in [
            "",
            "-a",
            "1a",
            "Web",
            "a.b",
            "a b",
            "a/b",
            "..",
            "ü",
            "a\n",
            "thirteen-char",
        ] {
            let error = bad.parse::<NetworkName>().unwrap_err();
            assert_eq!(error, NetworkNameError::Form(bad.to_owned()));
        }
        for reserved in RESERVED {
            assert!(reserved.parse::<NetworkName>().is_err());
        }
    }
}
