//! The conformance guests on this host's KVM, but for those that need what no
//! KVM has (`src/lib.rs`, "What differs"). Where it only emulates (PVM), those
//! that do without the instructions it lacks. `CROFT_GUEST` picks the guests
//! whose name contains it.

mod common;
#[path = "common/tcg.rs"]
mod tcg;

use std::arch::x86_64::__cpuid;

use croft_conformance::{Need, run_where};
use croft_engine::Engine;

/// What no KVM has.
const NEVER: &[Need] = &[
    Need::PortBreakpoints,
    Need::ApicReservedBits,
    Need::HiddenSteps,
];
/// What it does not have on AMD's processors either.
const NOT_ON_AMD: &[Need] = &[Need::PaePointers, Need::TripleFaultState];
/// What one that emulates (PVM) has not.
const NOT_EMULATED: &[Need] = &[Need::Iret, Need::Int3, Need::Vector];

fn is_amd() -> bool {
    // "AuthenticAMD" and "HygonGenuine".
    matches!(__cpuid(0).ebx, 0x6874_7541 | 0x6F67_7948)
}

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
    let mut lacking = NEVER.to_vec();
    if is_amd() {
        lacking.extend(NOT_ON_AMD);
    }
    if emulates {
        lacking.extend(NOT_EMULATED);
    }
    let filter = std::env::var("CROFT_GUEST").unwrap_or_default();
    let known: &[_] = match (emulates, croft_conformance::host::is_tcg()) {
        (true, _) => &EMULATION_LACKS,
        (false, true) => tcg::LACKS,
        (false, false) => &[],
    };
    let mut report = run_where(&engine, &filter, |guest| guest.avoids(&lacking));
    for (name, _) in known {
        if report.passed.contains(name) {
            println!("{name} passes, although this processor is emulated: it need not be listed");
        }
    }
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
