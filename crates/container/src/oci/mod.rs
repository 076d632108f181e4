//! `croft-oci`: the command line of an OCI runtime, for podman, containerd and
//! whoever else brings bundles (runtime-spec, `runtime.md`, `bundle.md`).
//!
//! Each call is a process of its own that ends within milliseconds, but for
//! `run`, `exec` and `events`, which wait. What lasts is the container's init,
//! and the directory that says which it is (`store`); the rest is looked up
//! each time (`status`).
//!
//! ```text
//! create ─► store: name taken, lock held      exec ─► init's namespaces
//!    ├────► control group, limits             kill ─► init, or the group
//!    ├────► crate::create ──► init waits      delete ─► group, hooks, name
//!    └────► state.json, pid file, terminal
//! start ──► socket in the directory ──► init becomes the program
//! ```

mod args;
mod bundle;
mod capabilities;
mod checkpoint;
mod error;
mod events;
mod exec;
mod features;
mod files;
mod foreground;
mod groups;
mod life;
mod limits;
mod log;
mod process;
mod show;
mod spec;
mod status;
mod store;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use self::args::{Command, Globals};
use self::error::Error;
use self::log::Log;
use self::store::Store;

/// The program's name.
const NAME: &str = "croft-oci";
/// Version of the runtime-spec that is followed.
pub const SPEC_VERSION: &str = "1.2.1";

/// What all commands use.
#[derive(Debug)]
struct Context {
    store: Store,
    log: Log,
    /// CRIU's program.
    criu: PathBuf,
}

impl Context {
    fn new(globals: &Globals) -> Self {
        Context {
            store: Store::new(globals.root.as_deref()),
            log: Log::new(globals),
            criu: globals.criu.clone().unwrap_or_else(|| "criu".into()),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let (globals, command) = args::parse(env::args_os().skip(1));
    let result = command.and_then(|command| run(&Context::new(&globals), command));
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            Log::new(&globals).error(&error.to_string());
            error.exit_code().into()
        }
    }
}

fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(options) => life::create(context, &options),
        Command::Start(options) => life::start(context, &options),
        Command::Run(options) => life::run(context, &options),
        Command::Exec(options) => exec::exec(context, &options),
        Command::State(options) => show::state(context, &options),
        Command::Kill(options) => life::kill(context, &options),
        Command::Delete(options) => life::delete(context, &options),
        Command::Ps(options) => show::ps(context, &options),
        Command::Pause(options) => limits::pause(context, &options),
        Command::Resume(options) => limits::resume(context, &options),
        Command::Update(options) => limits::update(context, &options),
        Command::List(options) => show::list(context, &options),
        Command::Spec(options) => spec::spec(&options),
        Command::Features => features::features(),
        Command::Events(options) => events::events(context, &options),
        Command::Checkpoint(options) => checkpoint::checkpoint(context, &options),
        Command::Restore(options) => checkpoint::restore(context, &options),
        Command::Print(text) => show::print(&text),
    }
}
