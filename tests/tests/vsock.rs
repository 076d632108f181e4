//! Sockets between a stock kernel and the host.

use std::io::{Read, Write};
use std::process::Stdio;

use croft_tests::sockets::{ask, connect, echoed, load, serve, shell};
use croft_tests::{END, Stage};

/// Bytes that do not repeat soon.
fn text(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(13) ^ (n >> 10)) as u8)
        .collect()
}

#[test]
fn data_goes_both_ways() {
    let stage = Stage::new();
    let socket = stage.path("run/vsock");
    let mut command = shell(&stage);
    command.arg("--vsock").arg(&socket);
    let mut machine = stage.start(command);
    load(&mut machine);
    machine.type_in("/socket-guest echo 5000 &\n");
    machine.expect("listening at 5000");

    // To the guest: much, many, and to nobody.
    echoed(&connect(&socket, 5000), &text(8 << 20));
    for _ in 0..50 {
        echoed(&connect(&socket, 5000), b"a few bytes");
    }
    let mut streams: Vec<_> = (0..100).map(|_| connect(&socket, 5000)).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&n.to_le_bytes()).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(usize::from_le_bytes(bytes), n);
    }
    drop(streams);
    assert_eq!(ask(&socket, 5001).read_to_end(&mut Vec::new()).unwrap(), 0);

    // To the host.
    serve(&stage.path("run/vsock_7000"));
    machine.type_in("/socket-guest call 7000 3 3000000\n");
    machine.expect("called 3 times");
    machine.type_in("/socket-guest call 7000 100 10\n");
    machine.expect("called 100 times");
    machine.type_in("/socket-guest many 7000 200\n");
    machine.expect("all 200 answered");
    machine.type_in("/socket-guest call 7001 1 1\n");
    machine.expect("ConnectionReset");

    // The end of the machine is the end of its connections.
    let mut stream = connect(&socket, 5000);
    std::fs::remove_file(stage.path("run/vsock_7000")).unwrap();
    machine.type_in("poweroff -f\n");
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(!ended.stdout.contains("a connection failed"), "{ended:#?}");
    assert!(!socket.exists());
}

/// Connections are not saved. The guest hears that they are gone, and makes
/// new ones.
#[test]
fn a_restored_guest_connects_again() {
    let stage = Stage::new();
    let (socket, control) = (stage.path("run/vsock"), stage.path("control"));
    let mut command = shell(&stage);
    command
        .arg("--vsock")
        .arg(&socket)
        .arg("--control")
        .arg(&control);
    let mut machine = stage.start(command);
    load(&mut machine);
    serve(&stage.path("run/vsock_7000"));
    machine.type_in("/socket-guest echo 5000 &\n");
    machine.expect("listening at 5000");
    machine.type_in("/socket-guest hold 7000 &\n");
    machine.expect("connected and waiting");
    let mut stream = connect(&socket, 5000);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    std::fs::remove_file(stage.path("run/vsock_7000")).unwrap();
    machine.close_input();
    let file = stage.path("state");
    let saved = stage.save(&control, &file);
    assert_eq!((saved.code, saved.stderr.as_str()), (Some(0), ""));
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    let ended = machine.wait_at_most(END);
    assert_eq!(ended.code, Some(6), "{ended:#?}");

    let mut command = stage.restore(&file);
    command.arg("--vsock").arg(&socket).stdin(Stdio::piped());
    let mut machine = stage.start(command);
    machine.expect("broken: ConnectionReset");
    echoed(&connect(&socket, 5000), &text(1 << 20));
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
