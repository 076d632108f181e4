//! The jail of machines, as one that was put on tells.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};

use croft_api::{jail::ARGUMENT, programs};
use croft_isolate::{ControlGroup, Launch, Limits, Part as JailPart, Piece};
use rustix::pipe::{PipeFlags, pipe_with};

use super::finding::{Finding, Part, State};

/// Name of the program.
const PROGRAM: &str = "croft-vmm";
/// What a machine of this command would be allowed at least.
const LIMITS: Limits = Limits {
    memory: 512 << 20,
    tasks: 128,
    processors: 1,
};

/// Puts a `croft-vmm` that ends at once into its jail.
pub fn findings() -> Vec<Finding> {
    let (group, limits) = ControlGroup::create("doctor", &LIMITS);
    match ask(group.as_ref()) {
        Ok(parts) => parts.iter().chain([&limits]).map(finding).collect(),
        Err(error) => vec![Finding {
            state: State::Missing,
            ..Finding::ok(Part::Jail, PROGRAM, error)
        }],
    }
}

fn ask(group: Option<&ControlGroup>) -> Result<Vec<JailPart>, String> {
    let program = programs::find(PROGRAM)?;
    let failed = |error: io::Error| format!("cannot try: {error}");
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null");
    let (output, far_output) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let launch = Launch {
        program,
        arguments: vec![ARGUMENT.into()],
        environment: Vec::new(),
        descriptors: [
            null().map_err(failed)?.into(),
            far_output,
            null().map_err(failed)?.into(),
        ],
        jail: true,
        keeps_ids: false,
    };
    let mut child = launch
        .start(group)
        .map_err(|error| format!("cannot start {PROGRAM}: {error}"))?;
    let mut text = Vec::new();
    File::from(output).read_to_end(&mut text).map_err(failed)?;
    let ended = child.wait(None).map_err(failed)?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("{PROGRAM} did not get into its jail ({ended:?}, {error})"))
}

fn finding(part: &JailPart) -> Finding {
    let name = part.piece.word();
    match &part.state {
        Ok(text) => Finding::ok(Part::Jail, name, text.clone()),
        Err(why) => Finding::missing(Part::Jail, name, why.clone(), remedy(part.piece)),
    }
}

/// What to do about a missing piece.
fn remedy(piece: Piece) -> &'static str {
    match piece {
        Piece::User | Piece::Root | Piece::Processes | Piece::Network | Piece::Names => {
            "let this user make namespaces (above); machines run without meanwhile"
        }
        Piece::Landlock => "boot with landlock among the security modules (lsm=)",
        Piece::Filters => "use a kernel with CONFIG_SECCOMP_FILTER; machines do not run without",
        Piece::Capabilities | Piece::Limits => {
            "a container runtime's or security module's policy refuses; allow it there"
        }
        Piece::ControlGroup => {
            "run as root, or in a group of your own: systemd-run --user --scope -p Delegate=yes"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pieces_come_with_a_remedy() {
        let there = finding(&JailPart::there(Piece::Root, "empty"));
        assert_eq!((there.name.as_str(), there.state), ("root", State::Ok));
        let missing = finding(&JailPart::missing(Piece::Landlock, "none"));
        assert_eq!(missing.state, State::Missing);
        assert!(missing.remedy.is_some_and(|text| text.contains("lsm=")));
    }
}
