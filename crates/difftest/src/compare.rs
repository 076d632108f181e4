//! What must be equal after a test, and what need not.
//!
//! Not compared, each for a reason:
//!
//! - flags that the manual leaves undefined ([`undefined_flags`]), when the
//!   instruction completes or divides by zero;
//! - C0–C3 of the x87 status word where they are undefined;
//! - XSAVE's own header and the MXCSR mask, which are no state.

use std::fmt::Write;

use iced_x86::{FastFormatter, Instruction, RflagsBits};

use crate::state::{Input, Output};

/// Names of [`Input::regs`].
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// iced's flag names, RFLAGS bits and x87 status word bits.
const FLAGS: [(u32, &str, u64, u16); 11] = [
    (RflagsBits::CF, "CF", 1 << 0, 0),
    (RflagsBits::PF, "PF", 1 << 2, 0),
    (RflagsBits::AF, "AF", 1 << 4, 0),
    (RflagsBits::ZF, "ZF", 1 << 6, 0),
    (RflagsBits::SF, "SF", 1 << 7, 0),
    (RflagsBits::DF, "DF", 1 << 10, 0),
    (RflagsBits::OF, "OF", 1 << 11, 0),
    (RflagsBits::C0, "C0", 0, 1 << 8),
    (RflagsBits::C1, "C1", 0, 1 << 9),
    (RflagsBits::C2, "C2", 0, 1 << 10),
    (RflagsBits::C3, "C3", 0, 1 << 14),
];
/// Exceptions after which flags are those of a completed or undefined
/// operation: #DE, #DB, #BP.
const COMPLETED: [u8; 3] = [0, 1, 3];

/// Flags that `insn` leaves undefined: RFLAGS bits, x87 status bits, names.
pub fn undefined_flags(insn: &Instruction) -> (u64, u16, Vec<&'static str>) {
    let undefined = insn.rflags_undefined();
    let mut found = (0, 0, Vec::new());
    for (bit, name, rflags, status) in FLAGS {
        if undefined & bit != 0 {
            found.0 |= rflags;
            found.1 |= status;
            found.2.push(name);
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    // Most significant first.
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Lines naming each difference; none when the two agree.
pub fn differences(insn: &Instruction, host: &Output, guest: &Output) -> Vec<String> {
    let mut lines = Vec::new();
    let mut differ = |name: &str, host: u64, guest: u64| {
        if host != guest {
            lines.push(format!("{name}: host {host:#x}, engine {guest:#x}"));
        }
    };
    differ("vector", host.end.vector.into(), guest.end.vector.into());
    differ("error code", host.end.error.into(), guest.end.error.into());
    differ("cr2", host.end.cr2, guest.end.cr2);
    for (n, name) in NAMES.iter().enumerate() {
        differ(name, host.regs[n], guest.regs[n]);
    }
    differ("rip", host.rip, guest.rip);
    let (rflags, status, _) = if COMPLETED.contains(&host.end.vector) {
        undefined_flags(insn)
    } else {
        (0, 0, Vec::new())
    };
    differ("rflags", host.rflags & !rflags, guest.rflags & !rflags);
    differ("gs base", host.gs_base, guest.gs_base);
    let (host, guest) = (host.xsave.normal(), guest.xsave.normal());
    if host.0 == guest.0 {
        return lines;
    }
    differ("fcw", host.fcw().into(), guest.fcw().into());
    differ(
        "fsw",
        (host.fsw() & !status).into(),
        (guest.fsw() & !status).into(),
    );
    differ("ftw", host.ftw().into(), guest.ftw().into());
    differ("fop", host.fop().into(), guest.fop().into());
    differ("fip", host.fip(), guest.fip());
    differ("fdp", host.fdp(), guest.fdp());
    differ("mxcsr", host.mxcsr().into(), guest.mxcsr().into());
    let mut vectors = |name: String, host: &[u8], guest: &[u8]| {
        if host != guest {
            lines.push(format!("{name}: host {}, engine {}", hex(host), hex(guest)));
        }
    };
    for n in 0..8 {
        vectors(format!("st{n}"), host.st(n), guest.st(n));
        vectors(
            format!("beside st{n}"),
            host.st_padding(n),
            guest.st_padding(n),
        );
    }
    for n in 0..16 {
        vectors(format!("ymm{n}"), &host.ymm(n), &guest.ymm(n));
    }
    lines
}

/// A test as text, complete enough to be done again.
pub fn describe(insn: &Instruction, input: &Input) -> String {
    let mut text = String::new();
    FastFormatter::new().format(insn, &mut text);
    let bytes: Vec<String> = input.code.iter().map(|b| format!("{b:02x}")).collect();
    let mut out = format!(
        "  {:?} at {:#x}: {text}  [{}]\n  rflags={:#x} fcw={:#x} fsw={:#x} ftw={:#x} mxcsr={:#x}\n",
        insn.code(),
        input.rip,
        bytes.join(" "),
        input.rflags,
        input.xsave.fcw(),
        input.xsave.fsw(),
        input.xsave.ftw(),
        input.xsave.mxcsr(),
    );
    for (n, name) in NAMES.iter().enumerate() {
        let end = if n % 4 == 3 { '\n' } else { ' ' };
        let lead = if n % 4 == 0 { "  " } else { "" };
        let _ = write!(out, "{lead}{name}={:#x}{end}", input.regs[n]);
    }
    for n in 0..8 {
        let _ = writeln!(out, "  st{n}={}", hex(input.xsave.st(n)));
    }
    for n in 0..16 {
        let _ = writeln!(out, "  ymm{n}={}", hex(&input.xsave.ymm(n)));
    }
    for (address, bytes) in &input.memory {
        let shown = &bytes[..bytes.len().min(64)];
        let _ = writeln!(out, "  [{address:#x}] = {shown:02x?}");
    }
    out
}
