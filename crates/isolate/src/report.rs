//! Which pieces of the jail there are, and why the others are not.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A piece of the jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Piece {
    /// A user namespace, and ids that own nothing.
    User,
    /// A mount namespace whose root is empty.
    Root,
    /// A process namespace.
    Processes,
    /// A network namespace with nothing in it.
    Network,
    /// Namespaces of inter-process communication and of the host's name.
    Names,
    /// No capabilities, and none to come by.
    Capabilities,
    /// Landlock: no file, no port.
    Landlock,
    /// System calls by role.
    Filters,
    /// Limits of the process (setrlimit(2)).
    Limits,
    /// A control group.
    ControlGroup,
}

impl Piece {
    /// As a line of a table is named.
    pub const fn word(self) -> &'static str {
        match self {
            Piece::User => "user",
            Piece::Root => "root",
            Piece::Processes => "processes",
            Piece::Network => "network",
            Piece::Names => "names",
            Piece::Capabilities => "capabilities",
            Piece::Landlock => "landlock",
            Piece::Filters => "filters",
            Piece::Limits => "limits",
            Piece::ControlGroup => "control group",
        }
    }

    /// What a payload is without it.
    const fn without(self) -> &'static str {
        match self {
            Piece::User => "no user namespace",
            Piece::Root => "no empty root",
            Piece::Processes => "no process namespace",
            Piece::Network => "no network namespace",
            Piece::Names => "no ipc and uts namespaces",
            Piece::Capabilities => "capabilities remain",
            Piece::Landlock => "no landlock",
            Piece::Filters => "no system call filters",
            Piece::Limits => "no process limits",
            Piece::ControlGroup => "no control group limits",
        }
    }
}

/// How it is with one piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub piece: Piece,
    /// It is there, if not wholly then to this extent; or why it is not.
    pub state: Result<String, String>,
}

impl Part {
    /// A piece that is there.
    pub fn there(piece: Piece, text: impl Into<String>) -> Self {
        Part {
            piece,
            state: Ok(text.into()),
        }
    }

    /// A piece that is not.
    pub fn missing(piece: Piece, why: impl fmt::Display) -> Self {
        Part {
            piece,
            state: Err(why.to_string()),
        }
    }
}

/// What to tell the operator of missing pieces: a line for each reason.
pub fn complaints(parts: &[Part]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for part in parts {
        let Err(why) = &part.state else { continue };
        let without = part.piece.without();
        match reasons.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, all)) => all.push(without),
            None => reasons.push((why, vec![without])),
        }
    }
    let line = |(why, all): (&str, Vec<&str>)| format!("the jail has {}: {why}", all.join(", "));
    reasons.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_complained_about() {
        let parts = [
            Part::there(Piece::Limits, "all"),
            Part::missing(Piece::User, "refused"),
            Part::missing(Piece::Landlock, "too old"),
            Part::missing(Piece::Root, "refused"),
        ];
        assert_eq!(
            complaints(&parts),
            [
                "the jail has no user namespace, no empty root: refused",
                "the jail has no landlock: too old"
            ]
        );
    }
}
