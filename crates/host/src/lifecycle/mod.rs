//! The life of an instance, of either kind.
//!
//! ```text
//!            Start                 Started
//!  created ─────────► starting ──────────────► running ◄───────────┐
//!  stopped               ▲  │ Ended            │  │  │ Held          │ Continued
//!  failed                │  │                  │  │  └──────► paused ┘
//!     ▲                  │  │                  │  │ Crashed     │ Stop
//!     │                  │  │                  │  └──► crashed ─┤
//!     │                  │  │                  │ Stop   │       │
//!     │      Time, Start │  │            Ended │        ▼       ▼
//!     │                  │  │                  │     stopping: button ─► plug ─► killed
//!     │                  │  │                  │        │ Ended
//!     │                  │  ▼                  ▼        ▼
//!     │                  │ ( what now? ──────────────────── )
//!     │                  │    │ policy      │ Restart   │ Stop, or no policy applies
//!     │                  └ waiting      starting     stopped, failed
//!     │ Stop                │
//!     └─────────────────────┘
//! ```
//!
//! # Contract
//!
//! * One owner: who has the instance's lock has its [`Lifecycle`], and hands
//!   it every input in the order in which they come. It is pure: it knows no
//!   process, no file and no clock. Inputs come with the time, and what is to
//!   be done comes back as [`Action`]s, to be done in their order.
//! * A *payload* exists from [`Action::Spawn`] until [`Input::Ended`], and in
//!   no other phase than those of [`Phase::has_payload`]. There is never a
//!   second one: `Ended` is given when the last one is gone entirely, with all
//!   its locks, or when it could not be spawned.
//! * Commands may be refused, and then change nothing. All other inputs are
//!   facts, and are accepted in every phase: what is late is ignored.
//! * What was stopped stays stopped: after an accepted [`Command::Stop`] or
//!   [`Command::Kill`] nothing is spawned until there is another command. The
//!   restart policy is for what ends by itself.
//! * Stopping ends. The guest has the time it was given; then the plug is
//!   pulled and the payload has [`GRACE`]; then it is killed. While
//!   [`Lifecycle::deadline`] is there, [`Input::Time`] is given when it has
//!   passed.
//! * A payload that fails again and again is started less and less often: after
//!   1, 2, 4 … seconds, at most [`BACKOFF_MAX`]; from the beginning again once
//!   it has run for [`STEADY`].
//! * A configuration that cannot be ([`Outcome::Invalid`]) is not tried again,
//!   and neither is a container whose program is not there
//!   ([`Outcome::NotExecuted`]) or a machine that was saved.
//! * A machine's button is a signal to a container's init, its plug that
//!   init's killing; a container does not crash and is not reset.

#[cfg(test)]
mod tests;

use std::time::Duration;

use croft_api::{Outcome, Phase, RestartPolicy};
use thiserror::Error;

/// How long a payload may take to end when the plug is pulled.
pub const GRACE: Duration = Duration::from_secs(5);
/// First time to wait before a restart.
pub const BACKOFF: Duration = Duration::from_secs(1);
/// Longest time to wait before a restart.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// An instance that has run for so long runs well.
pub const STEADY: Duration = Duration::from_secs(60);

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// That it runs.
    Start,
    /// That it ends: by itself within this time, or else by force.
    Stop(Duration),
    /// That it ends now.
    Kill,
    /// That it ends as by [`Command::Stop`] and runs again.
    Restart(Duration),
    /// That it is held.
    Pause,
    /// That it continues.
    Resume,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants something.
    Command(Command),
    /// The payload runs.
    Started,
    /// It is held.
    Held,
    /// It continues.
    Continued,
    /// The guest's kernel has panicked.
    Crashed,
    /// The guest was reset, and runs anew.
    Reset,
    /// The payload is gone, or could not be spawned.
    Ended(Outcome),
    /// Time has passed.
    Time,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the payload.
    Spawn,
    /// Press its power button.
    PressButton,
    /// Tell it to end now.
    PullPlug,
    /// Kill it.
    Kill,
    /// Hold it.
    Hold,
    /// Let it continue.
    Continue,
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// For a start.
    #[error("it runs already")]
    Runs,
    /// For everything that needs it to run.
    #[error("it does not run ({0}); start it first")]
    DoesNotRun(Phase),
    /// For a start, a restart or a pause.
    #[error("it is being stopped; wait for that")]
    IsStopping,
    /// For a pause or a resume.
    #[error("it is {0}")]
    Is(Phase),
}

/// How far stopping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Force {
    Button,
    Plug,
    Kill,
}

/// What follows when the payload is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Policy,
    /// By policy, as one that has failed.
    Failed,
    Stop,
    Start,
}

/// An instance's life.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Phase,
    policy: RestartPolicy,
    next: Next,
    force: Force,
    deadline: Option<Duration>,
    /// When it began to run.
    running_since: Option<Duration>,
    restarts: u32,
}

impl Lifecycle {
    /// Of an instance without a payload.
    pub fn new(policy: RestartPolicy) -> Self {
        Lifecycle {
            phase: Phase::Created,
            policy,
            next: Next::Policy,
            force: Force::Button,
            deadline: None,
            running_since: None,
            restarts: 0,
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Input::Time`] is wanted.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// How often it was started by its policy since it last ran well.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Takes an input at `now`, the time since any fixed moment. Only a
    /// command can be refused.
    pub fn handle(&mut self, input: Input, now: Duration) -> Result<Vec<Action>, Refusal> {
        Ok(match input {
            Input::Command(command) => return self.command(command, now),
            Input::Started => {
                if self.phase == Phase::Starting {
                    self.running_since = Some(now);
                    self.phase = Phase::Running;
                }
                vec![]
            }
            Input::Held => {
                self.pass(Phase::Running, Phase::Paused);
                vec![]
            }
            Input::Continued => {
                self.pass(Phase::Paused, Phase::Running);
                vec![]
            }
            Input::Reset => {
                self.pass(Phase::Crashed, Phase::Running);
                vec![]
            }
            Input::Crashed => self.crashed(now),
            Input::Ended(outcome) => self.ended(&outcome, now),
            Input::Time => self.time(now),
        })
    }

    fn pass(&mut self, from: Phase, to: Phase) {
        if self.phase == from {
            self.phase = to;
        }
    }

    fn command(&mut self, command: Command, now: Duration) -> Result<Vec<Action>, Refusal> {
        match command {
            Command::Start => self.start(),
            Command::Stop(timeout) => self.end(timeout, Next::Stop, now),
            Command::Kill => self.kill(now),
            Command::Restart(timeout) => match self.phase {
                Phase::Stopping => Err(Refusal::IsStopping),
                phase if phase.has_payload() => self.end(timeout, Next::Start, now),
                _ => self.start(),
            },
            Command::Pause => match self.phase {
                Phase::Running => Ok(vec![Action::Hold]),
                Phase::Stopping => Err(Refusal::IsStopping),
                phase if phase.has_payload() => Err(Refusal::Is(phase)),
                phase => Err(Refusal::DoesNotRun(phase)),
            },
            Command::Resume => match self.phase {
                Phase::Paused => Ok(vec![Action::Continue]),
                phase if phase.has_payload() => Err(Refusal::Is(phase)),
                phase => Err(Refusal::DoesNotRun(phase)),
            },
        }
    }

    fn start(&mut self) -> Result<Vec<Action>, Refusal> {
        match self.phase {
            Phase::Stopping => Err(Refusal::IsStopping),
            phase if phase.has_payload() => Err(Refusal::Runs),
            _ => {
                self.restarts = 0;
                Ok(self.spawn())
            }
        }
    }

    fn spawn(&mut self) -> Vec<Action> {
        self.phase = Phase::Starting;
        self.next = Next::Policy;
        self.deadline = None;
        self.running_since = None;
        vec![Action::Spawn]
    }

    /// Asks it to end; `next` is what follows.
    fn end(
        &mut self,
        timeout: Duration,
        next: Next,
        now: Duration,
    ) -> Result<Vec<Action>, Refusal> {
        let wanted = now.saturating_add(timeout);
        match self.phase {
            Phase::Created | Phase::Stopped | Phase::Failed => Err(Refusal::DoesNotRun(self.phase)),
            Phase::Waiting => {
                self.rest(Phase::Stopped);
                Ok(vec![])
            }
            Phase::Stopping => {
                // Whoever has less patience counts.
                self.next = next;
                if self.force == Force::Button {
                    self.deadline = self.deadline.map(|at| at.min(wanted));
                }
                Ok(self.time(now))
            }
            // Nobody is there to hear a button.
            Phase::Starting | Phase::Crashed => Ok(self.pull_plug(next, now)),
            Phase::Running | Phase::Paused if timeout.is_zero() => Ok(self.pull_plug(next, now)),
            Phase::Running | Phase::Paused => {
                let held = self.phase == Phase::Paused;
                self.phase = Phase::Stopping;
                self.next = next;
                self.force = Force::Button;
                self.deadline = Some(wanted);
                let first = held.then_some(Action::Continue);
                Ok(first.into_iter().chain([Action::PressButton]).collect())
            }
        }
    }

    fn pull_plug(&mut self, next: Next, now: Duration) -> Vec<Action> {
        self.phase = Phase::Stopping;
        self.next = next;
        self.force = Force::Plug;
        self.deadline = Some(now.saturating_add(GRACE));
        vec![Action::PullPlug]
    }

    fn kill(&mut self, now: Duration) -> Result<Vec<Action>, Refusal> {
        match self.phase {
            Phase::Waiting => {
                self.rest(Phase::Stopped);
                Ok(vec![])
            }
            phase if phase.has_payload() => {
                self.phase = Phase::Stopping;
                self.next = Next::Stop;
                Ok(self.force_kill(now))
            }
            phase => Err(Refusal::DoesNotRun(phase)),
        }
    }

    fn force_kill(&mut self, now: Duration) -> Vec<Action> {
        self.force = Force::Kill;
        // A killed process may take its time in the host's kernel: again.
        self.deadline = Some(now.saturating_add(GRACE));
        vec![Action::Kill]
    }

    fn crashed(&mut self, now: Duration) -> Vec<Action> {
        match (self.phase, self.policy) {
            (Phase::Running | Phase::Paused, RestartPolicy::No) => {
                self.phase = Phase::Crashed;
                vec![]
            }
            (Phase::Running | Phase::Paused, _) => self.pull_plug(Next::Failed, now),
            // A guest that is to end and crashes will not do so by itself.
            (Phase::Stopping, _) if self.force == Force::Button => self.pull_plug(self.next, now),
            _ => vec![],
        }
    }

    fn time(&mut self, now: Duration) -> Vec<Action> {
        if self.deadline.is_none_or(|at| now < at) {
            return vec![];
        }
        match (self.phase, self.force) {
            (Phase::Waiting, _) => self.spawn(),
            (Phase::Stopping, Force::Button) => self.pull_plug(self.next, now),
            (Phase::Stopping, Force::Plug | Force::Kill) => self.force_kill(now),
            _ => vec![],
        }
    }

    fn ended(&mut self, outcome: &Outcome, now: Duration) -> Vec<Action> {
        if !self.phase.has_payload() {
            return vec![];
        }
        if let Some(since) = self.running_since.take()
            && now.saturating_sub(since) >= STEADY
        {
            self.restarts = 0;
        }
        let failed = match outcome {
            Outcome::TripleFault { .. } | Outcome::Killed { .. } | Outcome::Failed { .. } => true,
            Outcome::Exited { status } if *status != 0 => true,
            Outcome::Exited { .. }
            | Outcome::NotExecuted { .. }
            | Outcome::PowerOff
            | Outcome::Reset
            | Outcome::DebugExit { .. }
            | Outcome::Requested
            | Outcome::Saved
            | Outcome::Invalid { .. } => self.next == Next::Failed,
        };
        match (self.next, outcome) {
            (Next::Stop, _) | (_, Outcome::Saved) => self.rest(Phase::Stopped),
            (_, Outcome::Invalid { .. } | Outcome::NotExecuted { .. }) => self.rest(Phase::Failed),
            (Next::Start, _) => {
                self.restarts = 0;
                return self.spawn();
            }
            (Next::Policy | Next::Failed, _) => match (self.policy, failed) {
                (RestartPolicy::Always, _) | (RestartPolicy::OnFailure, true) => self.wait(now),
                (_, true) => self.rest(Phase::Failed),
                (_, false) => self.rest(Phase::Stopped),
            },
        }
        vec![]
    }

    fn wait(&mut self, now: Duration) {
        let doubled = BACKOFF.saturating_mul(1u32.checked_shl(self.restarts).unwrap_or(u32::MAX));
        self.restarts = self.restarts.saturating_add(1);
        self.phase = Phase::Waiting;
        self.deadline = Some(now.saturating_add(doubled.min(BACKOFF_MAX)));
    }

    fn rest(&mut self, phase: Phase) {
        self.phase = phase;
        self.deadline = None;
        self.running_since = None;
    }
}
