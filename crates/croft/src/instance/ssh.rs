//! `croft ssh`: the host's ssh, over the agent.
//!
//! ```text
//! ssh ◄── standard input and output ──► croft ssh --proxy ◄── agent ──► sshd -i
//! ```
//!
//! The first `croft ssh` becomes ssh, which starts the second one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use croft_api::agent::Exec;
use croft_host::{InstanceName, Instances};

use super::guest::{NOT_STARTED, agent, in_instance};
use super::{Fault, finish, open};
use crate::args::ssh::SshOptions;
use crate::exit::Exit;

/// Who logs in if nobody is named.
const ROOT: &str = "root";
/// Host keys that were seen, in the instance's directory: they are gone with
/// it, so that the next instance of this name is not taken for a forgery.
const KNOWN: &str = "known_hosts";
/// What runs in the guest. A socket-activated sshd has left no `/run/sshd`,
/// without which it does not start.
const SERVER: &str = "\
[ -x /usr/sbin/sshd ] || { echo 'there is no /usr/sbin/sshd in the guest' >&2; exit 127; }
[ -d /run/sshd ] || mkdir -m 755 /run/sshd
exec /usr/sbin/sshd -i";

/// Logs in to an instance.
pub fn ssh(options: &SshOptions) -> Exit {
    let name = &options.to.name;
    let done = open().and_then(|instances| {
        if options.proxy {
            return connect(&instances, name);
        }
        Err(log_in(&instances, options))
    });
    match done {
        Ok(exit) => exit,
        Err(fault) => match finish(Err(fault)) {
            Exit::Failed => Exit::Command(NOT_STARTED),
            exit => exit,
        },
    }
}

/// The connection that ssh uses.
fn connect(instances: &Instances, name: &InstanceName) -> Result<Exit, Fault> {
    let server = Exec {
        argv: ["/bin/sh", "-c", SERVER].map(OsString::from).to_vec(),
        stdin: true,
        ..Exec::default()
    };
    in_instance(instances, name, server, false)
}

/// Becomes ssh; only back if it does not.
fn log_in(instances: &Instances, options: &SshOptions) -> Fault {
    let name = &options.to.name;
    let prepared = instances
        .config(name)
        .map_err(Fault::from)
        .and_then(|config| {
            // Says what is wrong before ssh says that something is.
            if config.container().is_none() {
                agent(instances, name)?;
            } else {
                super::connect(instances, name).map_err(|fault| fault.of(name))?;
            }
            let user = options.to.user.clone().or(config.user);
            let program = std::env::current_exe()
                .map_err(|error| Fault::failed(format!("cannot find croft itself: {error}")))?;
            let known = instances.directories().instance(name).join(KNOWN);
            arguments(name, user.as_deref().unwrap_or(ROOT), &program, &known)
        });
    let arguments = match prepared {
        Ok(arguments) => arguments,
        Err(fault) => return fault,
    };
    let error = Command::new("ssh")
        .args(arguments)
        .args(&options.arguments)
        .exec();
    if error.kind() == io::ErrorKind::NotFound {
        return Fault::failed(
            "there is no ssh on this host; install OpenSSH's client (on Debian: \
             openssh-client), or use 'croft shell'",
        );
    }
    Fault::failed(format!("cannot start ssh: {error}"))
}

/// What ssh is given before what somebody wants of it.
fn arguments(
    name: &InstanceName,
    user: &str,
    program: &Path,
    known: &Path,
) -> Result<Vec<String>, Fault> {
    let program = in_shell(program)?;
    let known = in_option(known)?;
    let options = [
        format!("ProxyCommand={program} ssh --proxy {name}"),
        format!("HostKeyAlias={name}"),
        format!("UserKnownHostsFile={known}"),
        // An instance may be called like a host of the network.
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        // Nobody can be between: what carries it does not leave this host.
        "StrictHostKeyChecking=accept-new".to_owned(),
    ];
    let options = options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option]);
    // A host's name that no other has: settings in ssh's own files, and
    // connections it keeps, are by this name.
    let to = ["-l".to_owned(), user.to_owned(), format!("{name}.croft")];
    Ok(options.chain(to).collect())
}

/// A path as a word of the shell that ssh gives a ProxyCommand to (behind an
/// `exec` of its own), after it
/// has replaced its own `%` (ssh_config(5), TOKENS).
fn in_shell(path: &Path) -> Result<String, Fault> {
    let text = utf8(path)?.replace('%', "%%").replace('\'', r"'\''");
    Ok(format!("'{text}'"))
}

/// A path as the value of an option of ssh's, which replaces `%` and `${` and
/// takes quotes, but in its older versions nothing that would save a quote.
fn in_option(path: &Path) -> Result<String, Fault> {
    let text = utf8(path)?;
    if text.contains(['"', '\\']) || text.contains("${") {
        return Err(Fault::failed(format!(
            "'{}': ssh takes no '\"', '\\' or '${{' in a file's name; set CROFT_DATA_DIR to a \
             directory without",
            text.escape_debug()
        )));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

fn utf8(path: &Path) -> Result<&str, Fault> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    text.ok_or_else(|| {
        Fault::failed(format!(
            "'{}' cannot be given to ssh; move it to a path in UTF-8",
            path.to_string_lossy().escape_debug()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(program: &str, known: &str) -> Result<Vec<String>, Fault> {
        let name = "web".parse().unwrap();
        arguments(&name, "me", Path::new(program), Path::new(known))
    }

    #[test]
    fn ssh_is_given_its_way_in() {
        let given = given("/usr/bin/croft", "/data/known_hosts").unwrap();
        let has = |option: &str| given.iter().any(|given| given == option);
        assert!(has("ProxyCommand='/usr/bin/croft' ssh --proxy web"));
        assert!(has("HostKeyAlias=web"));
        assert!(has("UserKnownHostsFile=\"/data/known_hosts\""));
        assert_eq!(given[given.len() - 3..], ["-l", "me", "web.croft"]);
    }

    #[test]
    fn odd_paths_are_quoted_or_refused() {
        let odd = given("/a b/it's/100%h", "/my data/%u").unwrap();
        assert_eq!(
            odd[1],
            r"ProxyCommand='/a b/it'\''s/100%%h' ssh --proxy web"
        );
        assert_eq!(odd[5], "UserKnownHostsFile=\"/my data/%%u\"");
        for known in ["/a\"b", "/a\\b", "/${HOME}", "/a\nb"] {
            assert!(given("/croft", known).is_err(), "{known}");
        }
    }
}
