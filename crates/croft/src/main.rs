//! `croft`: the command.

mod args;
mod describe;
mod doctor;
mod error;
mod exit;
mod image;
mod instance;
mod network;
mod oci;
mod run;
mod save;
mod say;
mod size;
mod table;
mod users;
mod volume;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use clap_complete::env::Shells;

use crate::args::{Args, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    // Before there is a second thread: started by itself, for files of others.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == croft_image::rootless::WORD)
    {
        return ExitCode::from(u8::try_from(croft_image::rootless::serve()).unwrap_or(1));
    }
    // For a shell that asks for completions; not back from it then.
    CompleteEnv::with_factory(Args::command).complete();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if args::container::is_wanted(&arguments) {
        arguments = args::container::rewrite(arguments);
    }
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return error::explain(&error).into(),
    };
    match args.command {
        Command::Run(options) if options.image.is_some() || options.detach => {
            instance::run(&options).into()
        }
        Command::Run(options) => run::run(*options).into(),
        Command::Create(options) => instance::create(&options).into(),
        Command::RunContainer(options) => instance::container::run(&options).into(),
        Command::CreateContainer(options) => instance::container::create(&options).into(),
        Command::Start(options) => instance::start(&options).into(),
        Command::Stop(options) => instance::stop(&options).into(),
        Command::Restart(options) => instance::restart(&options).into(),
        Command::Pause(options) => instance::pause(&options).into(),
        Command::Resume(options) => instance::resume(&options).into(),
        Command::Delete(options) => instance::delete(&options).into(),
        Command::List(options) => instance::list(&options).into(),
        Command::Show(options) => instance::show(&options).into(),
        Command::Logs(options) => instance::logs(&options).into(),
        Command::Console(options) => instance::console(&options).into(),
        Command::Kill(options) => instance::kill(&options).into(),
        Command::Set(options) => instance::container::set(&options).into(),
        Command::Top(options) => instance::container::top(&options).into(),
        Command::Stats(options) => instance::container::stats(&options).into(),
        Command::Attach(options) => instance::container::attach(&options).into(),
        Command::Exec(options) => instance::exec(&options).into(),
        Command::Shell(options) => instance::shell(&options).into(),
        Command::Cp(options) => instance::cp(&options).into(),
        Command::Disk(command) => instance::disk(&command).into(),
        Command::Nic(command) => instance::nic(&command).into(),
        Command::Ssh(options) => instance::ssh(&options).into(),
        Command::Wait(options) => instance::wait(&options).into(),
        Command::Autostart(options) => instance::autostart(&options).into(),
        Command::Restore(options) => run::restore(*options).into(),
        Command::Save(options) => save::run(&options).into(),
        Command::Image(command) => image::run(command).into(),
        Command::Volume(command) => volume::run(command).into(),
        Command::Network(command) => network::run(command).into(),
        Command::Doctor(options) => doctor::run(&options).into(),
        Command::Oci { words } => oci::run(&words).into(),
        Command::Completion { shell } => completion(&shell.to_string()).into(),
        Command::Version => {
            print(concat!("croft ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()).into()
        }
    }
}

/// Prints what makes a shell ask this program for completions.
fn completion(shell: &str) -> Exit {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let written = shells
        .completer(shell)
        .map(|shell| shell.write_registration("COMPLETE", "croft", "croft", "croft", &mut script));
    match written {
        Some(Ok(())) => print(&script),
        _ => {
            say::line(&format!("croft: there is no completion for {shell}"));
            Exit::Usage
        }
    }
}

/// Prints to standard output.
fn print(bytes: &[u8]) -> Exit {
    match io::Write::write_all(&mut io::stdout(), bytes) {
        Ok(()) => Exit::PowerOff,
        Err(error) => {
            say::line(&format!("croft: cannot write to standard output: {error}"));
            Exit::Failed
        }
    }
}
