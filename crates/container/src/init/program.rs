//! Finding a program, and becoming it.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use oci_spec::runtime::Process;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, openat, stat};
use rustix::io::Errno;

use crate::error::At;
use crate::root::resolve::InRoot;
use crate::sys::working_directory;
use crate::{Error, Step, sys};

/// Where programs are, if the environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest `/etc/passwd` that is read.
const USERS: u64 = 1 << 20;

/// A program, its arguments and environment, for the kernel.
#[derive(Debug)]
pub struct Program {
    name: String,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    path: String,
    cwd: PathBuf,
}

fn string(text: &str) -> Result<CString, Error> {
    CString::new(text).at(Step::Spec, || format!("the argument or variable {text:?}"))
}

impl Program {
    /// Of a description, in the container's root.
    pub fn new(process: &Process, root: InRoot<'_>) -> Result<Self, Error> {
        let arguments = process.args().as_deref().unwrap_or_default();
        let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
            return Err(Error::new(Step::Spec, "process.args names no program"));
        };
        if !process.cwd().is_absolute() {
            let text = "process.cwd does not begin with a slash";
            return Err(Error::new(Step::Spec, text));
        }
        let variables = process.env().as_deref().unwrap_or_default();
        let mut environment: Vec<CString> = variables
            .iter()
            .map(|one| string(one))
            .collect::<Result<_, _>>()?;
        let value = |name: &str| {
            let mut values = variables.iter().rev().filter_map(|one| one.split_once('='));
            values.find(|(one, _)| *one == name).map(|(_, value)| value)
        };
        if value("HOME").is_none() {
            let home = home(root, process.user().uid()).unwrap_or_else(|| "/".to_owned());
            environment.push(string(&format!("HOME={home}"))?);
        }
        Ok(Program {
            name: name.clone(),
            arguments: arguments
                .iter()
                .map(|one| string(one))
                .collect::<Result<_, _>>()?,
            environment,
            path: value("PATH").unwrap_or(PATH).to_owned(),
            cwd: process.cwd().clone(),
        })
    }

    /// Goes to its working directory.
    pub fn go(&self) -> Result<(), Error> {
        let what = || format!("the working directory {}", self.cwd.display());
        rustix::process::chdir(&self.cwd).at(Step::Directory, what)?;
        self.check_directory()
    }

    /// A link of procfs, such as `/proc/self/fd/7`, may lead out of the
    /// container, to a directory of the host's that somebody holds open.
    fn check_directory(&self) -> Result<(), Error> {
        let what = || format!("the working directory {}", self.cwd.display());
        let path = working_directory().at(Step::Directory, what)?;
        if path.first() == Some(&b'/') {
            return Ok(());
        }
        let text = format!("{} is outside of the container", what());
        Err(Error::new(Step::Directory, text))
    }

    /// Where it is, from the working directory.
    pub fn find(&self) -> Result<CString, Error> {
        if self.name.contains('/') {
            check(Path::new(&self.name)).map_err(|error| self.not_run(error))?;
            return string(&self.name);
        }
        let mut refused = Errno::NOENT;
        for directory in self.path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let path = Path::new(directory).join(&self.name);
            match check(&path) {
                Ok(()) => {
                    let path = path.into_os_string();
                    return CString::new(path.as_bytes()).at(Step::Spec, || "the program's path");
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => refused = error,
            }
        }
        Err(self.not_run(refused))
    }

    fn not_run(&self, error: Errno) -> Error {
        let name = &self.name;
        match error {
            Errno::NOENT | Errno::NOTDIR => {
                // In words that podman and others look for.
                let why = if name.contains('/') {
                    "no such file or directory"
                } else {
                    "executable file not found in PATH"
                };
                Error::new(Step::Missing, format!("{name}: {why}"))
            }
            error => Error::new(Step::Exec, format!("{name} cannot be run: {error}")),
        }
    }

    /// Becomes it. Returns only if that fails. With a springboard that is what
    /// it becomes first.
    pub fn become_it(&self, path: &CString, springboard: Option<&OwnedFd>) -> Error {
        let pointers = |strings: &[CString]| {
            let mut pointers: Vec<_> = strings.iter().map(|one| one.as_ptr()).collect();
            pointers.push(ptr::null());
            pointers
        };
        let (mut arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let error = match springboard {
            None => sys::execve(path, &arguments, &environment),
            Some(springboard) => {
                arguments.insert(0, path.as_ptr());
                let error = sys::exec_handle(springboard, &arguments, &environment);
                let text = format!("leaving the maker's program: {error}");
                return Error::new(Step::Init, text);
            }
        };
        not_become(&self.name, error)
    }
}

/// What kept a program from being run that is there.
pub fn not_become(name: &str, error: Errno) -> Error {
    match error {
        // What is not there is what its first line, or its header, asks for.
        Errno::NOENT => Error::new(
            Step::Missing,
            format!("{name}: its interpreter is not there"),
        ),
        error => Error::new(Step::Exec, format!("{name} cannot be run: {error}")),
    }
}

/// Whether there is a program that may be run.
fn check(path: &Path) -> Result<(), Errno> {
    let found = stat(path)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // A filter of system calls that is older than this one (Linux 5.8).
        Err(Errno::PERM | Errno::NOSYS) => accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()),
        result => result,
    }
}

/// The home of a user, as the container's `/etc/passwd` says (passwd(5)).
fn home(root: InRoot<'_>, uid: u32) -> Option<String> {
    // Not what would be waited for, as a pipe would.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(Path::new("/etc/passwd"), flags).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(USERS)
        .read_to_end(&mut text)
        .ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(text: &str, uid: u32) -> Option<String> {
    let line = text.lines().find(|line| {
        let id = line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
        id == Some(uid)
    })?;
    let home = line.split(':').nth(5).filter(|home| !home.is_empty())?;
    Some(home.to_owned())
}

/// Opens the root of this process.
pub fn own_root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/", flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:7:7::/home/u:\nn:x:8:8:::\n";
        assert_eq!(home_in(text, 7).as_deref(), Some("/home/u"));
        assert_eq!(home_in(text, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(text, 8), None);
        assert_eq!(home_in(text, 9), None);
    }

    #[test]
    fn programs_are_checked() {
        assert_eq!(check(Path::new("/bin/sh")), Ok(()));
        assert_eq!(check(Path::new("/")), Err(Errno::ISDIR));
        assert_eq!(check(Path::new("/etc/hostname/x")), Err(Errno::NOTDIR));
        assert_eq!(check(Path::new("/nowhere")), Err(Errno::NOENT));
    }
}
