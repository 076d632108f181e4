//! How `croft` tells a script how a machine, or a command, ended.

use std::process::ExitCode;

/// The table of exit codes in `--help`.
pub const HELP: &str = "\
Exit codes:
  0        the guest powered off
  1        Croft failed: the engine could not go on, a process of Croft was killed
  2        wrong configuration or usage; nothing was started
  3        the guest asked for a reset, under --no-reboot
  4        the guest faulted three times in a row (its registers are on standard error)
  5        left with Ctrl-]; an instance goes on
  6        the machine was saved (croft save)
  128 + N  ended by signal N sent to croft
  With --test-devices a guest that writes V to the debug-exit port ends
  croft with (V * 2 + 1) modulo 256, as other machine monitors do.";

/// A way to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    PowerOff,
    /// Croft failed.
    Failed,
    /// Wrong configuration or usage.
    Usage,
    /// A reset under `--no-reboot`.
    Reset,
    /// A triple fault.
    TripleFault,
    /// Left with Ctrl-].
    Left,
    /// Saved by `croft save`.
    Saved,
    /// A signal to croft.
    Signal(u8),
    /// That of a command in the guest.
    Command(u8),
    /// Not done in time.
    Timeout,
    /// The status that the guest asked for at the debug-exit port.
    Debug(u32),
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::PowerOff => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Reset => 3,
            Exit::TripleFault => 4,
            Exit::Left => 5,
            Exit::Saved => 6,
            Exit::Command(code) => code,
            Exit::Timeout => 124,
            Exit::Signal(number) => number.wrapping_add(128),
            Exit::Debug(status) => {
                let [low, ..] = status.to_le_bytes();
                low
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(Exit::Signal(15).code(), 143);
        assert_eq!(Exit::Debug(33).code(), 33);
        assert_eq!(Exit::Debug(0xffff_ff01).code(), 1);
    }
}
