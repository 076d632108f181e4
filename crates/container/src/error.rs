//! What goes wrong before a container's program runs.

use std::fmt;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Checking the description.
    Spec,
    /// Making or joining namespaces.
    Namespaces,
    /// Mapping ids.
    Ids,
    /// Joining control groups.
    Groups,
    /// Mounting the root and what is in it.
    Mounts,
    /// Making devices.
    Devices,
    /// Setting what the kernel can be set to.
    Settings,
    /// Giving it its terminal.
    Terminal,
    /// Running a hook.
    Hooks,
    /// Taking rights away.
    Rights,
    /// Putting on the filter of system calls.
    Filter,
    /// Going to its working directory.
    Directory,
    /// Finding its program: there is none of the name.
    Missing,
    /// Running its program, which is there.
    Exec,
    /// Talking to its init, which ended.
    Init,
}

impl Step {
    /// All of them, in an order that never changes while a container is made.
    const ALL: [Step; 15] = [
        Step::Spec,
        Step::Namespaces,
        Step::Ids,
        Step::Groups,
        Step::Mounts,
        Step::Devices,
        Step::Settings,
        Step::Terminal,
        Step::Hooks,
        Step::Rights,
        Step::Filter,
        Step::Directory,
        Step::Missing,
        Step::Exec,
        Step::Init,
    ];

    /// As one byte of a message.
    pub(crate) fn to_byte(self) -> u8 {
        self as u8
    }

    /// Of one byte of a message.
    pub(crate) fn from_byte(byte: u8) -> Self {
        let known = Self::ALL.get(usize::from(byte)).copied();
        known.unwrap_or(Step::Init)
    }
}

/// Why a container, or a program in one, did not come to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was being done.
    pub step: Step,
    /// What failed, on what, and why.
    pub message: String,
}

impl Error {
    /// With a message.
    pub fn new(step: Step, message: impl Into<String>) -> Self {
        let message = message.into();
        Error { step, message }
    }

    /// The exit code that docker and podman give to it: 127 for a program that
    /// is not there, 126 for one that cannot be run, else 125.
    pub fn exit_code(&self) -> u8 {
        match self.step {
            Step::Missing => 127,
            Step::Exec => 126,
            _ => 125,
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// Gives failures of the system their step and what they are about.
pub(crate) trait At<T> {
    /// With the step and what was being done.
    fn at<W: fmt::Display>(self, step: Step, what: impl FnOnce() -> W) -> Result<T, Error>;
}

impl<T, E: fmt::Display> At<T> for Result<T, E> {
    fn at<W: fmt::Display>(self, step: Step, what: impl FnOnce() -> W) -> Result<T, Error> {
        self.map_err(|error| Error::new(step, format!("{}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_the_way_through_a_message() {
        for step in Step::ALL {
            assert_eq!(Step::from_byte(step.to_byte()), step);
        }
        assert_eq!(Step::from_byte(200), Step::Init);
    }

    #[test]
    fn exit_codes_are_docker_s() {
        let code = |step| Error::new(step, "x").exit_code();
        assert_eq!(
            [code(Step::Missing), code(Step::Exec), code(Step::Mounts)],
            [127, 126, 125]
        );
    }
}
