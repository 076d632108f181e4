//! Random code of many instructions, by the interpreter and as translated
//! code, in lockstep.

use std::env;

use croft_difftest::blocks::Blocks;
use croft_engine_software::SoftwareEngine;

fn number(name: &str, usual: u64) -> u64 {
    let text = env::var(name).unwrap_or_default();
    text.parse().unwrap_or(usual)
}

/// `CROFT_BLOCKS` says how many are compared at least, `CROFT_BLOCKS_FIRST` at
/// which batch to begin.
#[test]
fn random_blocks_agree() {
    let engine = SoftwareEngine::lockstep();
    let counts = engine.lockstep_counts().unwrap();
    let wanted = number("CROFT_BLOCKS", 60_000);
    let mut blocks = Blocks::new(&engine, number("CROFT_DIFF_SEED", 1)).unwrap();
    let mut batches = number("CROFT_BLOCKS_FIRST", 0);
    blocks.skip(batches);
    let mut circling = 0;
    while counts.blocks() - circling < wanted {
        let before = counts.blocks();
        match blocks.batch() {
            Ok(circles) if circles.is_empty() => {}
            Ok(circles) => {
                println!("batch {batches}: in circles: {circles:x?}");
                // The same few, again and again.
                circling += counts.blocks() - before;
            }
            Err(error) => panic!("batch {batches}: {error}"),
        }
        batches += 1;
        if batches.is_multiple_of(1000) {
            println!("{batches} batches, {circling} blocks of them in circles; {counts}");
        }
    }
    println!("{batches} batches, {circling} blocks of them in circles; {counts}");
    // Nothing else touches the guest's memory.
    assert_eq!(counts.disturbed(), 0);
}
