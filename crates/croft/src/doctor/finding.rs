//! What the doctor finds.

use serde::Serialize;

/// What a finding is about; a heading of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What executes machines.
    Engines,
    /// What limits and counts what instances use.
    ControlGroups,
    /// What sets containers and helpers apart.
    Namespaces,
    /// What containers are made with.
    Containers,
    /// What keeps machines from the host.
    Jail,
    /// What joins instances to networks.
    Networking,
    /// Programs that do parts of the work.
    Tools,
}

impl Part {
    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Part::Engines => "engines",
            Part::ControlGroups => "control groups",
            Part::Namespaces => "namespaces",
            Part::Containers => "containers",
            Part::Jail => "jail",
            Part::Networking => "networking",
            Part::Tools => "tools",
        }
    }
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There and usable.
    Ok,
    /// There, and less than it could be.
    Limited,
    /// Not there, or not usable.
    Missing,
}

impl State {
    /// In the table.
    pub fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        }
    }
}

/// One line of what the doctor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub part: Part,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What there is, or what is missing.
    pub text: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(part: Part, name: &str, text: impl Into<String>) -> Self {
        Finding {
            part,
            name: name.to_owned(),
            state: State::Ok,
            text: text.into(),
            remedy: None,
        }
    }

    /// Something is less than it could be.
    pub fn limited(
        part: Part,
        name: &str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding {
            state: State::Limited,
            remedy: Some(remedy.into()),
            ..Finding::ok(part, name, text)
        }
    }

    /// Something is missing.
    pub fn missing(
        part: Part,
        name: &str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding {
            state: State::Missing,
            remedy: Some(remedy.into()),
            ..Finding::ok(part, name, text)
        }
    }
}
