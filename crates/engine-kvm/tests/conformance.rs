//! The conformance guests on this host's KVM. Where it only emulates (PVM),
//! those that do without the instructions it lacks. `CROFT_GUEST` picks the
//! guests whose name contains it.

mod common;
#[path = "common/tcg.rs"]
mod tcg;

use croft_conformance::{Need, run_where};
use croft_engine::Engine;

/// What a KVM that emulates is known to do wrong, whoever asks it.
const EMULATION_LACKS: [(&str, &str); 10] = [
    (
        "features::cpuid_is_the_profile",
        "CPUID shows bits of the host",
    ),
    (
        "features::paused_clock_stands_still",
        "RDTSC shows the host's",
    ),
    ("features::time_stamp_counter", "RDTSC shows the host's"),
    (
        "modes::every_mode_and_back",
        "no PAE paging outside 64-bit mode",
    ),
    ("paging::large_pages", "no pages of 1 GiB"),
    ("seam::breakpoint_and_going_on", "RFLAGS.RF has no effect"),
    ("seam::data_breakpoint", "no data breakpoints"),
    ("seam::saved_in_the_middle", "no x87 instructions"),
    ("segments::accessed_bit", "no LSL"),
    ("segments::task_switch", "no far jumps to tasks"),
];

#[test]
fn guests_run_alike_on_kvm() {
    let Some(engine) = common::engine() else {
        return;
    };
    let emulates = common::is_emulating(&engine.probe());
    let lacking: &[Need] = if emulates {
        &[Need::Iret, Need::Int3, Need::Vector]
    } else {
        &[]
    };
    let filter = std::env::var("CROFT_GUEST").unwrap_or_default();
    let (known, ends): (&[_], &[_]) = match (emulates, croft_conformance::host::is_tcg()) {
        (true, _) => (&EMULATION_LACKS, &[]),
        (false, true) => (tcg::LACKS, tcg::ENDS),
        (false, false) => (&[], &[]),
    };
    let mut report = run_where(&engine, &filter, |guest| {
        guest.avoids(lacking) && !ends.iter().any(|(name, _)| *name == guest.name)
    });
    let ran = report.passed.len() + report.failed.len();
    report.failed.retain(|(guest, failure)| {
        let known = known.iter().find(|(name, _)| name == guest);
        if let Some((name, why)) = known {
            println!("{name}: not counted, as this processor is emulated ({why}): {failure}");
        }
        known.is_none()
    });
    let excused = ran - report.passed.len() - report.failed.len();
    for (name, failure) in &report.failed {
        println!("{name}: {failure}");
    }
    println!(
        "{} guests passed, {excused} failed as the emulator is known to, {} left out: {}",
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
