use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn failed() -> Outcome {
    Outcome::Failed {
        message: "test".to_owned(),
    }
}

/// A life and its time.
struct Life {
    life: Lifecycle,
    now: Duration,
}

impl Life {
    fn new(policy: RestartPolicy) -> Self {
        Life {
            life: Lifecycle::new(policy),
            now: SECOND,
        }
    }

    fn running(policy: RestartPolicy) -> Self {
        let mut life = Life::new(policy);
        assert_eq!(life.ask(Command::Start), Ok(vec![Action::Spawn]));
        assert_eq!(life.tell(Input::Started), vec![]);
        assert_eq!(life.life.phase(), Phase::Running);
        life
    }

    fn ask(&mut self, command: Command) -> Result<Vec<Action>, Refusal> {
        self.life.handle(Input::Command(command), self.now)
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.life.handle(input, self.now).unwrap()
    }

    /// Goes on to the deadline.
    fn expire(&mut self) -> Vec<Action> {
        self.now = self.life.deadline().expect("a deadline");
        self.tell(Input::Time)
    }
}

#[test]
fn stopping_gets_rougher_until_it_has_stopped() {
    let mut life = Life::running(RestartPolicy::Always);
    let patience = Duration::from_secs(30);
    assert_eq!(
        life.ask(Command::Stop(patience)),
        Ok(vec![Action::PressButton])
    );
    assert_eq!(life.tell(Input::Time), vec![], "it is not yet time");
    assert_eq!(life.expire(), vec![Action::PullPlug]);
    assert_eq!(life.expire(), vec![Action::Kill]);
    assert_eq!(life.expire(), vec![Action::Kill]);
    assert_eq!(life.tell(Input::Ended(failed())), vec![]);
    assert_eq!(life.life.phase(), Phase::Stopped);
    assert_eq!(
        life.ask(Command::Stop(patience)),
        Err(Refusal::DoesNotRun(Phase::Stopped))
    );
}

#[test]
fn who_cannot_hear_a_button_is_not_asked_by_it() {
    let mut life = Life::running(RestartPolicy::No);
    life.tell(Input::Held);
    assert_eq!(
        life.ask(Command::Stop(SECOND)),
        Ok(vec![Action::Continue, Action::PressButton])
    );
    let mut life = Life::new(RestartPolicy::No);
    life.ask(Command::Start).unwrap();
    assert_eq!(life.ask(Command::Stop(SECOND)), Ok(vec![Action::PullPlug]));
    let mut life = Life::running(RestartPolicy::No);
    life.tell(Input::Crashed);
    assert_eq!(life.life.phase(), Phase::Crashed);
    assert_eq!(life.ask(Command::Stop(SECOND)), Ok(vec![Action::PullPlug]));
    let mut life = Life::running(RestartPolicy::No);
    life.ask(Command::Stop(SECOND * 60)).unwrap();
    assert_eq!(life.tell(Input::Crashed), vec![Action::PullPlug]);
}

#[test]
fn the_impatient_count() {
    let mut life = Life::running(RestartPolicy::No);
    life.ask(Command::Restart(SECOND * 60)).unwrap();
    assert_eq!(life.ask(Command::Restart(SECOND)), Err(Refusal::IsStopping));
    assert_eq!(life.ask(Command::Stop(SECOND * 2)), Ok(vec![]));
    assert_eq!(life.life.deadline(), Some(life.now + SECOND * 2));
    assert_eq!(
        life.ask(Command::Stop(Duration::ZERO)),
        Ok(vec![Action::PullPlug])
    );
    assert_eq!(life.ask(Command::Kill), Ok(vec![Action::Kill]));
    life.tell(Input::Ended(Outcome::Requested));
    assert_eq!(life.life.phase(), Phase::Stopped);
}

#[test]
fn each_policy_has_its_way() {
    use RestartPolicy::{Always, No, OnFailure};
    let crash = Outcome::TripleFault {
        report: String::new(),
    };
    let absent = Outcome::NotExecuted {
        status: 127,
        message: "there is no such program".to_owned(),
    };
    let invalid = Outcome::Invalid {
        message: String::new(),
    };
    for (policy, outcome, phase) in [
        (No, Outcome::PowerOff, Phase::Stopped),
        (No, Outcome::Exited { status: 0 }, Phase::Stopped),
        (No, Outcome::Exited { status: 1 }, Phase::Failed),
        (OnFailure, Outcome::Exited { status: 0 }, Phase::Stopped),
        (OnFailure, Outcome::Exited { status: 1 }, Phase::Waiting),
        (Always, Outcome::Exited { status: 0 }, Phase::Waiting),
        (Always, absent.clone(), Phase::Failed),
        (No, failed(), Phase::Failed),
        (No, crash.clone(), Phase::Failed),
        (OnFailure, Outcome::PowerOff, Phase::Stopped),
        (OnFailure, failed(), Phase::Waiting),
        (OnFailure, crash, Phase::Waiting),
        (OnFailure, invalid.clone(), Phase::Failed),
        (Always, Outcome::PowerOff, Phase::Waiting),
        (Always, failed(), Phase::Waiting),
        (Always, Outcome::Saved, Phase::Stopped),
        (Always, invalid, Phase::Failed),
    ] {
        let mut life = Life::running(policy);
        assert_eq!(life.tell(Input::Ended(outcome.clone())), vec![]);
        assert_eq!(life.life.phase(), phase, "{policy:?} {outcome:?}");
    }
}

#[test]
fn a_crash_is_a_failure() {
    let mut life = Life::running(RestartPolicy::OnFailure);
    assert_eq!(life.tell(Input::Crashed), vec![Action::PullPlug]);
    life.tell(Input::Ended(Outcome::Requested));
    assert_eq!(life.life.phase(), Phase::Waiting);
    // One that comes back by itself was none.
    let mut life = Life::running(RestartPolicy::No);
    life.tell(Input::Crashed);
    life.tell(Input::Reset);
    assert_eq!(life.life.phase(), Phase::Running);
}

#[test]
fn restarts_become_rarer_until_it_runs_well() {
    let mut life = Life::running(RestartPolicy::OnFailure);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        life.tell(Input::Ended(failed()));
        assert_eq!(life.life.deadline(), Some(life.now + SECOND * seconds));
        assert_eq!(life.expire(), vec![Action::Spawn]);
        life.tell(Input::Started);
    }
    assert_eq!(life.life.restarts(), 9);
    life.now += STEADY;
    life.tell(Input::Ended(failed()));
    assert_eq!(life.life.deadline(), Some(life.now + BACKOFF));
    // A command does not wait.
    assert_eq!(life.ask(Command::Start), Ok(vec![Action::Spawn]));
    life.tell(Input::Ended(failed()));
    assert_eq!(life.ask(Command::Kill), Ok(vec![]));
    assert_eq!(life.life.phase(), Phase::Stopped);
}

#[test]
fn a_restart_is_a_new_payload() {
    let mut life = Life::running(RestartPolicy::No);
    assert_eq!(
        life.ask(Command::Restart(SECOND)),
        Ok(vec![Action::PressButton])
    );
    assert_eq!(
        life.tell(Input::Ended(Outcome::PowerOff)),
        vec![Action::Spawn]
    );
    assert_eq!(life.life.phase(), Phase::Starting);
}

fn commands() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Command::Start),
        (0..40_000u64).prop_map(|ms| Command::Stop(Duration::from_millis(ms))),
        Just(Command::Kill),
        (0..40_000u64).prop_map(|ms| Command::Restart(Duration::from_millis(ms))),
        Just(Command::Pause),
        Just(Command::Resume),
    ]
    .prop_map(Input::Command)
}

fn facts() -> impl Strategy<Value = Input> {
    prop_oneof![
        3 => Just(Input::Started),
        1 => Just(Input::Held),
        1 => Just(Input::Continued),
        1 => Just(Input::Crashed),
        1 => Just(Input::Reset),
        3 => Just(Input::Time),
    ]
}

fn outcomes() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Outcome::PowerOff),
        Just(Outcome::Requested),
        Just(Outcome::Saved),
        Just(failed()),
        Just(Outcome::Invalid {
            message: String::new()
        }),
    ]
    .prop_map(Input::Ended)
}

fn policies() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![
        Just(RestartPolicy::No),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Always),
    ]
}

proptest! {
    /// The contract, whatever comes, in whatever order.
    #[test]
    fn the_contract_holds(
        policy in policies(),
        inputs in prop::collection::vec(
            (prop_oneof![commands(), facts(), outcomes()], 0..90_000u64),
            1..200,
        ),
    ) {
        let mut life = Lifecycle::new(policy);
        let mut now = Duration::ZERO;
        let mut payload = false;
        // Nothing may be spawned: it was stopped.
        let mut stopped = true;
        for (input, later) in inputs {
            now += Duration::from_millis(later);
            // The owner gives the time when it is due.
            while life.deadline().is_some_and(|at| at < now) {
                let at = life.deadline().unwrap();
                for action in life.handle(Input::Time, at).unwrap() {
                    if action == Action::Spawn {
                        prop_assert!(!payload && !stopped);
                        payload = true;
                    } else {
                        prop_assert!(payload);
                    }
                }
                prop_assert!(life.deadline().is_none_or(|next| next > at));
                if life.phase() == Phase::Stopping {
                    break;
                }
            }
            let before = (life.phase(), life.deadline());
            let gone = matches!(input, Input::Ended(_));
            let command = match &input {
                Input::Command(command) => Some(*command),
                _ => None,
            };
            let handled = life.handle(input, now);
            if gone {
                payload = false;
            }
            let Ok(actions) = handled else {
                prop_assert!(command.is_some());
                prop_assert_eq!(before, (life.phase(), life.deadline()));
                continue;
            };
            match command {
                Some(Command::Stop(_) | Command::Kill) => stopped = true,
                Some(Command::Start | Command::Restart(_)) => stopped = false,
                _ => {}
            }
            for action in actions {
                if action == Action::Spawn {
                    prop_assert!(!payload, "a second payload");
                    prop_assert!(!stopped, "what was stopped runs");
                    payload = true;
                } else {
                    prop_assert!(payload, "{:?} of nothing", action);
                }
            }
            prop_assert_eq!(payload, life.phase().has_payload());
            prop_assert_eq!(
                life.deadline().is_some(),
                matches!(life.phase(), Phase::Stopping | Phase::Waiting)
            );
            if life.phase() == Phase::Waiting {
                prop_assert!(life.deadline().unwrap() <= now + BACKOFF_MAX);
            }
        }
    }

    /// Whatever was before, stopping leads to a kill, and then to an end.
    #[test]
    fn stopping_ends(
        policy in policies(),
        inputs in prop::collection::vec(prop_oneof![commands(), facts()], 1..60),
        timeout in 0..100_000u64,
    ) {
        let mut life = Lifecycle::new(policy);
        for input in inputs {
            let _ = life.handle(input, SECOND);
        }
        let timeout = Duration::from_millis(timeout);
        let mut now = SECOND;
        let mut actions = match life.handle(Input::Command(Command::Stop(timeout)), now) {
            Ok(actions) => actions,
            Err(_) => return Ok(()),
        };
        let mut steps = 0;
        while life.phase() == Phase::Stopping && !actions.contains(&Action::Kill) {
            now = life.deadline().unwrap();
            actions = life.handle(Input::Time, now).unwrap();
            steps += 1;
            prop_assert!(steps <= 3);
        }
        prop_assert!(now <= SECOND + timeout + GRACE * 2);
        life.handle(Input::Ended(failed()), now).unwrap();
        prop_assert_eq!(life.phase(), Phase::Stopped);
    }
}
