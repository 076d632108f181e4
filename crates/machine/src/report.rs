//! A vCPU's registers as text.

use std::fmt::Write;

use croft_engine::CpuState;
use croft_engine::state::{SegmentState, TableState};

const REGISTERS: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12",
    "R13", "R14", "R15",
];
const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];

type Bits = &'static [(u32, &'static str)];

// Intel SDM vol. 1, 3.4.3 "EFLAGS Register".
const RFLAGS: Bits = &[
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (21, "ID"),
];
// Intel SDM vol. 3, 2.5 "Control Registers".
const CR0: Bits = &[
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];
const CR4: Bits = &[
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
];
// Intel SDM vol. 3, 2.2.1 "Extended Feature Enable Register".
const EFER: Bits = &[(0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE")];
const MSR_EFER: u32 = 0xC000_0080;

/// The registers that tell what a guest was doing, a few to a line.
pub fn registers(state: &CpuState) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, state);
    text
}

fn write_all(text: &mut String, state: &CpuState) -> std::fmt::Result {
    let efer = state.msrs.iter().find(|msr| msr.index == MSR_EFER);
    let efer = efer.map_or(0, |msr| msr.value);
    for row in 0..4 {
        for column in 0..4 {
            let register = row * 4 + column;
            let (name, value) = (REGISTERS[register], state.registers[register]);
            let end = if column == 3 { "\n" } else { "  " };
            write!(text, "{name} {value:016x}{end}")?;
        }
    }
    writeln!(
        text,
        "RIP {:016x}  RFLAGS {:08x}{}  CPL {}  {:?}",
        state.rip,
        state.rflags,
        names(state.rflags, RFLAGS),
        state.segments[2].attributes >> 5 & 3,
        state.mp_state,
    )?;
    for (name, segment) in SEGMENTS.iter().zip(&state.segments) {
        write_segment(text, name, segment)?;
    }
    write_segment(text, "TR", &state.tr)?;
    write_segment(text, "LDT", &state.ldtr)?;
    write_table(text, "GDT", &state.gdtr)?;
    write_table(text, "IDT", &state.idtr)?;
    writeln!(text, "CR0 {:08x}{}", state.cr0, names(state.cr0, CR0))?;
    writeln!(text, "CR4 {:08x}{}", state.cr4, names(state.cr4, CR4))?;
    writeln!(
        text,
        "CR2 {:016x}  CR3 {:016x}  CR8 {:x}",
        state.cr2, state.cr3, state.cr8
    )?;
    write!(text, "EFER {efer:x}{}", names(efer, EFER))?;
    if let Some((vector, code)) = state.events.exception {
        write!(text, "  delivering exception {vector}")?;
        if let Some(code) = code {
            write!(text, " with error code {code:#x}")?;
        }
    }
    Ok(())
}

/// ` [A B]` for the bits that are set.
fn names(value: u64, bits: Bits) -> String {
    let set: Vec<&str> = bits
        .iter()
        .filter(|(bit, _)| value >> bit & 1 != 0)
        .map(|(_, name)| *name)
        .collect();
    format!(" [{}]", set.join(" "))
}

fn write_segment(text: &mut String, name: &str, segment: &SegmentState) -> std::fmt::Result {
    writeln!(
        text,
        "{name:<3} {:04x}  base {:016x}  limit {:08x}  rights {:05x}",
        segment.selector, segment.base, segment.limit, segment.attributes
    )
}

fn write_table(text: &mut String, name: &str, table: &TableState) -> std::fmt::Result {
    writeln!(
        text,
        "{name}       base {:016x}  limit {:04x}",
        table.base, table.limit
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_engine::state::MsrState;

    #[test]
    fn a_report_decodes_what_matters() {
        let mut state = CpuState {
            rip: 0xFFFF_FFFF_8100_0000,
            rflags: 0x246,
            cr0: 0x8000_0011,
            ..CpuState::default()
        };
        state.registers[3] = 0x1234;
        state.msrs = vec![MsrState {
            index: MSR_EFER,
            value: 0xD01,
        }];
        let text = registers(&state);
        for part in [
            "RBX 0000000000001234",
            "RIP ffffffff81000000",
            "RFLAGS 00000246 [PF ZF IF]",
            "CR0 80000011 [PE PG]",
            "EFER d01 [SCE LME LMA NXE]",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
