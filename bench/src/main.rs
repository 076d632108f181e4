//! `croft-bench`: Croft beside its peers.
//!
//! A case has contestants, Croft first, that take turns: A B C A B C …, so
//! that what else the host does meets all of them alike. Nothing is judged
//! here: the figures go to standard output and to `docs/benchmarks.md`, as
//! they are. `make bench` runs it.

mod boot;
mod case;
mod idle;
mod page;
mod systems;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::case::Case;
use crate::systems::Files;

#[derive(Debug, Parser)]
struct Args {
    /// How often each contestant runs in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only cases with this in their title; the page stays as it is
    #[arg(long)]
    only: Option<String>,
    /// The page that gets the tables
    #[arg(long, default_value_os_t = page::default())]
    page: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let files = Files::new();
    let load = page::load();
    let mut tables = Vec::new();
    for case in cases(&files) {
        let wanted = args
            .only
            .as_ref()
            .is_none_or(|word| case.title.contains(word));
        if wanted {
            let table = table::render(&case, &case.run(args.runs));
            println!("{table}");
            tables.push(table);
        }
    }
    if args.only.is_some() {
        return ExitCode::SUCCESS;
    }
    match page::update(&args.page, args.runs, &load, &tables) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.page.display());
            ExitCode::FAILURE
        }
    }
}

/// Everything that is measured, in the order of the page.
fn cases(files: &Files) -> Vec<Case<'_>> {
    let mut cases = boot::cases(files);
    cases.push(idle::case(files));
    cases
}
