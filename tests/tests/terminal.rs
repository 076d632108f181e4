//! The virtio console of a stock kernel, and its panics.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use croft_tests::modules;
use croft_tests::sockets::{load, shell};
use croft_tests::{PATIENCE, Stage};

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    stream
}

/// Reads until `text` has come.
fn expect(stream: &mut UnixStream, text: &str) {
    let start = Instant::now();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        assert!(start.elapsed() < PATIENCE, "{text} is not in {got:?}");
        let mut buffer = [0; 4096];
        if let Ok(count) = stream.read(&mut buffer) {
            assert!(count > 0, "the end came before {text}");
            got.extend(&buffer[..count]);
        }
    }
}

#[test]
fn a_second_terminal_has_a_shell() {
    let stage = Stage::new();
    let path = stage.path("run/terminal");
    let mut command = shell(&stage);
    command.arg("--terminal").arg(&path);
    let mut machine = stage.start(command);
    load(&mut machine);
    // The driver hears of it some time after it was loaded.
    machine.type_in(concat!(
        "setsid sh -c 'until PS1=hvc# sh </dev/hvc0 >/dev/hvc0 2>&1; ",
        "do sleep 0.1; done' 2>/dev/null &\n"
    ));
    let mut terminal = connect(&path);
    terminal.write_all(b"echo sum-$((40 + 2))\n").unwrap();
    expect(&mut terminal, "sum-42");
    // What nobody looks at is dropped, and holds nothing back.
    drop(terminal);
    machine.type_in("seq 100000 >/dev/hvc0; echo written-$((40 + 2))\n");
    machine.expect("written-42");
    let mut terminal = connect(&path);
    terminal.write_all(b"echo sum-$((50 + 2))\n").unwrap();
    expect(&mut terminal, "sum-52");
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn named_ports_carry_bytes() {
    let stage = Stage::new();
    let path = stage.path("run/port");
    let mut command = shell(&stage);
    let port = format!("org.example.data={}", path.to_str().unwrap());
    command.args(["--port", &port]);
    let mut machine = stage.start(command);
    load(&mut machine);
    let mut host = connect(&path);
    // The driver hears of its ports after it was loaded, and lets a port be
    // opened once only.
    machine.type_in(concat!(
        "cd /sys/class/virtio-ports; while ! ls | grep -q p1; do sleep 0.1; done; ",
        "p=$(ls | grep p1); cat $p/name; cat <>/dev/$p >&0 &\n"
    ));
    machine.expect("\norg.example.data");
    let text: String = (0..20_000).map(|n| format!("{n} ")).collect();
    let mut writer = host.try_clone().unwrap();
    let copy = text.clone();
    let thread = std::thread::spawn(move || writer.write_all(copy.as_bytes()).unwrap());
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = vec![0; text.len()];
    host.read_exact(&mut got).unwrap();
    assert!(got == text.as_bytes());
    thread.join().unwrap();
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn a_panic_is_told() {
    let stage = Stage::new();
    let names = ["pvpanic", "pvpanic-mmio"];
    let mut command = modules::shell(&stage, &names);
    command.arg("--no-reboot");
    let mut machine = stage.start(command);
    modules::load(&mut machine, &names);
    machine.type_in("echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger\n");
    let ended = machine.wait();
    // The guest resets itself, as it was told; croft was told not to let it.
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(ended.stderr.contains("its kernel panicked"), "{ended:#?}");
}
