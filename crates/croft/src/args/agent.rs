//! Commands that the agent in an instance's guest carries out.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::builder::{OsStringValueParser, TypedValueParser};
use croft_host::InstanceName;

use super::instance::NameOptions;

/// What follows the help of `croft exec` and `croft shell`.
pub const EXEC_HELP: &str = "\
Exit codes:
  N        that of the command
  128 + N  the command was ended by signal N
  125      the command was not started: no such instance, no agent that answers
  126      the command cannot be executed
  127      there is no such command in the guest
  2        wrong usage

Examples:
  croft exec web -- systemctl status nginx
  croft exec web -- sh -c 'cat > /etc/motd' < motd
  tar c src | croft exec web --user anna -- tar x
  croft shell web";

/// What follows the help of `croft cp`.
pub const CP_HELP: &str = "\
A directory is copied with all that is in it. If the destination is a directory
what is copied is put into it, else it is called so. Links within what is copied
stay links; devices, pipes and sockets are left out.

Exit codes:
  0  copied
  1  not, or not all of it
  2  wrong usage, or there is no such instance; nothing was done

Examples:
  croft cp index.html web:/srv/www/
  croft cp --owner 33:33 site web:/srv/www
  croft cp web:/var/log .";

/// `croft exec`.
#[derive(Debug, clap::Args)]
pub struct ExecOptions {
    #[command(flatten)]
    pub name: NameOptions,

    #[command(flatten)]
    pub place: PlaceOptions,

    /// Give the command a terminal; it has one if standard input and output are terminals
    #[arg(short, long)]
    pub tty: bool,

    /// Give it none
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,

    /// Give it nothing to read, and leave standard input alone
    #[arg(short, long)]
    pub no_stdin: bool,

    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `croft shell`.
#[derive(Debug, clap::Args)]
pub struct ShellOptions {
    #[command(flatten)]
    pub name: NameOptions,

    #[command(flatten)]
    pub place: PlaceOptions,
}

/// As whom and where a command runs.
#[derive(Debug, clap::Args)]
pub struct PlaceOptions {
    /// User of the guest, by name or number
    #[arg(short, long, default_value = "root")]
    pub user: String,

    /// Working directory; the user's home when not given
    #[arg(short, long, value_name = "DIRECTORY")]
    pub workdir: Option<OsString>,

    /// Variable for the command's environment; can be given several times
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(parse_variable))]
    pub env: Vec<(OsString, OsString)>,
}

/// `croft cp`.
#[derive(Debug, clap::Args)]
pub struct CopyOptions {
    /// File or directory: of this host, or of an instance
    #[arg(value_name = "[NAME:]SOURCE", value_parser = OsStringValueParser::new().try_map(parse_place), value_hint = clap::ValueHint::AnyPath)]
    pub source: Place,

    /// Where it goes
    #[arg(value_name = "[NAME:]DESTINATION", value_parser = OsStringValueParser::new().try_map(parse_place), value_hint = clap::ValueHint::AnyPath)]
    pub destination: Place,

    /// Owner and group in the guest of what is copied there, by number; root when not given
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner, conflicts_with = "archive")]
    pub owner: Option<(u32, u32)>,

    /// Keep owners and groups, by number, of what is copied into the guest
    #[arg(short, long)]
    pub archive: bool,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path of this host.
    Host(OsString),
    /// A path of an instance's guest.
    Guest(InstanceName, OsString),
}

fn parse_variable(text: OsString) -> Result<(OsString, OsString), &'static str> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let Some((name, value)) = at
        .filter(|at| *at > 0)
        .and_then(|at| bytes.split_at_checked(at))
    else {
        return Err("give NAME=VALUE");
    };
    let value = value.strip_prefix(b"=").unwrap_or_default();
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    Ok((owned(name), owned(value)))
}

/// `NAME:PATH` is an instance's, unless there is a slash before the colon.
fn parse_place(text: OsString) -> Result<Place, String> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err("name a file or directory".to_owned());
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    let Some((name, path)) = colon.and_then(|at| bytes.split_at_checked(at)) else {
        return Ok(Place::Host(text));
    };
    if name.contains(&b'/') {
        return Ok(Place::Host(text));
    }
    let name = std::str::from_utf8(name).unwrap_or_default();
    let name: InstanceName = name
        .parse()
        .map_err(|error| format!("{error}; a file with a colon in its name is ./NAME:…"))?;
    let path = OsStr::from_bytes(path.strip_prefix(b":").unwrap_or_default());
    if !path.as_bytes().starts_with(b"/") {
        return Err(format!("name an absolute path in the guest: {name}:/…"));
    }
    Ok(Place::Guest(name, path.to_owned()))
}

fn parse_owner(text: &str) -> Result<(u32, u32), &'static str> {
    let pair = text.split_once(':');
    pair.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)))
        .ok_or("give two numbers, as in 1000:1000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let place = |text: &str| parse_place(text.into());
        let host = |text: &str| Ok(Place::Host(text.into()));
        assert_eq!(place("a"), host("a"));
        assert_eq!(place("./a:b"), host("./a:b"));
        assert_eq!(place("/a:/b"), host("/a:/b"));
        let web = Place::Guest("web".parse().unwrap(), "/a:b".into());
        assert_eq!(place("web:/a:b"), Ok(web));
        for bad in ["", "web:", "web:a", "we b:/a", ":/a"] {
            assert!(place(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_owner("1:2"), Ok((1, 2)));
        assert!(parse_owner("root:root").is_err());
        let variable = parse_variable("A=b=c".into()).unwrap();
        assert_eq!(variable, ("A".into(), "b=c".into()));
        assert!(parse_variable("=b".into()).is_err() && parse_variable("A".into()).is_err());
    }
}
