//! Running from a file that no container can write to, for what the
//! springboard does not help against.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use oci_spec::runtime::{Capability, LinuxNamespaceType, LinuxSeccompAction, Spec};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::process::geteuid;

use crate::error::At;
use crate::root::mounts::{clone_tree, read_only};
use crate::springboard::{OWN, is_safe, memory};
use crate::{Error, Step, sys};

/// System calls that a springboard makes.
const CALLS: [&str; 3] = ["execveat", "execve", "fcntl"];

/// Whether a container of this description could write to this program in
/// spite of the springboard: because it may look into processes that are not
/// yet its own, or has a filter that the springboard may not get through.
pub fn needs_seal(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let mut list = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    let own = list.any(|one| one.typ() == LinuxNamespaceType::User);
    if own && geteuid().is_root() {
        return false;
    }
    let sets = spec
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().as_ref());
    let bounding = sets.and_then(|sets| sets.bounding().as_ref());
    if bounding.is_some_and(|set| set.contains(&Capability::SysPtrace)) {
        return true;
    }
    let Some(filter) = linux.and_then(|linux| linux.seccomp().as_ref()) else {
        return false;
    };
    let rules = || filter.syscalls().iter().flatten();
    let allow = LinuxSeccompAction::ScmpActAllow;
    let passes = |call: &&str| {
        let mut about = rules().filter(|rule| rule.names().iter().any(|name| name == call));
        match filter.default_action() == allow {
            true => about.next().is_none(),
            false => about.any(|rule| {
                rule.action() == allow && rule.args().as_ref().is_none_or(Vec::is_empty)
            }),
        }
    };
    !CALLS.iter().all(passes)
}

/// Starts this program again as one that cannot be written to. Returns at once
/// if it is that already, or nobody in a container could write to it.
///
/// To be called early: all that was done is done again.
pub fn seal(name: &str) -> Result<(), Error> {
    if is_safe() {
        rename(name);
        return Ok(());
    }
    let what = || "running from a file that cannot be written to";
    let program = match clone_tree(Path::new(OWN), false).and_then(|tree| {
        read_only(&tree)?;
        Ok(tree)
    }) {
        Ok(tree) => tree,
        // Mounts are root's alone.
        Err(_) => copy().at(Step::Init, what)?,
    };
    run(&program).at(Step::Init, what)
}

/// A copy in memory that nothing changes any more.
fn copy() -> io::Result<OwnedFd> {
    let mut memory = File::from(memory()?);
    io::copy(&mut File::open(OWN)?, &mut memory)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&memory, seals)?;
    Ok(memory.into())
}

fn run(program: &OwnedFd) -> io::Result<()> {
    let string = |text: OsString| CString::new(text.as_bytes()).map_err(io::Error::other);
    let arguments: Vec<CString> = env::args_os().map(string).collect::<Result<_, _>>()?;
    let mut environment = Vec::new();
    for (name, value) in env::vars_os() {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        environment.push(string(variable)?);
    }
    let pointers = |strings: &[CString]| {
        let mut all: Vec<_> = strings.iter().map(|one| one.as_ptr()).collect();
        all.push(ptr::null());
        all
    };
    let error = sys::exec_handle(program, &pointers(&arguments), &pointers(&environment));
    Err(error.into())
}

/// The name that others see: run by a handle it is a number.
fn rename(name: &str) {
    if let Ok(name) = CString::new(name) {
        // It is but a name.
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn needs(filter: serde_json::Value, capability: &str, user: bool) -> bool {
        let mut kinds = vec![json!({ "type": "mount" })];
        if user {
            kinds.push(json!({ "type": "user" }));
        }
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "cwd": "/",
                "capabilities": { "bounding": [capability] }
            },
            "linux": { "namespaces": kinds, "seccomp": filter }
        });
        needs_seal(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn filters_and_capabilities_decide() {
        let with = |default: &str, names: &[&str]| {
            json!({
                "defaultAction": default,
                "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }]
            })
        };
        let strict = with("SCMP_ACT_ERRNO", &["execve"]);
        let enough = with("SCMP_ACT_ERRNO", &["execve", "execveat", "fcntl"]);
        let lax = with("SCMP_ACT_ALLOW", &["read"]);
        assert!(needs(strict.clone(), "CAP_KILL", false));
        assert!(!needs(enough.clone(), "CAP_KILL", false));
        assert!(!needs(lax, "CAP_KILL", false));
        assert!(!needs(serde_json::Value::Null, "CAP_KILL", false));
        assert!(needs(enough, "CAP_SYS_PTRACE", false));
        if geteuid().is_root() {
            assert!(!needs(strict, "CAP_SYS_PTRACE", true));
        }
    }
}
