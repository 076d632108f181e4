//! The program of a container: its arguments, rights and limits.

use std::collections::HashSet;
use std::str::FromStr;

use croft_api::ContainerSpec;
use croft_api::container::ContainerRole;
use croft_isolate::capabilities::DEFAULT;
use oci_spec::runtime::{
    Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    User as OciUser,
};

use super::super::users::User;

/// Where programs are looked for if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What tells an init that it is in a container (systemd's
/// `CONTAINER_INTERFACE.md`).
const CONTAINER: &str = "croft";
/// What an init needs of its own namespaces: what systemd-nspawn gives
/// (systemd-nspawn(1), `--capability=`). Of the host they are nothing where
/// the container has ids of its own.
const SYSTEM: [Capability; 26] = [
    Capability::AuditControl,
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysNice,
    Capability::SysPtrace,
    Capability::SysResource,
];

/// What a container's root may do.
pub fn capabilities(container: &ContainerSpec) -> Result<HashSet<Capability>, String> {
    let mut all: HashSet<Capability> = match container.role {
        ContainerRole::System => SYSTEM.into(),
        ContainerRole::Application => DEFAULT.into(),
    };
    for name in &container.cap_drop {
        match name.as_str() {
            "ALL" => all.clear(),
            name => drop(all.remove(&capability(name)?)),
        }
    }
    for name in &container.cap_add {
        all.insert(capability(name)?);
    }
    Ok(all)
}

fn capability(name: &str) -> Result<Capability, String> {
    let short = name.strip_prefix("CAP_").unwrap_or(name);
    Capability::from_str(short).map_err(|_| {
        format!(
            "'{}' is no capability; name one as NET_ADMIN (capabilities(7))",
            name.escape_debug()
        )
    })
}

/// The program.
pub fn process(container: &ContainerSpec, user: &User) -> Result<Process, String> {
    let mut process = Process::default();
    process.set_terminal(Some(container.tty));
    process.set_args(Some(container.command.clone()));
    process.set_env(Some(environment(container, user)));
    let cwd = match container.cwd.as_str() {
        "" => "/",
        cwd => cwd,
    };
    process.set_cwd(cwd.into());
    process.set_user(oci_user(user));
    let all = capabilities(container)?;
    process.set_capabilities(Some(rights(&all, user)));
    process.set_no_new_privileges(Some(container.no_new_privileges));
    let rlimits: Result<Vec<_>, String> = container.rlimits.iter().map(rlimit).collect();
    process.set_rlimits(Some(rlimits?));
    Ok(process)
}

/// As whom a program runs.
fn oci_user(user: &User) -> OciUser {
    let mut oci = OciUser::default();
    oci.set_uid(user.uid);
    oci.set_gid(user.gid);
    oci.set_additional_gids(Some(user.groups.clone()));
    oci
}

/// Root has them; others have them within reach of programs that are set-id.
pub fn rights(all: &HashSet<Capability>, user: &User) -> LinuxCapabilities {
    let mut rights = LinuxCapabilities::default();
    let own = match user.uid {
        0 => all.clone(),
        _ => HashSet::new(),
    };
    rights.set_bounding(Some(all.clone()));
    rights.set_permitted(Some(own.clone()));
    rights.set_effective(Some(own));
    rights.set_inheritable(Some(HashSet::new()));
    rights.set_ambient(Some(HashSet::new()));
    rights
}

/// The container's variables, and those that programs expect.
fn environment(container: &ContainerSpec, user: &User) -> Vec<String> {
    let mut env = container.env.clone();
    let mut default = |name: &str, value: &str| {
        let is = |variable: &String| {
            let rest = variable.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('='))
        };
        if !env.iter().any(is) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", PATH);
    default("HOSTNAME", &super::hostname(container));
    default("HOME", &user.home);
    if container.tty {
        let system = container.role == ContainerRole::System;
        default("TERM", if system { "linux" } else { "xterm" });
    }
    if container.role == ContainerRole::System {
        default("container", CONTAINER);
    }
    env
}

fn rlimit((name, (soft, hard)): (&String, &(u64, u64))) -> Result<PosixRlimit, String> {
    let long = format!("RLIMIT_{}", name.to_ascii_uppercase());
    let typ = PosixRlimitType::from_str(&long).map_err(|_| {
        format!(
            "'{}' is no limit of processes; name one as nofile (getrlimit(2))",
            name.escape_debug()
        )
    })?;
    if soft > hard {
        return Err(format!("the soft limit of {name} is above the hard one"));
    }
    let rlimit = PosixRlimitBuilder::default()
        .typ(typ)
        .soft(*soft)
        .hard(*hard);
    rlimit.build().map_err(|error| error.to_string())
}
