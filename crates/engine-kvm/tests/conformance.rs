//! The conformance guests on this host's KVM. Where it only emulates (PVM),
//! those that do without the instructions it lacks. `CROFT_GUEST` picks the
//! guests whose name contains it.

mod common;

use croft_conformance::{Need, run_all};
use croft_engine::Engine;

#[test]
fn guests_run_alike_on_kvm() {
    let Some(engine) = common::engine() else {
        return;
    };
    let lacking: &[Need] = if common::is_emulating(&engine.probe()) {
        &[Need::Iret, Need::Int3, Need::Vector]
    } else {
        &[]
    };
    let filter = std::env::var("CROFT_GUEST").unwrap_or_default();
    let report = run_all(&engine, &filter, lacking);
    for (name, failure) in &report.failed {
        println!("{name}: {failure}");
    }
    println!(
        "{} guests passed, {} left out: {}",
        report.passed.len(),
        report.skipped.len(),
        report.skipped.join(" ")
    );
    assert!(
        report.failed.is_empty(),
        "{} guests failed",
        report.failed.len()
    );
}
