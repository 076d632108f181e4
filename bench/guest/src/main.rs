//! The program that the benchmarks run: natively, and as the only one in a
//! guest. Built static by `scripts/bench/build-guest`.
//!
//! As a process: `croft-bench-guest DIRECTORY [NAME]` measures every line, or
//! those with NAME in their names; files go to DIRECTORY, which should be on
//! a tmpfs. As a guest's init it does what the word `bench=` of the kernel's
//! command line says:
//!
//! * `bench=lines`: the same, on a tmpfs of its own; `only=NAME` is the name;
//! * `bench=wait`: says that it is up, and sleeps.
//!
//! It prints
//!
//! ```text
//! bench-begin
//! bench NAME VALUE UNIT CHECKSUM     a line for each
//! bench-end NANOSECONDS              by this machine's own clock
//! ```
//!
//! Work is fixed, so that every machine does the same; how often it is done
//! depends on the time it takes. The checksum is the work's result, the same
//! on every machine.

mod compute;
mod faults;
mod files;
mod float;
mod lines;
mod measure;
mod memory;
mod processes;

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::process::getpid;
use rustix::system::{RebootCommand, reboot};

/// What a guest's init prints first.
const UP: &str = "guest: init";

fn main() -> ExitCode {
    if getpid().is_init() {
        println!("{UP}");
        if let Err(error) = init() {
            println!("bench-failed {error}");
        }
        let _ = reboot(RebootCommand::PowerOff);
        return ExitCode::FAILURE;
    }
    let mut arguments = env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(processes::CHILD) {
        return ExitCode::SUCCESS;
    }
    let Some(directory) = first else {
        eprintln!("usage: croft-bench-guest DIRECTORY [NAME]");
        return ExitCode::FAILURE;
    };
    let only = arguments.next().unwrap_or_default();
    match run(Path::new(&directory), &only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft-bench-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the kernel's command line asks for: words that the kernel does not
/// know are variables of its init.
fn init() -> io::Result<()> {
    match env::var("bench").as_deref() {
        Ok("lines") => {
            // The program itself is found through /proc.
            for (kind, place) in [("proc", "/proc"), ("tmpfs", "/tmp")] {
                fs::create_dir_all(place)?;
                mount(kind, place, kind, MountFlags::empty(), None)?;
            }
            run(Path::new("/tmp"), &env::var("only").unwrap_or_default())
        }
        Ok("wait") => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        _ => Err(io::Error::other("no bench=lines and no bench=wait")),
    }
}

/// Measures and prints.
fn run(directory: &Path, only: &str) -> io::Result<()> {
    processes::stay_on_one_processor()?;
    let start = Instant::now();
    println!("bench-begin");
    for line in lines::all() {
        if !line.name.contains(only) {
            continue;
        }
        let result = measure::measure(&line, directory)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", line.name)))?;
        println!(
            "bench {} {:.4} {} {:016x}",
            line.name, result.nanoseconds, line.unit, result.checksum
        );
    }
    println!("bench-end {}", start.elapsed().as_nanos());
    Ok(())
}
