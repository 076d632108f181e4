//! Building images of Debian from its packages.
//!
//! ```text
//! packages ─mmdebstrap─► archive ──► tree ─finish─► tree ─┬─► disk ──┐
//!   (root, or what passes for it)                         └─► rootfs ┴─► store
//! ```
//!
//! Only the first step runs anything of the distribution's; it leaves an
//! archive. The rest is done by this crate on its own files ([`crate::tree`])
//! and needs no privilege.

mod finish;
mod mode;
mod packages;
mod recipe;

use std::path::Path;

pub use mode::Mode;
pub use recipe::{Recipe, Release};

use crate::Error;
use crate::forms;
use crate::progress::Progress;
use crate::store::{Committed, Store};
use crate::tree::{Limits, Tree};

/// Space that a build takes at its largest, in bytes: the archive, the tree,
/// the disk and the root file system.
const SPACE: u64 = 2 << 30;

/// Builds an image and gives it its name. `agent` is Croft's guest agent on
/// this host; `warn` hears what the image will lack.
pub fn build(
    store: &Store,
    recipe: &Recipe,
    agent: Option<&Path>,
    progress: &mut dyn Progress,
    warn: &mut dyn FnMut(&str),
) -> Result<Committed, Error> {
    crate::name::check(&recipe.name)?;
    recipe.check_mirrors()?;
    recipe.all_packages()?;
    let mode = match recipe.mode {
        Some(mode) => mode,
        None => Mode::choose(recipe.release)?,
    };
    forms::need_space(store.root(), SPACE)?;
    let staging = store.stage()?;
    let archive = staging.path("packages.tar");
    packages::install(recipe, mode, &staging, &archive, progress)?;

    let mut tree = Tree::create(&staging.path("tree"))?;
    forms::unpack(&mut tree, &archive, Limits::default(), progress)?;
    std::fs::remove_file(&archive).map_err(Error::io("remove", &archive))?;
    progress.phase("configuring");
    finish::finish(&mut tree, recipe, agent, warn)?;

    let disk = forms::disk(&tree, &staging, progress)?;
    let rootfs = forms::rootfs(&tree, &staging, progress)?;
    progress.phase("storing");
    let mut manifest = forms::describe(&tree);
    manifest.origin = format!("built from packages of {}", recipe.release.suite);
    manifest.disk = Some(disk);
    manifest.rootfs = Some(rootfs);
    staging.commit(&manifest, &recipe.name)
}
