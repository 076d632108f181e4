//! A stand-in for `croft-vmm` without a machine: it does what the kernel
//! command line says. The tests of the processes run it where a guest would
//! be slow, or could not misbehave as badly.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use croft_api::channel::channel;
use croft_api::disk::disk_name;
use croft_api::hello::Protocol;
use croft_api::vmm::{Event, PROTOCOL, Request};
use croft_api::{Outcome, Receiver, Sender};

type Shared = Arc<Mutex<Sender>>;

fn main() {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .expect("a death signal");
    let socket = io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let (sender, mut receiver) = channel(socket, PROTOCOL, "croft-monitor");
    let (request, mut descriptors) = receiver
        .wait::<Request>()
        .expect("a request")
        .expect("a request");
    let Request::Start(start) = request else {
        panic!("Start comes first");
    };
    assert_eq!(descriptors.len(), start.descriptors());
    let console = descriptors.remove(0);
    let sender = Arc::new(Mutex::new(sender));
    let script = start.machine.append;
    match script.as_str() {
        "old-version" => return speak_another_version(),
        "garbage" => return speak_garbage(),
        "exit-early" => std::process::exit(7),
        _ => {}
    }
    say(
        &sender,
        &Event::Started {
            engine: "scripted".to_owned(),
            reason: "a test asked for it".to_owned(),
        },
    );
    if script != "deaf" {
        let sender = Arc::clone(&sender);
        let orderly = script == "orderly";
        thread::spawn(move || obey(receiver, &sender, orderly));
    }
    play(&script, &sender, console);
}

fn play(script: &str, sender: &Shared, console: OwnedFd) {
    let mut console = File::from(console);
    let end = |outcome| {
        say(sender, &Event::Stopped(outcome));
        std::process::exit(0);
    };
    match script {
        "echo" => {
            let mut buffer = [0; 1024];
            loop {
                let count = console.read(&mut buffer).expect("input");
                console.write_all(&buffer[..count]).expect("output");
                if buffer[..count].contains(&b'!') {
                    end(Outcome::PowerOff);
                }
            }
        }
        "flood" => loop {
            console.write_all(&[b'x'; 4096]).expect("output");
        },
        "big" => {
            for line in 0..50_000 {
                writeln!(console, "{line:09}").expect("output");
            }
            end(Outcome::PowerOff);
        }
        "refused" => {
            croft_isolate::seal(croft_isolate::Wants::default()).expect("a jail");
            let open = || drop(File::open("/etc/passwd"));
            let thread = croft_isolate::spawn(croft_isolate::Role::Disk, "disk0-0", open);
            thread.expect("a thread").join().expect("an end");
            end(Outcome::PowerOff);
        }
        "panic" => panic!("as the test asked"),
        "power-off" => end(Outcome::PowerOff),
        "reset" => end(Outcome::Reset),
        "triple-fault" => end(Outcome::TripleFault {
            report: "RIP 0000000000001000\nRSP 0000000000002000".to_owned(),
        }),
        "debug-exit" => end(Outcome::DebugExit { status: 33 }),
        "invalid" => end(Outcome::Invalid {
            message: "kernel 'x' is not one; give another".to_owned(),
        }),
        "failed" => end(Outcome::Failed {
            message: "the engine gave up".to_owned(),
        }),
        _ => loop {
            thread::sleep(Duration::from_secs(60));
        },
    }
}

/// An orderly guest powers off when its button is pressed.
fn obey(mut receiver: Receiver, sender: &Shared, orderly: bool) {
    // What was attached is open as long as it is there.
    let mut devices: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    while let Ok(Some((request, descriptors))) = receiver.wait::<Request>() {
        match request {
            Request::AttachDisk(disk) if disk.name.contains("refuse") => say(
                sender,
                &Event::AttachFailed {
                    message: format!("{} is not what it seems", disk.name),
                },
            ),
            Request::AttachDisk(disk) => {
                assert_eq!(descriptors.len(), disk.layers.len());
                let device = disk_name(disk.index.unwrap_or(devices.len() as u8));
                devices.insert(device.clone(), descriptors);
                say(sender, &Event::Attached { device });
            }
            Request::AttachNic(nic) => {
                assert_eq!(descriptors.len(), nic.backend.descriptors());
                devices.insert(nic.name.clone(), descriptors);
                say(sender, &Event::Attached { device: nic.name });
            }
            // Its guest answers no other than such a request.
            Request::Detach { device, force } if force || orderly => {
                say(
                    sender,
                    &match devices.remove(&device) {
                        Some(_) => Event::Detached { device },
                        None => Event::DetachFailed {
                            message: format!("there is no '{device}'"),
                            device,
                        },
                    },
                );
            }
            Request::Stop => {
                say(sender, &Event::Stopped(Outcome::Requested));
                std::process::exit(0);
            }
            Request::PowerButton if orderly => {
                say(sender, &Event::Stopped(Outcome::PowerOff));
                std::process::exit(0);
            }
            Request::Pause => say(sender, &Event::Paused),
            Request::Resume => say(sender, &Event::Resumed),
            Request::Save { .. } => say(
                sender,
                &Event::SaveFailed {
                    message: "a script cannot be saved".to_owned(),
                },
            ),
            Request::ResizeDisk { disk, bytes } => say(
                sender,
                &Event::DiskResized {
                    disk,
                    error: (bytes == 1024).then(|| "it does not become smaller".to_owned()),
                },
            ),
            Request::PowerButton
            | Request::Detach { .. }
            | Request::Start(_)
            | Request::ResizeConsole { .. }
            | Request::VsockConnect { .. }
            | Request::VsockAnswer { .. }
            | Request::NicBackend { .. }
            | Request::NicLimits { .. }
            | Request::NicLink { .. } => {}
        }
    }
    std::process::exit(0);
}

fn say(sender: &Shared, event: &Event) {
    sender
        .lock()
        .expect("the sender")
        .deliver(event, vec![])
        .expect("the monitor");
}

fn speak_another_version() {
    let other = Protocol {
        version: PROTOCOL.version + 1,
        ..PROTOCOL
    };
    let socket = io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let (mut sender, _receiver) = channel(socket, other, "croft-monitor");
    sender.deliver(&Event::Paused, vec![]).expect("the monitor");
    thread::sleep(Duration::from_secs(60));
}

fn speak_garbage() {
    let socket = io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    File::from(socket)
        .write_all(&[0xa5; 5000])
        .expect("the monitor");
    thread::sleep(Duration::from_secs(60));
}
