//! The NICs of a container: interfaces in its network namespace.
//!
//! ```text
//!            its pasta ends            the wait is over
//!  (carried) ──────────────► (cut) ─────────────────────► (carried)
//!                no carrier   │ 100 ms … 30 s      another pasta
//! ```
//!
//! On a managed network or a bridge there is nothing to be watched: the pair of
//! interfaces is the kernel's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use croft_api::container::ContainerRole;
use croft_api::net::{NicChange, NicKind, NicLimits, NicSpec, Publish};
use croft_host::{Directories, InstanceName};
use croft_network::user::{self, ContainerEnd, Host, Passt, Program};
use croft_network::{Addressing, Inner, Names, Networks, bring_up_loopback};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::process::Pid;

use super::helper::{self, Helper};

/// Metric of the first NIC's routes, and how much the next one's are worse.
const METRIC: u32 = 100;
/// What pasta does not do.
const NO_CHANGE: &str = "the user network has no limits and no cable to pull for a container; \
                         a managed network has (--net NETWORK)";

/// NICs that are attached. Detached when dropped; whatever kills this process
/// first, they go with the container's namespace, and the next who looks at
/// the networks forgets the rest.
#[derive(Debug)]
pub struct Nics {
    namespaces: Namespaces,
    attached: Option<(Networks, InstanceName)>,
    /// As they are now.
    specs: Vec<NicSpec>,
    users: Vec<UserCable>,
    /// What each has to do with names.
    pub names: Vec<Names>,
}

/// The container's namespaces that its NICs are in.
#[derive(Debug)]
struct Namespaces {
    network: OwnedFd,
    /// Nothing if it has the host's users.
    user: Option<OwnedFd>,
}

/// A NIC on the user network.
#[derive(Debug)]
struct UserCable {
    spec: NicSpec,
    publish: Vec<Publish>,
    /// Its name in the container.
    name: String,
    metric: u32,
    program: PathBuf,
    helper: Helper,
}

impl Nics {
    /// Attaches all NICs of the container `name` whose init is `pid`, before
    /// its program runs. Without any, it has its loopback interface.
    pub fn attach(
        name: &str,
        role: ContainerRole,
        nics: &[NicSpec],
        pid: Pid,
    ) -> Result<Self, String> {
        let namespaces = Namespaces::of(pid)?;
        bring_up_loopback(namespaces.network.as_fd()).map_err(|error| format!("lo: {error}"))?;
        // From here on there may be something to detach.
        let mut made = Nics {
            namespaces,
            attached: None,
            specs: nics.to_vec(),
            users: Vec::new(),
            names: Vec::new(),
        };
        let metrics = (METRIC..).step_by(METRIC as usize);
        for ((index, nic), metric) in nics.iter().enumerate().zip(metrics) {
            let inside = format!("eth{index}");
            let joined = match &nic.kind {
                NicKind::User(net) => made.join_user(nic, &net.publish, inside, metric),
                NicKind::Network(_) | NicKind::Bridge(_) => {
                    made.join(name, role, nic, &inside, metric)
                }
            };
            joined.map_err(|error| format!("{}: {error}", nic.name))?;
        }
        Ok(made)
    }

    fn join(
        &mut self,
        name: &str,
        role: ContainerRole,
        nic: &NicSpec,
        inside: &str,
        metric: u32,
    ) -> Result<(), String> {
        if self.attached.is_none() {
            let directories = Directories::find().map_err(|error| error.to_string())?;
            let instance: InstanceName = name
                .parse()
                .map_err(|error| format!("'{}': {error}", name.escape_debug()))?;
            self.attached = Some((Networks::open(&directories), instance));
        }
        let Some((networks, instance)) = &self.attached else {
            return Ok(());
        };
        let inner = Inner {
            namespace: self.namespaces.network.as_fd(),
            name: inside,
            addressing: match role {
                ContainerRole::Application => Addressing::Given,
                ContainerRole::System => Addressing::Asked,
            },
            metric,
        };
        let joined = networks
            .attach_container(instance, nic, &inner)
            .map_err(|error| error.to_string())?;
        self.names.push(joined.names);
        Ok(())
    }

    fn join_user(
        &mut self,
        nic: &NicSpec,
        publish: &[Publish],
        name: String,
        metric: u32,
    ) -> Result<(), String> {
        if nic.limits != NicLimits::default() || !nic.link {
            return Err(NO_CHANGE.to_owned());
        }
        let text = |error: &dyn std::error::Error| error.to_string();
        let program = user::find(Program::Pasta).map_err(|error| text(&error))?;
        let host = Host::look();
        helper::check(publish, &host).map_err(|error| text(&error))?;
        let end = self.namespaces.end(nic, &name, metric);
        let pasta = Passt::start_container(&program, &host, publish, &end)
            .map_err(|error| helper::refused(&error))?;
        self.names.push(user::names(&host));
        self.users.push(UserCable {
            spec: nic.clone(),
            publish: publish.to_vec(),
            name,
            metric,
            program,
            helper: Helper::new(Program::Pasta, pasta),
        });
        Ok(())
    }

    /// Changes what the NIC of this name may do and whether its cable is
    /// plugged in, while the container runs.
    pub fn change(&mut self, name: &str, change: NicChange) -> Result<(), String> {
        let mut specs = self.specs.iter_mut();
        let Some(spec) = specs.find(|nic| nic.name == name) else {
            let name = name.escape_debug();
            return Err(format!("there is no NIC '{name}'; 'croft show' lists them"));
        };
        let mut changed = spec.clone();
        change.apply(&mut changed);
        match (&changed.kind, &self.attached) {
            (NicKind::Network(_) | NicKind::Bridge(_), Some((networks, instance))) => networks
                .change_container(instance, &changed)
                .map_err(|error| error.to_string())?,
            _ => return Err(format!("{name}: {NO_CHANGE}")),
        }
        *spec = changed;
        Ok(())
    }

    /// What is worth reading, with the process that is heard then.
    pub fn sources(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let running = self.users.iter().filter_map(UserCable::process);
        running.map(|pasta| (pasta.id(), pasta.as_fd()))
    }

    /// One can be read: what there is to say of it.
    pub fn hear(&mut self, process: u32) -> Vec<String> {
        let is = |cable: &&mut UserCable| cable.process().map(Passt::id) == Some(process);
        let Some(cable) = self.users.iter_mut().find(is) else {
            return Vec::new();
        };
        let lines = cable.helper.hear().into_iter();
        lines
            .map(|line| format!("{}: {line}", cable.spec.name))
            .collect()
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let users = self.users.iter();
        users.filter_map(|cable| cable.helper.again).min()
    }

    /// Mends those whose time has come: what there is to say.
    pub fn mend(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let now = Instant::now();
        for cable in &mut self.users {
            if !cable.helper.is_due(now) {
                continue;
            }
            let end = self.namespaces.end(&cable.spec, &cable.name, cable.metric);
            let host = Host::look();
            let spawned = Passt::spawn_container(&cable.program, &host, &cable.publish, &end);
            let again = cable
                .helper
                .restarted(now, spawned.map(|pasta| (pasta, ())));
            if let Err(error) = again {
                said.push(format!("{}: {error}", cable.spec.name));
            }
        }
        said
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

impl UserCable {
    /// Its pasta, while it has one.
    fn process(&self) -> Option<&Passt> {
        self.helper.process.as_ref()
    }
}

impl Namespaces {
    fn of(pid: Pid) -> Result<Self, String> {
        let namespace = |of: &str, kind: &str| {
            let path = format!("/proc/{of}/ns/{kind}");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let opened = open(&path, flags, Mode::empty());
            opened.map_err(|error| format!("{path}: {error}"))
        };
        let number = |namespace: &OwnedFd| {
            let about = fstat(namespace).map_err(|error| error.to_string())?;
            Ok::<_, String>((about.st_dev, about.st_ino))
        };
        let init = pid.as_raw_nonzero().to_string();
        let network = namespace(&init, "net")?;
        if number(&network)? == number(&namespace("self", "net")?)? {
            return Err(
                "the container has the host's network, which NICs are not added to".to_owned(),
            );
        }
        let user = namespace(&init, "user")?;
        let own = number(&user)? != number(&namespace("self", "user")?)?;
        Ok(Namespaces {
            network,
            user: own.then_some(user),
        })
    }

    fn end<'a>(&'a self, nic: &NicSpec, name: &'a str, metric: u32) -> ContainerEnd<'a> {
        ContainerEnd {
            network: self.network.as_fd(),
            user: self.user.as_ref().map(AsFd::as_fd),
            name,
            mac: nic.mac,
            mtu: nic.mtu.unwrap_or(user::MTU),
            metric,
        }
    }
}
