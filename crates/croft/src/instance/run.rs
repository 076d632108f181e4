//! `croft run` of an instance.

use std::time::Duration;

use croft_api::agent::Exec;
use rustix::stdio::{stdin, stdout};
use rustix::termios::isatty;

use super::console::{self, View};
use super::create::Wanted;
use super::{Fault, finish, guest, open, power, wait};
use crate::args::run::RunOptions;
use crate::exit::Exit;
use crate::{print, say};

/// How long a new instance may take to be ready for its command.
const READY: Duration = Duration::from_secs(300);
/// How long it may take to end by itself.
const STOP: Duration = Duration::from_secs(60);

/// Makes an instance, starts it, and shows its console unless it is to be in
/// the background.
pub fn run(options: &RunOptions) -> Exit {
    finish(open().and_then(|instances| {
        if let Some(option) = options.place.given() {
            return Err(Fault::usage(format!(
                "{option} is for a machine in the foreground: with --kernel or --disk, without IMAGE and -d"
            )));
        }
        let wanted = Wanted {
            image: options.image.as_deref(),
            name: options.name.as_deref(),
            machine: &options.machine,
            instance: &options.instance,
        };
        let name = wanted.make(&instances)?;
        let started = instances.start(&name, |text| say::line(&format!("croft: {name}: {text}")));
        if let Err(error) = started {
            // It was made for this run, and nothing of it ran.
            if instances
                .status(&name)
                .is_ok_and(|status| !status.phase.is_live())
            {
                let _ = instances.delete(&name);
            }
            return Err(error.into());
        }
        if options.detach {
            return Ok(print(format!("{name}\n").as_bytes()));
        }
        if options.command.is_empty() {
            return console::view(&instances, &name, View::default());
        }
        let task = Exec {
            argv: options.command.clone(),
            stdin: true,
            ..Exec::default()
        };
        let tty = isatty(stdin()) && isatty(stdout());
        let ended = wait::until_ready(&instances, &name, READY)
            .map_err(|fault| fault.of(&name))
            .and_then(|()| guest::in_guest(&instances, &name, task, tty));
        // Whatever became of the command.
        let stopped = power::stop_one(&instances, &name, STOP).map_err(|fault| fault.of(&name));
        let exit = ended?;
        stopped.map(|()| exit)
    }))
}
