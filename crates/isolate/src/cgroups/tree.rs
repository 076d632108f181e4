//! All groups beneath one. A container to which a group was delegated makes as
//! many as it likes and as deep as it likes: no level of them takes a
//! descriptor or a part of the stack, and none is found by its path, which may
//! be longer than the kernel takes.

use std::io;

use super::Error;
use super::dir::Dir;

/// Goes through a group and all beneath it. `enter` is told of each before
/// those beneath it, `leave` of each but the first after those beneath it: the
/// group above it, and its name. Groups that come and go meanwhile may be left
/// out.
pub fn walk(
    top: &Dir,
    mut enter: impl FnMut(&Dir) -> Result<(), Error>,
    mut leave: impl FnMut(&Dir, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |dir: &Dir, source| Error::Read {
        path: dir.path().to_owned(),
        source,
    };
    let mut here = top.again().map_err(|source| failed(top, source))?;
    enter(&here)?;
    // The way from the top, and what is still to be seen at each step of it.
    let mut names: Vec<String> = Vec::new();
    let mut left = vec![children(&here)?];
    loop {
        if let Some(name) = left.last_mut().and_then(Vec::pop) {
            match here.child(&name) {
                Ok(child) => {
                    enter(&child)?;
                    left.push(children(&child)?);
                    names.push(name);
                    here = child;
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(failed(&here, error)),
            }
            continue;
        }
        left.pop();
        let Some(name) = names.pop() else {
            return Ok(());
        };
        here = match here.above() {
            Ok(above) => above,
            Err(error) if is_gone(&error) => loop {
                match down(top, &names) {
                    Ok(there) => break there,
                    Err(error) if is_gone(&error) && names.pop().is_some() => {
                        left.pop();
                    }
                    Err(error) => return Err(failed(top, error)),
                }
            },
            Err(error) => return Err(failed(&here, error)),
        };
        leave(&here, &name)?;
    }
}

/// Names of what is beneath; nothing beneath one that is gone.
fn children(dir: &Dir) -> Result<Vec<String>, Error> {
    match dir.children() {
        Err(Error::Read { source, .. }) if is_gone(&source) => Ok(Vec::new()),
        result => result,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The group at the end of a way.
fn down(top: &Dir, names: &[String]) -> io::Result<Dir> {
    let mut here = top.again()?;
    for name in names {
        here = here.child(name)?;
    }
    Ok(here)
}
