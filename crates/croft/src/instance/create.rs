//! `croft create`.

use croft_host::{InstanceName, Instances, StoreError};

use super::image::Images;
use super::nics::{ByDefault, nics};
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
pub const TRIES: u32 = 1000;

impl Wanted<'_> {
    /// Makes it; its name.
    pub fn make(&self, instances: &Instances) -> Result<InstanceName, Fault> {
        let images = match self.image {
            Some(reference) => Some(Images::open(instances, reference)?),
            None => None,
        };
        let default = match self.image {
            Some(_) => ByDefault::User,
            None => ByDefault::None,
        };
        let nics = nics(&self.machine.net, default).map_err(Fault::usage)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let name = self.name(tries)?;
            let new = match instances.begin(&name) {
                // Another one, if the choice was ours.
                Err(StoreError::Exists(_)) if self.name.is_none() && tries < TRIES => continue,
                new => new?,
            };
            let mut config = spec::config(self.machine, self.instance, &name)?;
            config.nics.clone_from(&nics);
            // Until it is written that the instance uses it, an image could be
            // deleted.
            let hold = match &images {
                Some(images) => Some(images.hold()?),
                None => None,
            };
            if let Some(images) = &images {
                images.equip(&new, &mut config, self.instance)?;
            }
            match new.finish(&config) {
                Err(StoreError::Exists(_)) if self.name.is_none() && tries < TRIES => {}
                done => {
                    drop(hold);
                    return Ok(done.map(|()| name)?);
                }
            }
        }
    }

    fn name(&self, tries: u32) -> Result<InstanceName, Fault> {
        let base = self.image.map_or_else(|| UNNAMED.to_owned(), base_name);
        let text = match (self.name, tries) {
            (Some(name), _) => name.to_owned(),
            (None, 1) => base,
            (None, number) => format!("{base}-{number}"),
        };
        text.parse()
            .map_err(|error| Fault::usage(format!("--name '{text}': {error}")))
    }
}

/// What instances of an image are called: `debian-12` of `debian:12`.
pub fn base_name(image: &str) -> String {
    // Room for a number behind it.
    const LENGTH_MAX: usize = 50;
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || c == '.' => c,
        _ => '-',
    };
    let name: String = image.chars().map(plain).take(LENGTH_MAX).collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() {
        UNNAMED.to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_images() {
        for (image, name) in [
            ("debian:12", "debian-12"),
            ("team/web:2026", "team-web-2026"),
            ("::", UNNAMED),
        ] {
            assert_eq!(base_name(image), name);
            assert!(name.parse::<InstanceName>().is_ok());
        }
    }
}
