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

mod container;
mod finish;
mod mode;
mod packages;
mod recipe;

use std::path::Path;

pub use mode::Mode;
pub use recipe::{Recipe, Release};

use crate::forms;
use crate::progress::Progress;
use crate::store::{Committed, Store};
use crate::tree::{Limits, Tree};
use crate::{Error, Manifest};

/// Space that a build takes at its largest, in bytes: the archive, the tree,
/// the disk and the root file system.
const SPACE: u64 = 2 << 30;

/// Counts up when what this crate makes of packages changes so that images
/// should be built anew: 2 brings NICs up that are renamed, 3 has a network in
/// containers.
pub const REVISION: u32 = 3;
/// How the origin of images begins that were built.
const ORIGIN: &str = "built from packages of ";

/// Whether an image was built by an older Croft than this, which makes another
/// one of the same packages.
pub fn is_outdated(manifest: &Manifest) -> bool {
    manifest.origin.starts_with(ORIGIN) && manifest.recipe.unwrap_or(1) < REVISION
}

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
    let mut manifest = forms::describe(&tree);
    container::convert(&mut tree)?;
    let rootfs = forms::rootfs(&tree, &staging, progress)?;
    progress.phase("storing");
    manifest.origin = format!("{ORIGIN}{}", recipe.release.suite);
    manifest.recipe = Some(REVISION);
    manifest.disk = Some(disk);
    manifest.rootfs = Some(rootfs);
    staging.commit(&manifest, &recipe.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_older_recipes_are_outdated() {
        let mut manifest: Manifest = serde_json::from_value(serde_json::json!({
            "version": 1, "os": "debian", "os_version": "12", "arch": "x86_64",
            "created": 0, "origin": "built from packages of bookworm",
            "agent": true, "cloud_init": false,
        }))
        .unwrap();
        assert!(is_outdated(&manifest));
        manifest.recipe = Some(REVISION);
        assert!(!is_outdated(&manifest));
        manifest.recipe = None;
        manifest.origin = "imported from a.qcow2".to_owned();
        assert!(!is_outdated(&manifest));
    }
}
