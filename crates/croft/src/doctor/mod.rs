//! `croft doctor`: what is there, what is missing, what to do.
//!
//! It changes nothing. An engine is all that machines need, and the kernel has
//! what containers need, or not; everything else is said so that its absence is no surprise later.

mod cgroups;
mod containers;
mod engines;
mod finding;
mod jail;
mod namespaces;
mod networks;
mod tools;

use std::fmt::Write;

use croft_api::EngineReport;
use serde::Serialize;

use self::finding::{Finding, Part, State};
use crate::args::doctor::DoctorOptions;
use crate::args::machine::Engine;
use crate::args::output::OutputFormat;
use crate::exit::Exit;
use crate::{print, say};

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// The engine that `--engine auto` takes, if there is one.
    engine: Option<String>,
    findings: Vec<Finding>,
}

/// Examines this host. Success if the engine asked for can run machines.
pub fn run(options: &DoctorOptions) -> Exit {
    let (engines, mut findings) = match engines::ask() {
        Ok(engines) => {
            let findings = engines::findings(&engines);
            (engines, findings)
        }
        Err(error) => (
            vec![],
            vec![Finding {
                state: State::Missing,
                ..Finding::ok(Part::Engines, "croft-vmm", error)
            }],
        ),
    };
    findings.extend(cgroups::findings());
    findings.extend(namespaces::findings());
    findings.extend(containers::findings(&findings));
    findings.extend(jail::findings());
    findings.extend(networks::findings());
    findings.extend(tools::findings());
    let report = Report {
        engine: best(&engines).map(str::to_owned),
        findings,
    };
    let text = match options.output {
        OutputFormat::Table => table(&report),
        OutputFormat::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => {
                say::line(&format!("croft: cannot write JSON: {error}"));
                return Exit::Failed;
            }
        },
    };
    match print(text.as_bytes()) {
        Exit::PowerOff if !is_fit(&engines, options.engine) => Exit::Failed,
        exit => exit,
    }
}

/// The best engine that can run machines here.
fn best(engines: &[EngineReport]) -> Option<&str> {
    let mut fit = engines.iter().filter(|engine| engine.fit);
    fit.next().map(|engine| engine.engine.as_str())
}

fn is_fit(engines: &[EngineReport], wanted: Engine) -> bool {
    let name = match wanted {
        Engine::Auto => return best(engines).is_some(),
        Engine::Software => "software",
        Engine::Kvm => "kvm",
    };
    engines
        .iter()
        .any(|engine| engine.engine == name && engine.fit)
}

fn table(report: &Report) -> String {
    let width = |len: fn(&Finding) -> usize| report.findings.iter().map(len).max().unwrap_or(0);
    let name = width(|finding| finding.name.len());
    let state = width(|finding| finding.state.word().len());
    let mut text = String::new();
    let mut part = None;
    for finding in &report.findings {
        if part != Some(finding.part) {
            part = Some(finding.part);
            let _ = writeln!(text, "{}", finding.part.title());
        }
        let word = finding.state.word();
        let _ = writeln!(
            text,
            "  {:name$}  {word:state$}  {}",
            finding.name, finding.text
        );
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "  {:name$}  {:state$}  -> {remedy}", "", "");
        }
    }
    let verdict = match &report.engine {
        Some(engine) => format!("machines can run here; --engine auto takes {engine}"),
        None => "machines cannot run here: no engine is usable".to_owned(),
    };
    let _ = writeln!(text, "\n{verdict}");
    let containers = if containers::can_run(&report.findings) {
        "containers can run here"
    } else {
        "containers cannot run here: something of theirs is missing, see above"
    };
    let _ = writeln!(text, "{containers}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(name: &str, fit: bool) -> EngineReport {
        EngineReport {
            engine: name.to_owned(),
            fit,
            text: format!("says {name}"),
        }
    }

    #[test]
    fn an_engine_is_all_it_takes() {
        let engines = [engine("kvm", false), engine("software", true)];
        assert_eq!(best(&engines), Some("software"));
        assert!(is_fit(&engines, Engine::Auto));
        assert!(is_fit(&engines, Engine::Software));
        assert!(!is_fit(&engines, Engine::Kvm));
        assert!(!is_fit(&[], Engine::Auto));
    }

    #[test]
    fn the_table_has_everything() {
        let mut findings = engines::findings(&[engine("kvm", false), engine("software", true)]);
        findings.push(Finding::missing(
            Part::Tools,
            "criu",
            "for moves",
            "install it",
        ));
        let text = table(&Report {
            engine: Some("software".to_owned()),
            findings,
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "engines",
                "  kvm       missing  says kvm",
                "  software  ok       says software",
                "tools",
                "  criu      missing  for moves",
                "                     -> install it",
                "",
                "machines can run here; --engine auto takes software",
                "containers can run here",
            ]
        );
    }
}
