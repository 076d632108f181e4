//! A machine's user network: passt, as long as the machine runs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use croft_api::net::{NicSpec, Publish};
use croft_network::user::{self, Host, Passt, Program};

use super::helper::{self, Helper};

/// A NIC's passt.
#[derive(Debug)]
pub struct UserWire {
    program: PathBuf,
    publish: Vec<Publish>,
    mtu: u16,
    /// It, and when it is started again if it has ended.
    pub helper: Helper,
}

impl UserWire {
    /// Starts it, with these ports.
    pub fn open(spec: &NicSpec, publish: &[Publish], mtu: u16) -> Result<(Self, OwnedFd), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let program = user::find(Program::Passt).map_err(|error| text(&error))?;
        let host = Host::look();
        helper::check(publish, &host).map_err(|error| text(&error))?;
        let (passt, socket) = Passt::start(&program, &host, publish, mtu, spec.mac)
            .map_err(|error| helper::refused(&error))?;
        let wire = UserWire {
            program,
            publish: publish.to_vec(),
            mtu,
            helper: Helper::new(Program::Passt, passt),
        };
        Ok((wire, socket))
    }

    /// Starts it again when its time has come. It is not waited for: what it
    /// has to say is heard like that of the first.
    pub fn mend(&mut self) -> Option<Result<OwnedFd, String>> {
        let now = Instant::now();
        if !self.helper.is_due(now) {
            return None;
        }
        let spawned = Passt::spawn(&self.program, &Host::look(), &self.publish, self.mtu);
        Some(self.helper.restarted(now, spawned))
    }
}
