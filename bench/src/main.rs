//! `croft-bench`: Croft beside its peers.
//!
//! A case has contestants, Croft first, that take turns: A B C A B C …, so
//! that what else the host does meets all of them alike. Nothing is judged
//! here: the figures go to standard output and to `docs/benchmarks.md`, as
//! they are. `make bench` runs it.

mod boot;
mod case;
mod containers;
mod containers_system;
mod files;
mod fio;
mod idle;
mod kvm;
mod lines;
mod net;
mod page;
mod place;
mod server;
mod systems;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::case::Case;
use crate::files::Files;

#[derive(Debug, Parser)]
struct Args {
    /// How often each contestant runs in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only this case: boot, lines, systemd, fio, idle, server, memory, many,
    /// net-user, net-bridge, net-kvm, container-run, container-exec,
    /// container-many, container-system, kvm, server-kvm, or a word of its title; the page stays as it is
    #[arg(long)]
    only: Option<String>,
    /// Only lines with this in their names, in the case of that name
    #[arg(long, default_value = "")]
    line: String,
    /// A further argument for `croft run` on the software engine; again for
    /// another
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    croft_arg: Vec<String>,
    /// The page that gets the tables
    #[arg(long, default_value_os_t = page::default())]
    page: PathBuf,
    /// Print runs and no tables, as a nested machine is asked to
    #[arg(long, hide = true)]
    raw: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let files = Files::new(args.croft_arg.clone());
    let load = page::load();
    let mut tables = Vec::new();
    for case in cases(&files, &args.line) {
        let wanted = args
            .only
            .as_ref()
            .is_none_or(|word| case.key == word || case.title.contains(word));
        if !wanted {
            continue;
        }
        if args.raw {
            print!("{}", place::report(&case.run(args.runs)));
            continue;
        }
        let (results, place) = place::run(&case, args.runs);
        let table = table::render(&case, place, &results);
        println!("{table}");
        tables.push(table);
    }
    if args.only.is_some() || args.raw {
        return ExitCode::SUCCESS;
    }
    match page::update(&args.page, &command(&args), &load, &tables) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.page.display());
            ExitCode::FAILURE
        }
    }
}

/// What to type for the same.
fn command(args: &Args) -> String {
    let mut words = Vec::new();
    if args.runs != 5 {
        words.push(format!("--runs {}", args.runs));
    }
    if !args.line.is_empty() {
        words.push(format!("--line {}", args.line));
    }
    words.extend(
        args.croft_arg
            .iter()
            .map(|arg| format!("--croft-arg={arg}")),
    );
    let words = match words.join(" ") {
        words if words.is_empty() => "`make bench`".to_owned(),
        words => format!("`make bench BENCH_ARGS='{words}'`"),
    };
    format!("{words}, {} runs of each in turn", args.runs)
}

/// Everything that is measured, in the order of the page.
fn cases<'a>(files: &'a Files, line: &'a str) -> Vec<Case<'a>> {
    let mut cases = boot::kernels(files);
    cases.push(lines::case(files, line));
    cases.push(boot::debian(files));
    cases.push(fio::case(files));
    cases.push(idle::case(files));
    cases.extend(server::cases(files));
    cases.extend(net::cases(files));
    cases.extend(containers::cases());
    cases.push(containers_system::case());
    cases.push(kvm::case(files));
    cases.push(server::on_kvm(files));
    cases
}
