//! Engines, as the program that would run them sees them.

use std::process::{Command, Stdio};

use croft_api::engines::ARGUMENT;
use croft_api::{EngineReport, programs};

use super::finding::{Finding, Part, State};

/// Name of the program.
const PROGRAM: &str = "croft-vmm";

/// Asks `croft-vmm`, so that what is said is what a machine would get.
pub fn ask() -> Result<Vec<EngineReport>, String> {
    let program = programs::find(PROGRAM)?;
    let output = Command::new(&program)
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{} ended with {}: {}",
            program.display(),
            output.status,
            said.trim()
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        format!("{PROGRAM} is of another version ({error}); install the parts of one Croft version")
    })
}

/// In the table.
pub fn findings(engines: &[EngineReport]) -> Vec<Finding> {
    engines
        .iter()
        .map(|engine| Finding {
            state: if engine.fit {
                State::Ok
            } else {
                State::Missing
            },
            ..Finding::ok(Part::Engines, &engine.engine, engine.text.clone())
        })
        .collect()
}
