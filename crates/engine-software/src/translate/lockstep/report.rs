//! A difference, for people.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, FastFormatter};

use super::snapshot::Snapshot;
use super::{Outcome, guest_bytes};
use crate::block::Block;
use crate::cpu::Cpu;

/// The interpreter and translated code differ.
pub fn differs(
    cpu: &Cpu,
    block: &Block,
    code: usize,
    before: &Snapshot,
    [interpreted, translated]: [&Outcome; 2],
    differences: &[String],
) -> String {
    let mut text =
        "lockstep: translated code differs from the interpreter, which comes first in:\n"
            .to_owned();
    for difference in differences {
        text += &format!("  {difference}\n");
    }
    text += &format!("before:\n{}\n", before.text());
    text += &format!("interpreter:\n{}\n", interpreted.state.text());
    text += &format!("translated:\n{}\n", translated.state.text());
    text + &both_codes(cpu, block, before.rip(), code)
}

/// Translated code is not of the bytes that stand there now.
pub fn stale(cpu: &Cpu, block: &Block, code: usize) -> String {
    let text = "lockstep: a block was run whose code has been overwritten\n";
    text.to_owned() + &both_codes(cpu, block, cpu.rip(), code)
}

fn both_codes(cpu: &Cpu, block: &Block, rip: u64, code: usize) -> String {
    let guest = guest_bytes(cpu, block);
    let host = cpu.translator.as_ref().map_or(&[][..], |t| t.code_at(code));
    let mut text = format!("guest code at {:#x} physical:\n", block.gpa);
    text += &listing(&guest, rip);
    text += "host code:\n";
    text + &listing(host, code as u64)
}

fn listing(bytes: &[u8], address: u64) -> String {
    let mut text = String::new();
    let mut formatter = FastFormatter::new();
    for insn in &mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE) {
        let _ = write!(text, "  {:x} ", insn.ip());
        formatter.format(&insn, &mut text);
        text.push('\n');
    }
    text
}
