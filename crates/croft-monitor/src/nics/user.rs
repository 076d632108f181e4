//! A user network's passt, as long as the machine runs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use croft_api::net::{NicSpec, Publish};
use croft_network::user::{self, Host, Passt, PublishFault, Retry};

use crate::lines::Lines;

/// How long a published port may be taken still by an instance that has just
/// ended.
const LINGER: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most lines that one passt can say; a guest could provoke many.
const LINES_MAX: usize = 100;

/// A NIC's passt.
#[derive(Debug)]
pub struct UserWire {
    program: PathBuf,
    publish: Vec<Publish>,
    mtu: u16,
    /// It, unless it has ended.
    pub passt: Option<Passt>,
    lines: Lines,
    /// How many lines this passt has said.
    said: usize,
    retry: Retry,
    /// When it is started again, if it has ended.
    pub again: Option<Instant>,
}

impl UserWire {
    /// Starts it, with these ports.
    pub fn open(spec: &NicSpec, publish: &[Publish], mtu: u16) -> Result<(Self, OwnedFd), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let program = user::find(user::Program::Passt).map_err(|error| text(&error))?;
        let host = Host::look();
        check(publish, &host).map_err(|error| text(&error))?;
        let (passt, socket) =
            Passt::start(&program, &host, publish, mtu, spec.mac).map_err(|error| {
                format!("{error}; 'croft doctor' may tell why, --net none does without")
            })?;
        let wire = UserWire {
            program,
            publish: publish.to_vec(),
            mtu,
            passt: Some(passt),
            lines: Lines::default(),
            said: 0,
            retry: Retry::new(Instant::now()),
            again: None,
        };
        Ok((wire, socket))
    }

    /// It can be read: what there is to say.
    pub fn hear(&mut self) -> Vec<String> {
        let Some(passt) = &mut self.passt else {
            return Vec::new();
        };
        let mut news = self.lines.read(passt.stderr());
        news.retain(|line| user::is_news(line));
        let room = LINES_MAX.saturating_sub(self.said);
        self.said = self.said.saturating_add(news.len());
        news.truncate(room);
        for line in &mut news {
            line.insert_str(0, "passt: ");
        }
        if self.lines.ended() {
            let status = self.passt.take().and_then(Passt::reap);
            let wait = self.retry.ended(Instant::now());
            self.again = Some(Instant::now() + wait);
            // One whose socket was closed has done as it should: the vmm has
            // ended, or says itself what it did not like.
            if !status.is_some_and(|status| status.success()) {
                news.push(format!(
                    "passt has ended{}; it is started again in {} ms",
                    status.map(describe).unwrap_or_default(),
                    wait.as_millis()
                ));
            }
        }
        news
    }

    /// Starts it again when its time has come. It is not waited for: what it
    /// has to say is heard like that of the first.
    pub fn mend(&mut self) -> Option<Result<OwnedFd, String>> {
        let now = Instant::now();
        self.again.take_if(|again| *again <= now)?;
        self.retry.started(now);
        match Passt::spawn(&self.program, &Host::look(), &self.publish, self.mtu) {
            Ok((passt, socket)) => {
                self.passt = Some(passt);
                self.lines = Lines::default();
                self.said = 0;
                Some(Ok(socket))
            }
            Err(error) => {
                self.again = Some(now + self.retry.ended(now));
                Some(Err(error.to_string()))
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    format!(" ({status})")
}

/// As [`user::check`], with patience for whoever is about to leave a port.
fn check(publish: &[Publish], host: &Host) -> Result<(), PublishFault> {
    let end = Instant::now() + LINGER;
    loop {
        match user::check(publish, host) {
            Err(PublishFault::Taken(_)) if Instant::now() < end => std::thread::sleep(LOOK),
            result => return result,
        }
    }
}
