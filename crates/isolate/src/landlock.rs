//! Landlock: from here on no file, no port and nobody else's socket can be
//! reached, whatever else fails; descriptors that are there stay as they are.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

use crate::report::{Part, Piece};

/// The youngest version asked for; of an older kernel's, what it has.
const VERSION: ABI = ABI::V6;

/// A directory of the host that stays in reach.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// Nothing beneath it may be changed.
    pub read_only: bool,
}

/// Restricts the calling thread and all that it will make.
pub fn restrict(shares: &[Share<'_>]) -> Part {
    match apply(shares) {
        Ok(RulesetStatus::FullyEnforced) => Part::there(Piece::Landlock, "files, ports, signals"),
        Ok(RulesetStatus::PartiallyEnforced) => Part::there(
            Piece::Landlock,
            "files; this kernel is too old for more of it (Linux 6.12 has all)",
        ),
        Ok(RulesetStatus::NotEnforced) => Part::missing(
            Piece::Landlock,
            "the kernel has none; Linux 5.13 or newer, booted with landlock among lsm=",
        ),
        Err(error) => Part::missing(Piece::Landlock, error),
    }
}

fn apply(shares: &[Share<'_>]) -> Result<RulesetStatus, RulesetError> {
    let everything = AccessFs::from_all(VERSION);
    let mut ruleset = Ruleset::default()
        .handle_access(everything)?
        .handle_access(AccessNet::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for share in shares {
        let access = if share.read_only {
            AccessFs::ReadFile | AccessFs::ReadDir
        } else {
            everything & !AccessFs::Execute
        };
        ruleset = ruleset.add_rule(PathBeneath::new(share.directory, access))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}
