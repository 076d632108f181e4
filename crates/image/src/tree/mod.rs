//! A root file system on its way into an image.
//!
//! ```text
//! archive ──unpack──► files of this user + ledger ──edits──┬─mke2fs, debugfs─► disk
//!                                                          └──────pack───────► archive
//! ```
//!
//! Its files lie in a directory, and belong to whoever runs Croft. What they
//! are in the image - owners, set-id bits, capabilities - is in a [`Ledger`]
//! beside them, so that no privilege is needed and no file on the host ever
//! has somebody's set-id bit.

mod edit;
pub(crate) mod extended;
mod ledger;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;
pub(crate) mod walk;

pub use ledger::{Attributes, Kind, Ledger};
pub use unpack::Limits;

use std::path::{Path, PathBuf};

use crate::Error;

/// A root file system in a directory, with what the directory cannot hold.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    ledger: Ledger,
    /// When the newest file of an archive was changed. What is changed here
    /// counts as just as old, so that the same archive gives the same image.
    newest: u64,
}

impl Tree {
    /// An empty one, in a directory that is made.
    pub fn create(root: &Path) -> Result<Tree, Error> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(root)
            .map_err(Error::io("make directory", root))?;
        let mut ledger = Ledger::default();
        ledger.set(PathBuf::new(), Attributes::new(Kind::Directory, 0o755));
        Ok(Tree {
            root: root.to_owned(),
            ledger,
            newest: 0,
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What its files are.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What its files are, to change. Only files that are there may be in it.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
}
