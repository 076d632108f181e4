//! `croft run` of an instance.

use super::console::{self, View};
use super::create::Wanted;
use super::{finish, open};
use crate::args::run::RunOptions;
use crate::exit::Exit;
use crate::{print, say};

/// Makes an instance, starts it, and shows its console unless it is to be in
/// the background.
pub fn run(options: &RunOptions) -> Exit {
    finish(open().and_then(|instances| {
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
        console::view(&instances, &name, View::default())
    }))
}
