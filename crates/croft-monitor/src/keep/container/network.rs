//! The NICs of a container.

use std::os::fd::{AsFd, OwnedFd};

use croft_api::container::ContainerRole;
use croft_api::monitor::RunContainer;
use croft_api::net::NicKind;
use croft_host::{Directories, InstanceName};
use croft_network::{Addressing, Inner, Names, Networks};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;

/// Difference of the metrics of two NICs' routes; the first NIC's are the best.
const METRIC: u32 = 100;

/// NICs that are attached. Detached when dropped; whatever kills this process
/// first, they go with the container's namespace, and the next who looks at
/// the networks forgets the rest.
#[derive(Debug, Default)]
pub struct Nics {
    attached: Option<(Networks, InstanceName)>,
    /// What each has to do with names.
    pub names: Vec<Names>,
}

impl Nics {
    /// Attaches all NICs of a container whose init is `pid`, before its program
    /// runs.
    pub fn attach(run: &RunContainer, pid: Pid) -> Result<Self, String> {
        if run.nics.is_empty() {
            return Ok(Nics::default());
        }
        let directories = Directories::find().map_err(|error| error.to_string())?;
        let name = &run.container.name;
        let instance: InstanceName = name
            .parse()
            .map_err(|error| format!("'{}': {error}", name.escape_debug()))?;
        // From here on there may be something to detach.
        let mut nics = Nics {
            attached: Some((Networks::open(&directories), instance.clone())),
            names: Vec::new(),
        };
        let namespace = namespace(pid)?;
        for (index, (nic, metric)) in run.nics.iter().zip((0..).step_by(100)).enumerate() {
            let inner = Inner {
                namespace: namespace.as_fd(),
                name: &format!("eth{index}"),
                addressing: match run.container.role {
                    ContainerRole::Application => Addressing::Given,
                    ContainerRole::System => Addressing::Asked,
                },
                metric: METRIC.saturating_add(metric),
            };
            let failed = |error: String| format!("{}: {error}", nic.name);
            match &nic.kind {
                NicKind::Network(_) | NicKind::Bridge(_) => {
                    let Some((networks, _)) = &nics.attached else {
                        continue;
                    };
                    let joined = networks
                        .attach_container(&instance, nic, &inner)
                        .map_err(|error| failed(error.to_string()))?;
                    nics.names.push(joined.names);
                }
                NicKind::User(_) => {
                    return Err(failed(
                        "a container has no user network yet; use --net NETWORK or --net none"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(nics)
    }
}

impl Drop for Nics {
    fn drop(&mut self) {
        if let Some((networks, instance)) = self.attached.take() {
            // Left to the next who looks.
            let _ = networks.detach(&instance, None);
        }
    }
}

fn namespace(pid: Pid) -> Result<OwnedFd, String> {
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    open(&path, flags, Mode::empty()).map_err(|error| format!("{path}: {error}"))
}
