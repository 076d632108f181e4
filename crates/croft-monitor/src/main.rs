//! `croft-monitor`: see the library of the name.

fn main() -> std::process::ExitCode {
    croft_monitor::main()
}
