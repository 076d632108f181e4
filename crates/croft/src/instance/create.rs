//! `croft create`.

use croft_host::{InstanceName, Instances, StoreError};

use super::{Fault, finish, open, spec};
use crate::args::create::{CreateOptions, InstanceOptions};
use crate::args::machine::MachineOptions;
use crate::exit::Exit;
use crate::print;

/// Makes an instance.
pub fn create(options: &CreateOptions) -> Exit {
    let made = open().and_then(|instances| {
        let wanted = Wanted {
            image: options.image.as_deref(),
            name: options.name.as_deref(),
            machine: &options.machine,
            instance: &options.instance,
        };
        let name = wanted.make(&instances)?;
        Ok(print(format!("{name}\n").as_bytes()))
    });
    finish(made)
}

/// What instance is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// From which image.
    pub image: Option<&'a str>,
    /// Called so.
    pub name: Option<&'a str>,
    /// With this hardware.
    pub machine: &'a MachineOptions,
    /// Kept like this.
    pub instance: &'a InstanceOptions,
}

/// What an instance without an image is called.
const UNNAMED: &str = "machine";
/// Most names tried.
const TRIES: u32 = 1000;

impl Wanted<'_> {
    /// Makes it; its name.
    pub fn make(&self, instances: &Instances) -> Result<InstanceName, Fault> {
        if let Some(image) = self.image {
            return Err(Fault::usage(format!(
                "image '{image}': instances of images cannot be made yet; use --kernel"
            )));
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let name = self.name(tries)?;
            match self.make_as(instances, &name) {
                // Another one, if the choice was ours.
                Err(StoreError::Exists(_)) if self.name.is_none() && tries < TRIES => {}
                Err(error) => return Err(error.into()),
                Ok(made) => return made.map(|()| name),
            }
        }
    }

    fn name(&self, tries: u32) -> Result<InstanceName, Fault> {
        let text = match (self.name, tries) {
            (Some(name), _) => name.to_owned(),
            (None, 1) => UNNAMED.to_owned(),
            (None, number) => format!("{UNNAMED}-{number}"),
        };
        text.parse()
            .map_err(|error| Fault::usage(format!("--name '{text}': {error}")))
    }

    fn make_as(
        &self,
        instances: &Instances,
        name: &InstanceName,
    ) -> Result<Result<(), Fault>, StoreError> {
        let config = match spec::kernel_config(self.machine, self.instance, name) {
            Ok(config) => config,
            Err(fault) => return Ok(Err(fault)),
        };
        instances.begin(name)?.finish(&config)?;
        Ok(Ok(()))
    }
}
