//! What is known of an instance while it lives: written by its monitor to
//! `state.json`, and told to whoever asks at its control socket.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// Version of `state.json` that this build writes.
pub const STATE_VERSION: u32 = 1;

/// Where an instance is in its life; `croft_host::lifecycle` has the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has never been started.
    Created,
    /// Its payload is being made.
    Starting,
    /// It runs.
    Running,
    /// It is held: no instruction executes and its time stands still.
    Paused,
    /// Its guest's kernel has panicked; the machine still runs.
    Crashed,
    /// It was asked to end.
    Stopping,
    /// It ended, and waits to be started again by its restart policy.
    Waiting,
    /// It ended as it should.
    Stopped,
    /// It ended as it should not.
    Failed,
}

impl Phase {
    /// Whether there is a payload: a process that executes it.
    pub fn has_payload(self) -> bool {
        matches!(
            self,
            Phase::Starting | Phase::Running | Phase::Paused | Phase::Crashed | Phase::Stopping
        )
    }

    /// Whether it has a monitor. One without can be changed and deleted.
    pub fn is_live(self) -> bool {
        self.has_payload() || self == Phase::Waiting
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Created => "created",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Crashed => "crashed",
            Phase::Stopping => "stopping",
            Phase::Waiting => "waiting",
            Phase::Stopped => "stopped",
            Phase::Failed => "failed",
        })
    }
}

/// What happens when an instance ends and nobody asked it to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again if it failed.
    OnFailure,
    /// It is started again.
    Always,
}

/// A process, told apart from later ones with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks after the host was (proc(5),
    /// `/proc/PID/stat`, field 22).
    pub started: u64,
}

/// What the guest's agent has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The guest is ready: it has come up and can be used.
    pub ready: bool,
}

/// What is known of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when, in milliseconds after 1970.
    pub since: u64,
    /// Its monitor, while it has one.
    pub monitor: Option<ProcessId>,
    /// Its payload, while it has one.
    pub payload: Option<ProcessId>,
    /// What executes it, and why that.
    pub engine: Option<(String, String)>,
    /// How often it has been started in all its life.
    pub starts: u64,
    /// How often it has been started by its policy since it last ran well.
    pub restarts: u32,
    /// How it ended last.
    pub outcome: Option<Outcome>,
    /// What else there is to say of its phase: why it is held, for example.
    pub note: Option<String>,
    /// The guest's agent, if it was heard since the last start.
    pub agent: Option<AgentStatus>,
    /// What is plugged in and can be unplugged, or is what it boots from.
    #[serde(default)]
    pub devices: Vec<Plugged>,
}

/// A device of an instance that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Its name: `disk0`, `net0`.
    pub name: String,
    /// What is behind it, for people.
    pub what: String,
    /// It is not there at the next start.
    pub live_only: bool,
    /// The guest was asked to release it and has not yet.
    pub leaving: bool,
}

impl Status {
    /// Of an instance that was created at `since` and never started.
    pub fn created(since: u64) -> Self {
        Status {
            version: STATE_VERSION,
            phase: Phase::Created,
            since,
            monitor: None,
            payload: None,
            engine: None,
            starts: 0,
            restarts: 0,
            outcome: None,
            note: None,
            agent: None,
            devices: Vec::new(),
        }
    }
}
