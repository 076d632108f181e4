//! A maker of containers for tests, and what runs inside of them.
//!
//! ```text
//! driver run BUNDLE [--overlay DIR] [--group NAME]
//!            [--exec PROCESS.json]... [--patience SECONDS] [--after FILE]
//! driver inside WORD...
//! driver aside
//! ```
//!
//! `run` makes the container of a bundle, runs it and ends with its exit code;
//! each `--exec` adds a program, whose exit codes are printed, and which may
//! take so long to begin. When they have all ended, the file is made.
//! `inside` is the container's program: its words are questions, and its
//! output the answers.
//! `aside` does work aside.

mod aside;
mod inside;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((word, rest)) if word == "run" => run::run(rest),
        Some((word, rest)) if word == "inside" => inside::answer(rest),
        Some((word, _)) if word == "aside" => {
            aside::check();
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}
