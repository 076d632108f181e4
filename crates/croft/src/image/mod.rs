//! `croft image`: the images that instances are made from.
//!
//! The store and all that is done to it are the crate `croft-image`'s; this is
//! what people see of it.

pub mod bar;
mod describe;
mod registry;
mod secret;
mod users;

use std::path::Path;

use croft_api::programs;
use croft_host::Directories;
use croft_image::build::{self, Recipe};
use croft_image::export::{self, Form};
use croft_image::import::{self, Source};
use croft_image::store::{Committed, Deleted, Store};

use self::bar::Bar;
pub use self::registry::pull_by_name;
use crate::args::image::{BuildOptions, ExportOptions, ImageCommand, ImportOptions};
use crate::exit::Exit;
use crate::{print, say};

/// Why something was not done.
struct Fault {
    exit: Exit,
    message: String,
}

impl From<croft_image::Error> for Fault {
    fn from(error: croft_image::Error) -> Self {
        Fault {
            exit: if error.is_usage() {
                Exit::Usage
            } else {
                Exit::Failed
            },
            message: error.to_string(),
        }
    }
}

fn usage(message: impl Into<String>) -> Fault {
    Fault {
        exit: Exit::Usage,
        message: message.into(),
    }
}

/// Does what the command says.
pub fn run(command: ImageCommand) -> Exit {
    match execute(command) {
        Ok(exit) => exit,
        Err(fault) => {
            say::line(&format!("croft: {}", fault.message));
            fault.exit
        }
    }
}

fn execute(command: ImageCommand) -> Result<Exit, Fault> {
    let directories = Directories::find().map_err(|error| usage(error.to_string()))?;
    directories
        .create()
        .map_err(|error| usage(error.to_string()))?;
    let store = Store::open(&directories.images())?;
    match command {
        ImageCommand::Build(options) => build(&store, options),
        ImageCommand::Import(options) => import(&store, options),
        ImageCommand::Pull(options) => registry::pull(&store, &directories, &options),
        ImageCommand::Login(options) => registry::log_in(&directories, &options),
        ImageCommand::Logout { registry } => registry::log_out(&directories, &registry),
        ImageCommand::List(options) => describe::list(&store, options.output),
        ImageCommand::Show(options) => describe::show(&store, &options.image, options.output),
        ImageCommand::Rename { image, name } => {
            store.rename(&image, &name)?;
            Ok(Exit::PowerOff)
        }
        ImageCommand::Tag { image, name } => {
            store.tag(&image, &name)?;
            Ok(Exit::PowerOff)
        }
        ImageCommand::Delete { images } => delete(&store, &directories.instances(), &images),
        ImageCommand::Prune => {
            let instances = directories.instances();
            let pruned = store.prune(|id| !users::of(&instances, id).is_empty())?;
            for id in &pruned {
                say::line(&format!("croft: deleted {}", id.short()));
            }
            Ok(Exit::PowerOff)
        }
        ImageCommand::Export(options) => export(&store, &options),
        ImageCommand::Verify { images } => verify(&store, images),
    }
}

/// Builds an image that can be built by its name, with what goes by default.
pub fn build_by_name(store: &Store, name: &str) -> Result<(), croft_image::Error> {
    let recipe = Recipe::new(name)?;
    build_recipe(store, &recipe).map(drop)
}

fn build(store: &Store, options: BuildOptions) -> Result<Exit, Fault> {
    let mut recipe = Recipe::new(&options.release)?;
    if let Some(name) = options.name {
        recipe.name = name;
    } else if !options.packages.is_empty() {
        say::line(&format!(
            "croft: further packages, and the name is still {}; --name gives another",
            recipe.name
        ));
    }
    if options.if_needed {
        let found = store.resolve(&recipe.name).ok();
        if found.is_some_and(|image| !build::is_outdated(&image.manifest)) {
            return Ok(Exit::PowerOff);
        }
    }
    recipe.packages = options.packages;
    recipe.mirrors = options.mirrors;
    recipe.mode = options.mode;
    Ok(committed(&build_recipe(store, &recipe)?))
}

fn build_recipe(store: &Store, recipe: &Recipe) -> Result<Committed, croft_image::Error> {
    let agent = programs::find("croft-agent").ok();
    let mut bar = Bar::new();
    let mut warnings = Vec::new();
    let built = build::build(store, recipe, agent.as_deref(), &mut bar, &mut |text| {
        warnings.push(text.to_owned());
    });
    bar.finish();
    warn(warnings);
    built
}

fn warn(warnings: Vec<String>) {
    for warning in warnings {
        say::line(&format!("croft: warning: {warning}"));
    }
}

fn import(store: &Store, options: ImportOptions) -> Result<Exit, Fault> {
    let source = Source {
        path: options.file,
        format: options.format,
        backing: options.backing,
        name: options.name,
        wanted: options.wanted,
    };
    let mut bar = Bar::new();
    let mut warnings = Vec::new();
    let imported = import::import(store, &source, &mut bar, &mut |text| {
        warnings.push(text.to_owned());
    });
    bar.finish();
    warn(warnings);
    Ok(committed(&imported?))
}

/// Says which image there is now.
fn committed(committed: &Committed) -> Exit {
    let image = &committed.image;
    let name = image.names.last().cloned().unwrap_or_default();
    say::line(&format!("croft: image {name} ({})", image.id.short()));
    if let Some(former) = &committed.former {
        say::line(&format!(
            "croft: the image that had the name is {} now; 'croft image prune' deletes it when \
             no instance uses it",
            former.short()
        ));
    }
    Exit::PowerOff
}

fn delete(store: &Store, instances: &Path, images: &[String]) -> Result<Exit, Fault> {
    let mut exit = Exit::PowerOff;
    for image in images {
        match store.delete(image, |id| users::of(instances, id)) {
            Ok(Deleted::Image(_)) => {}
            Ok(Deleted::Name(id)) => say::line(&format!(
                "croft: image {} has lost the name {image}, and has others",
                id.short()
            )),
            Err(error) => {
                let fault = Fault::from(error);
                say::line(&format!("croft: {}", fault.message));
                exit = fault.exit;
            }
        }
    }
    Ok(exit)
}

fn export(store: &Store, options: &ExportOptions) -> Result<Exit, Fault> {
    let form = options
        .format
        .or_else(|| Form::of(&options.file))
        .ok_or_else(|| usage("say what to export as: --format raw, qcow2, tar, tar.zst or oci"))?;
    let image = store.resolve(&options.image)?;
    let mut bar = Bar::new();
    let exported = export::export(store, &image, &options.file, form, &mut bar);
    bar.finish();
    exported?;
    Ok(Exit::PowerOff)
}

fn verify(store: &Store, images: Vec<String>) -> Result<Exit, Fault> {
    let mut exit = Exit::PowerOff;
    let images = if images.is_empty() {
        store
            .list()?
            .into_iter()
            .filter_map(|image| match image {
                Ok(image) => Some(image.id.to_string()),
                Err(error) => {
                    say::line(&format!("croft: {error}"));
                    exit = Exit::Failed;
                    None
                }
            })
            .collect()
    } else {
        images
    };
    for image in images {
        match store.verify(&image, |_| ()) {
            Ok(verified) => {
                let title = store.resolve(&image)?.title();
                print(format!("{title}: good, {} bytes\n", verified.bytes).as_bytes());
            }
            Err(error) => {
                say::line(&format!("croft: {error}"));
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}
