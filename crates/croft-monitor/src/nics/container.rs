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
use croft_api::instance::Plugged;
use croft_api::net::{NICS_MAX, NicChange, NicKind, NicLimits, NicSpec, Publish};
use croft_container::Entries;
use croft_host::{Directories, InstanceName};
use croft_network::user::{self, ContainerEnd, Host, Passt, Program};
use croft_network::{Addressing, Home, Inner, Names, Networks, bring_up_loopback};
use rustix::fs::{fstat, stat};

use super::helper::{self, Helper};

/// Metric of the first NIC's routes, and how much the next one's are worse.
const METRIC: u32 = 100;
/// The number, for that, of a NIC whose name has none.
const LAST: u32 = NICS_MAX as u32;
/// What pasta does not do.
const NO_CHANGE: &str = "the user network has no limits and no cable to pull for a container; \
                         a managed network has (--net NETWORK)";

/// NICs that are attached. Detached when dropped; whatever kills this process
/// first, they go with the container's namespace, and the next who looks at
/// the networks forgets the rest.
#[derive(Debug)]
pub struct Nics {
    /// The container's name.
    container: String,
    role: ContainerRole,
    namespaces: Namespaces,
    attached: Option<(Networks, InstanceName)>,
    cables: Vec<Cable>,
}

/// A NIC that is attached.
#[derive(Debug)]
struct Cable {
    /// As it is now.
    spec: NicSpec,
    /// What it has to do with names.
    names: Names,
    /// It is not there at the next start.
    live_only: bool,
    /// What carries it, on the user network.
    user: Option<UserCable>,
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
    publish: Vec<Publish>,
    inside: Inside,
    program: PathBuf,
    helper: Helper,
}

/// How a NIC is seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inside {
    /// Its name there.
    name: String,
    /// The metric of its routes.
    metric: u32,
}

impl Inside {
    /// `eth2` for `net2`, whatever else is there, so that it is called the same
    /// at each start.
    fn of(nic: &NicSpec) -> Self {
        let number = nic.name.strip_prefix("net");
        let number: Option<u32> = number.and_then(|number| number.parse().ok());
        Inside {
            name: number.map_or_else(|| nic.name.clone(), |number| format!("eth{number}")),
            metric: METRIC.saturating_mul(number.unwrap_or(LAST).saturating_add(1)),
        }
    }
}

impl Nics {
    /// Attaches all NICs of the container `name` with these namespaces, before
    /// its program runs. Without any, it has its loopback interface.
    pub fn attach(
        name: &str,
        role: ContainerRole,
        nics: &[NicSpec],
        entries: Entries,
    ) -> Result<Self, String> {
        let namespaces = Namespaces::of(entries)?;
        bring_up_loopback(namespaces.home()).map_err(|error| format!("lo: {error}"))?;
        // From here on there may be something to detach.
        let mut made = Nics {
            container: name.to_owned(),
            role,
            namespaces,
            attached: None,
            cables: Vec::new(),
        };
        for nic in nics {
            made.add(nic, false)?;
        }
        Ok(made)
    }

    /// Attaches one more, also while the container runs.
    pub fn add(&mut self, nic: &NicSpec, live_only: bool) -> Result<(), String> {
        let failed = |error: String| format!("{}: {error}", nic.name);
        if self.find(&nic.name).is_some() {
            return Err(failed("it is there already".to_owned()));
        }
        let inside = Inside::of(nic);
        let (names, user) = match &nic.kind {
            NicKind::User(net) => {
                let (names, user) = self.join_user(nic, &net.publish, inside).map_err(failed)?;
                (names, Some(user))
            }
            NicKind::Network(_) | NicKind::Bridge(_) => {
                (self.join(nic, &inside).map_err(failed)?, None)
            }
        };
        self.cables.push(Cable {
            spec: nic.clone(),
            names,
            live_only,
            user,
        });
        Ok(())
    }

    /// Detaches the one of this name.
    pub fn remove(&mut self, name: &str) -> Result<(), String> {
        let at = self.cables.iter().position(|cable| cable.spec.name == name);
        let at = at.ok_or_else(|| unknown(name))?;
        match (&self.cables[at].user, &self.attached) {
            (Some(user), _) => {
                let end = self.namespaces.end(&self.cables[at].spec, &user.inside);
                end.remove().map_err(|error| error.to_string())?;
            }
            (None, Some((networks, instance))) => networks
                .detach(instance, Some(name))
                .map_err(|error| error.to_string())?,
            (None, None) => {}
        }
        self.cables.remove(at);
        Ok(())
    }

    /// What there is to tell of them.
    pub fn status(&self) -> Vec<Plugged> {
        let all = self.cables.iter().map(|cable| Plugged {
            name: cable.spec.name.clone(),
            what: cable.spec.describe(),
            live_only: cable.live_only,
            leaving: false,
        });
        all.collect()
    }

    /// What each has to do with names, in the order of their routes.
    pub fn names(&self) -> Vec<Names> {
        let mut cables: Vec<&Cable> = self.cables.iter().collect();
        cables.sort_by_key(|cable| Inside::of(&cable.spec).metric);
        cables.iter().map(|cable| cable.names.clone()).collect()
    }

    fn find(&self, name: &str) -> Option<&Cable> {
        self.cables.iter().find(|cable| cable.spec.name == name)
    }

    fn join(&mut self, nic: &NicSpec, inside: &Inside) -> Result<Names, String> {
        if self.attached.is_none() {
            let directories = Directories::find().map_err(|error| error.to_string())?;
            let name = &self.container;
            let instance: InstanceName = name
                .parse()
                .map_err(|error| format!("'{}': {error}", name.escape_debug()))?;
            self.attached = Some((Networks::open(&directories), instance));
        }
        let Some((networks, instance)) = &self.attached else {
            return Ok(Names::default());
        };
        let inner = Inner {
            namespace: self.namespaces.network.as_fd(),
            name: &inside.name,
            addressing: match self.role {
                ContainerRole::Application => Addressing::Given,
                ContainerRole::System => Addressing::Asked,
            },
            metric: inside.metric,
        };
        let joined = networks
            .attach_container(instance, nic, &inner)
            .map_err(|error| error.to_string())?;
        Ok(joined.names)
    }

    fn join_user(
        &self,
        nic: &NicSpec,
        publish: &[Publish],
        inside: Inside,
    ) -> Result<(Names, UserCable), String> {
        if nic.limits != NicLimits::default() || !nic.link {
            return Err(NO_CHANGE.to_owned());
        }
        let text = |error: &dyn std::error::Error| error.to_string();
        let program = user::find(Program::Pasta).map_err(|error| text(&error))?;
        let host = Host::look();
        helper::check(publish, &host).map_err(|error| text(&error))?;
        let end = self.namespaces.end(nic, &inside);
        let pasta = Passt::start_container(&program, &host, publish, &end);
        let pasta = pasta.map_err(|error| {
            // It was there before; what failed is what is told.
            let _ = end.remove();
            helper::refused(&error)
        })?;
        let cable = UserCable {
            publish: publish.to_vec(),
            inside,
            program,
            helper: Helper::new(Program::Pasta, pasta),
        };
        Ok((user::names(&host), cable))
    }

    /// Changes what the NIC of this name may do and whether its cable is
    /// plugged in, while the container runs.
    pub fn change(&mut self, name: &str, change: NicChange) -> Result<(), String> {
        let mut cables = self.cables.iter_mut();
        let cable = cables.find(|cable| cable.spec.name == name);
        let cable = cable.ok_or_else(|| unknown(name))?;
        let mut changed = cable.spec.clone();
        change.apply(&mut changed);
        match (&changed.kind, &self.attached) {
            (NicKind::Network(_) | NicKind::Bridge(_), Some((networks, instance))) => networks
                .change_container(
                    instance,
                    &changed,
                    self.namespaces.network.as_fd(),
                    &Inside::of(&changed).name,
                )
                .map_err(|error| error.to_string())?,
            _ => return Err(format!("{name}: {NO_CHANGE}")),
        }
        cable.spec = changed;
        Ok(())
    }

    /// What is worth reading, with the process that is heard then.
    pub fn sources(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let running = self.users().filter_map(UserCable::process);
        running.map(|pasta| (pasta.id(), pasta.as_fd()))
    }

    fn users(&self) -> impl Iterator<Item = &UserCable> {
        self.cables.iter().filter_map(|cable| cable.user.as_ref())
    }

    /// One can be read: what there is to say of it.
    pub fn hear(&mut self, process: u32) -> Vec<String> {
        for cable in &mut self.cables {
            let name = &cable.spec.name;
            let Some(user) = &mut cable.user else {
                continue;
            };
            if user.process().map(Passt::id) == Some(process) {
                let lines = user.helper.hear().into_iter();
                return lines.map(|line| format!("{name}: {line}")).collect();
            }
        }
        Vec::new()
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        self.users().filter_map(|user| user.helper.again).min()
    }

    /// Mends those whose time has come: what there is to say.
    pub fn mend(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let now = Instant::now();
        for cable in &mut self.cables {
            let Some(user) = &mut cable.user else {
                continue;
            };
            if !user.helper.is_due(now) {
                continue;
            }
            let end = self.namespaces.end(&cable.spec, &user.inside);
            let host = Host::look();
            let spawned = Passt::spawn_container(&user.program, &host, &user.publish, &end);
            let again = user.helper.restarted(now, spawned.map(|pasta| (pasta, ())));
            if let Err(error) = again {
                said.push(format!("{}: {error}", cable.spec.name));
            }
        }
        said
    }
}

/// There is none of this name.
fn unknown(name: &str) -> String {
    let name = name.escape_debug();
    format!("there is no NIC '{name}'; 'croft show' lists them")
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
    fn of(entries: Entries) -> Result<Self, String> {
        let own = |kind: &str| {
            let path = format!("/proc/self/ns/{kind}");
            let about = stat(&path).map_err(|error| format!("{path}: {error}"))?;
            Ok::<_, String>((about.st_dev, about.st_ino))
        };
        let number = |namespace: &OwnedFd| {
            let about = fstat(namespace).map_err(|error| error.to_string())?;
            Ok::<_, String>((about.st_dev, about.st_ino))
        };
        let Entries { network, user } = entries;
        if number(&network)? == own("net")? {
            return Err(
                "the container has the host's network, which NICs are not added to".to_owned(),
            );
        }
        let has_own = number(&user)? != own("user")?;
        Ok(Namespaces {
            network,
            user: has_own.then_some(user),
        })
    }

    fn home(&self) -> Home<'_> {
        Home {
            network: self.network.as_fd(),
            user: self.user.as_ref().map(AsFd::as_fd),
        }
    }

    fn end<'a>(&'a self, nic: &NicSpec, inside: &'a Inside) -> ContainerEnd<'a> {
        ContainerEnd {
            home: self.home(),
            name: &inside.name,
            mac: nic.mac,
            mtu: nic.mtu.unwrap_or(user::MTU),
            metric: inside.metric,
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_api::net::UserNet;

    use super::*;

    #[test]
    fn a_nic_is_called_the_same_whatever_is_beside_it() {
        let inside = |name: &str| {
            Inside::of(&NicSpec {
                name: name.to_owned(),
                mac: "02:c7:0f:00:00:01".parse().unwrap(),
                mtu: None,
                queues: None,
                limits: NicLimits::default(),
                link: true,
                kind: NicKind::User(UserNet::default()),
            })
        };
        assert_eq!(
            (inside("net0").name, inside("net0").metric),
            ("eth0".to_owned(), METRIC)
        );
        assert_eq!(inside("net6").name, "eth6");
        let other = inside("wan");
        assert_eq!(other.name, "wan");
        assert!(other.metric > inside("net6").metric);
        assert!(inside("net4294967295").metric > METRIC);
    }
}
