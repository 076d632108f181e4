//! A difference, for people.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, FastFormatter};

use super::Outcome;
use super::snapshot::Snapshot;
use crate::block::Block;
use crate::cpu::Cpu;
use crate::word::Word;

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
    let len = block
        .ops
        .last()
        .map_or(0, |op| u64::from(op.off) + u64::from(op.len));
    let len = len.min(0x1000 - (block.gpa & 0xFFF)) as usize;
    let guest: Vec<u8> = match cpu.shared.host(block.gpa) {
        Some(host) => (0..len)
            .map(|n| {
                // SAFETY: the block's bytes lie in one page of guest RAM.
                unsafe { u8::load(host.add(n)) }
            })
            .collect(),
        None => Vec::new(),
    };
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
