//! Serves files of `/proc` as containers should see them. Whoever starts the
//! first container that wants them starts it (`croft_procview::mounts`).

use std::path::Path;
use std::process::ExitCode;

use croft_procview::serve;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let (part, directory) = (words.next(), words.next());
    let part = part.as_deref().and_then(|part| part.to_str());
    let result = match (part, directory.as_deref().map(Path::new)) {
        (Some("start"), Some(directory)) => serve::start(directory),
        (Some("serve"), Some(directory)) => serve::serve(directory),
        (Some("work"), Some(directory)) => serve::work(directory),
        (Some("hold"), Some(directory)) => serve::hold(directory),
        _ => {
            eprintln!("croft-procview is started by Croft itself");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft-procview: {error}");
            ExitCode::FAILURE
        }
    }
}
