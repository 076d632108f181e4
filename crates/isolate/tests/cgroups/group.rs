//! A group of its own for each test.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use croft_isolate::cgroups::{Controllers, Group, Hierarchies};
use oci_spec::runtime::LinuxResources;

/// A group that is removed at the test's end, whatever that is.
pub struct Temporary {
    pub group: Group,
    pub path: PathBuf,
}

impl Temporary {
    /// `None` where the test cannot be: it says why.
    pub fn new(name: &str, wanted: Controllers) -> Option<Self> {
        let hierarchies = Hierarchies::find().unwrap();
        // A group of its own above it: nothing of it is shared.
        let path = PathBuf::from(format!("croft-test-{}-{name}/inner", std::process::id()));
        let group = Group::create(&hierarchies, &path, wanted).unwrap();
        let temporary = Temporary { group, path };
        let missing = wanted.difference(temporary.group.controllers());
        if !missing.is_empty() {
            eprintln!("skipped: no control groups with {missing} for this user");
            return None;
        }
        Some(temporary)
    }

    pub fn read(&self, controller: Controllers, files: [&str; 2]) -> String {
        let directory = self.group.path_of(controller).unwrap();
        let read = |file| std::fs::read_to_string(directory.join(file));
        let text = read(files[0]).or_else(|_| read(files[1])).unwrap();
        text.trim().to_owned()
    }

    /// Starts a command in the group.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let entry = self.group.entry().unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: entering allocates nothing and calls system calls only.
        unsafe {
            command.pre_exec(move || {
                entry.enter()?;
                Ok(entry.enter_unified()?)
            });
        }
        command.spawn().unwrap()
    }

    pub fn apply(&self, resources: &LinuxResources) {
        assert_eq!(self.group.apply(resources).unwrap(), []);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = self.group.kill();
        let hierarchies = Hierarchies::find().unwrap();
        let outer = Group::open(&hierarchies, self.path.parent().unwrap()).unwrap();
        let deleted = outer.delete();
        if !std::thread::panicking() {
            deleted.unwrap();
        }
    }
}
