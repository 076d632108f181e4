//! `croft`: the command.

mod args;
mod doctor;
mod error;
mod exit;
mod image;
mod run;
mod save;
mod say;
mod size;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Args, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return error::explain(&error).into(),
    };
    match args.command {
        Command::Run(options) => run::run(*options).into(),
        Command::Restore(options) => run::restore(*options).into(),
        Command::Save(options) => save::run(&options).into(),
        Command::Image(command) => image::run(command).into(),
        Command::Doctor(options) => doctor::run(&options).into(),
        Command::Completion { shell } => {
            // Into memory first: the generator panics on a closed pipe.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "croft", &mut script);
            print(&script).into()
        }
        Command::Version => {
            print(concat!("croft ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()).into()
        }
    }
}

fn print(bytes: &[u8]) -> Exit {
    match io::Write::write_all(&mut io::stdout(), bytes) {
        Ok(()) => Exit::PowerOff,
        Err(error) => {
            say::line(&format!("croft: cannot write to standard output: {error}"));
            Exit::Failed
        }
    }
}
