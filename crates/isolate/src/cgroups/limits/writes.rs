//! Writes to a group's files, and what is left out of them.

use std::io;

use rustix::io::Errno;

use crate::cgroups::dir::Dir;
use crate::cgroups::group::Place;
use crate::cgroups::{Controllers, Error, Group, LeftOut, Version};

/// What is being set.
#[derive(Debug)]
pub struct Writes<'a> {
    group: &'a Group,
    left_out: Vec<LeftOut>,
}

/// A write to come.
#[derive(Clone, Debug)]
pub struct Write {
    /// The file.
    pub file: &'static str,
    /// What is written.
    pub value: String,
}

impl Write {
    /// A write of a value to a file.
    pub fn new(file: &'static str, value: impl ToString) -> Self {
        Write {
            file,
            value: value.to_string(),
        }
    }
}

impl<'a> Writes<'a> {
    /// None yet.
    pub fn new(group: &'a Group) -> Self {
        Writes {
            group,
            left_out: Vec::new(),
        }
    }

    /// What could not be had.
    pub fn left_out(self) -> Vec<LeftOut> {
        self.left_out
    }

    /// Names a limit that cannot be had.
    pub fn leave_out(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.left_out.push(LeftOut {
            what: what.into(),
            why: why.into(),
        });
    }

    /// Where a controller's files are; names the controller if there are
    /// none.
    pub fn place(&mut self, controller: Controllers) -> Option<(&'a Dir, Version)> {
        match self.group.place(controller) {
            Some(place) => Some((&place.dir, place.version)),
            None => {
                let known = self.group.left_out.iter();
                let word = controller.to_string();
                let why = known
                    .filter(|one| one.what.split(' ').any(|what| what == word))
                    .map(|one| one.why.clone())
                    .next();
                let why = why.unwrap_or_else(|| "the group has no such controller".to_owned());
                self.leave_out(word, why);
                None
            }
        }
    }

    /// The directory in version 2.
    pub fn unified(&self) -> Option<&'a Dir> {
        self.group.unified().map(|place: &'a Place| &place.dir)
    }

    /// Writes to the first of these files that the group has; leaves the
    /// limit out if there is none.
    pub fn first(
        &mut self,
        dir: &Dir,
        files: &[&'static str],
        what: &str,
        value: &str,
    ) -> Result<(), Error> {
        for file in files {
            match dir.put(file, value.as_bytes()) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.has(file) => {}
                Err(error) => return Err(dir.write_error(file, value, error)),
            }
        }
        self.leave_out(what, "this kernel has no such limit");
        Ok(())
    }
}

/// Writes all, in an order that the kernel takes: limits that bound each
/// other are refused in the wrong one, which depends on their values now.
pub fn settle(dir: &Dir, mut writes: Vec<Write>) -> Result<(), Error> {
    while !writes.is_empty() {
        let before = writes.len();
        let mut failed = None;
        writes.retain(|write| match dir.put(write.file, write.value.as_bytes()) {
            Ok(()) => false,
            Err(error) => {
                failed.get_or_insert_with(|| dir.write_error(write.file, &write.value, error));
                true
            }
        });
        match failed {
            Some(error) if writes.len() == before => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether an error is this one.
pub fn is(error: &Error, errno: Errno) -> bool {
    match error {
        Error::Write { source, .. } => Errno::from_io_error(source) == Some(errno),
        _ => false,
    }
}
