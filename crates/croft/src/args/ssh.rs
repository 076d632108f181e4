//! `croft ssh`.

use std::ffi::OsString;
use std::str::FromStr;

use clap_complete::engine::ArgValueCandidates;
use croft_host::InstanceName;

use super::instance::names;

/// What follows the help.
pub const HELP: &str = "\
It runs the host's ssh, which reaches the guest's /usr/sbin/sshd by the agent in
the guest: neither needs a network. What follows '--' is for ssh: its options,
then a command. Who may log in is decided in the guest, see 'croft run --ssh-key'.

Exit codes:
  those of ssh: the command's, and 255 if it could not log in
  125  ssh was not started: it is missing, there is no agent, the instance
       does not run
  2    wrong usage, or there is no such instance

Examples:
  croft ssh web
  croft ssh admin@web -- uptime
  croft ssh web -- -L 8080:localhost:80 -N";

/// `croft ssh`.
#[derive(Debug, clap::Args)]
pub struct SshOptions {
    /// The instance, and the user in it: if not given that of --user when it was created, else root
    #[arg(value_name = "[USER@]NAME", add = ArgValueCandidates::new(names))]
    pub to: Login,

    /// Be the connection that ssh uses
    #[arg(long, hide = true, conflicts_with = "arguments")]
    pub proxy: bool,

    /// Options and a command for ssh
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<OsString>,
}

/// Where to log in, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user, if one is named.
    pub user: Option<String>,
    /// The instance.
    pub name: InstanceName,
}

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As for ssh, the last '@' counts.
        let (user, name) = match text.rsplit_once('@') {
            Some((user, name)) => (Some(user), name),
            None => (None, text),
        };
        if user.is_some_and(|user| user.is_empty() || user.starts_with('-')) {
            return Err("give a user's name before the '@'".to_owned());
        }
        let name: InstanceName = name
            .parse()
            .map_err(|error: croft_host::NameError| error.to_string())?;
        Ok(Login {
            user: user.map(str::to_owned),
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_before_the_last_at() {
        let login = |text: &str| {
            let login: Login = text.parse().ok()?;
            Some((login.user, login.name.to_string()))
        };
        let web = "web".to_owned();
        assert_eq!(login("web"), Some((None, web.clone())));
        assert_eq!(login("me@web"), Some((Some("me".to_owned()), web.clone())));
        assert_eq!(login("me@x@web"), Some((Some("me@x".to_owned()), web)));
        for bad in ["@web", "me@", "", "-oProxyCommand=x@web", "me@-x"] {
            assert_eq!(login(bad), None, "{bad}");
        }
    }
}
