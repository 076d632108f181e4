//! Writes every target's seed inputs below a directory, as corpora for
//! `cargo fuzz`.

use std::path::Path;

use croft_fuzz_targets::corpus::TARGETS;

fn main() -> std::io::Result<()> {
    let root = std::env::args().nth(1).unwrap_or("fuzz/corpus".to_owned());
    for target in TARGETS {
        let folder = Path::new(&root).join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}
