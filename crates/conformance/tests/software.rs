//! Every guest on the software engine. `CROFT_GUEST` picks those whose name
//! contains it.

use croft_conformance::run_all;
use croft_engine_software::SoftwareEngine;

#[test]
fn guests_run_alike_on_the_software_engine() {
    let filter = std::env::var("CROFT_GUEST").unwrap_or_default();
    let report = run_all(&SoftwareEngine::new(), &filter, &[]);
    for (name, failure) in &report.failed {
        println!("{name}: {failure}");
    }
    println!("{} guests passed", report.passed.len());
    assert!(report.skipped.is_empty());
    assert!(
        report.failed.is_empty(),
        "{} guests failed",
        report.failed.len()
    );
}
