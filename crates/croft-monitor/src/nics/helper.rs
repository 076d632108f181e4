//! A passt or pasta, which is started again when it ends.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use croft_api::net::Publish;
use croft_network::user::{self, Host, Passt, Program, PublishFault, Retry, StartError};

use crate::lines::Lines;

/// How long a published port may be taken still by an instance that has just
/// ended.
const LINGER: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most lines that one process can say; a guest could provoke many.
const LINES_MAX: usize = 100;

/// It, and what is known of it.
#[derive(Debug)]
pub struct Helper {
    name: Program,
    /// It, unless it has ended.
    pub process: Option<Passt>,
    lines: Lines,
    /// How many lines this process has said.
    said: usize,
    retry: Retry,
    /// When it is started again, if it has ended.
    pub again: Option<Instant>,
}

impl Helper {
    /// One that has been started.
    pub fn new(name: Program, process: Passt) -> Self {
        Helper {
            name,
            process: Some(process),
            lines: Lines::default(),
            said: 0,
            retry: Retry::new(Instant::now()),
            again: None,
        }
    }

    /// It can be read: what there is to say.
    pub fn hear(&mut self) -> Vec<String> {
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        let mut news = self.lines.read(process.stderr());
        news.retain(|line| user::is_news(line));
        let room = LINES_MAX.saturating_sub(self.said);
        self.said = self.said.saturating_add(news.len());
        news.truncate(room);
        for line in &mut news {
            *line = format!("{}: {line}", self.name);
        }
        if self.lines.ended() {
            let status = self.process.take().and_then(Passt::reap);
            let wait = self.retry.ended(Instant::now());
            self.again = Some(Instant::now() + wait);
            // One whose socket was closed has done as it should: the vmm has
            // ended, or says itself what it did not like.
            if !status.is_some_and(|status| status.success()) {
                news.push(format!(
                    "{} has ended{}; it is started again in {} ms",
                    self.name,
                    status.map(describe).unwrap_or_default(),
                    wait.as_millis()
                ));
            }
        }
        news
    }

    /// Whether it is to be started again now; this is said once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.again.take_if(|again| *again <= now).is_some();
        if due {
            self.retry.started(now);
        }
        due
    }

    /// It has been started again, or not; then there is a next time.
    pub fn restarted<T>(
        &mut self,
        now: Instant,
        spawned: Result<(Passt, T), StartError>,
    ) -> Result<T, String> {
        match spawned {
            Ok((process, with)) => {
                self.process = Some(process);
                self.lines = Lines::default();
                self.said = 0;
                Ok(with)
            }
            Err(error) => {
                self.again = Some(now + self.retry.ended(now));
                Err(error.to_string())
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    format!(" ({status})")
}

/// What is said of one that does not start.
pub fn refused(error: &StartError) -> String {
    format!("{error}; 'croft doctor' may tell why, --net none does without")
}

/// As [`user::check`], with patience for whoever is about to leave a port.
pub fn check(publish: &[Publish], host: &Host) -> Result<(), PublishFault> {
    let end = Instant::now() + LINGER;
    loop {
        match user::check(publish, host) {
            Err(PublishFault::Taken(_)) if Instant::now() < end => std::thread::sleep(LOOK),
            result => return result,
        }
    }
}
