//! A debugger in few lines: packets out, packets in.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::registers::{from_gdb, to_gdb};
use super::*;
use crate::testing::{Act, FakeEngine};
use crate::tests::{EndWhenPanicking, Sink, config};
use crate::{Machine, MachineConfig, MachineHandle};
use croft_engine::CpuState;

struct Debugger(TcpStream);

impl Debugger {
    fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
        write!(self.0, "${text}#{sum:02x}").unwrap();
    }

    fn receive(&mut self) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        let mut inside = false;
        loop {
            self.0.read_exact(&mut byte).unwrap();
            match byte[0] {
                b'$' => inside = true,
                b'#' => break,
                other if inside => text.push(other),
                _ => {}
            }
        }
        self.0.read_exact(&mut [0; 2]).unwrap();
        self.0.write_all(b"+").unwrap();
        String::from_utf8(text).unwrap()
    }

    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.receive()
    }

    /// RIP of the current thread.
    fn rip(&mut self) -> u64 {
        let registers = expand(&self.ask("g"));
        let hex = &registers[16 * 16..17 * 16];
        u64::from_str_radix(hex, 16).unwrap().swap_bytes()
    }
}

/// Undoes the protocol's run-length encoding: `x*c` is `x` and then as many
/// more as `c` is above 29.
fn expand(text: &str) -> String {
    let mut out: Vec<u8> = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' => {
                let count = bytes.next().unwrap() - 29;
                let last = *out.last().unwrap();
                out.extend(std::iter::repeat_n(last, count.into()));
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).unwrap()
}

/// Runs a machine of two vCPUs that count, with `debug` as its debugger.
fn debug(
    expected: crate::Outcome,
    debug: impl FnOnce(Debugger, MachineHandle, Arc<AtomicU64>) + Send + 'static,
) {
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let engine = FakeEngine::new(move |cpu| {
        if cpu.index == 0 {
            counter.fetch_add(1, Ordering::SeqCst);
            if cpu.state.rip >= 0x10_1000 {
                cpu.state.rip = 0x10_0000;
            }
            Act::Next
        } else {
            Act::Halt
        }
    });
    let config = MachineConfig {
        vcpus: 2,
        ..config()
    };
    let mut machine = Machine::new(&engine, config, Arc::new(Sink::default())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    machine.set_gdb(GdbListener::Tcp(listener));
    let handle = machine.handle();
    let debugger = thread::spawn(move || {
        let _end = EndWhenPanicking(handle.clone());
        // The guest runs without a debugger.
        while count.load(Ordering::SeqCst) < 10 {
            thread::yield_now();
        }
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        debug(Debugger(stream), handle, count);
    });
    assert_eq!(machine.run(), expected);
    debugger.join().unwrap();
}

#[test]
fn connecting_stops_and_detaching_continues() {
    debug(crate::Outcome::Requested, |mut gdb, handle, count| {
        let stopped = gdb.ask("?");
        assert!(stopped.starts_with(['S', 'T']), "{stopped}");
        let before = count.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(count.load(Ordering::SeqCst), before);
        assert_eq!(gdb.ask("qfThreadInfo"), "m01,02");
        assert_eq!(gdb.ask("D"), "OK");
        while count.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        handle.stop().unwrap();
    });
}

#[test]
fn memory_is_read_and_written_by_virtual_address() {
    debug(crate::Outcome::Requested, |mut gdb, handle, _| {
        gdb.ask("?");
        // Across a page, by the mirror that the fake paging makes.
        assert_eq!(gdb.ask("M8000000000200ffe,4:01020304"), "OK");
        assert_eq!(gdb.ask("m200ffe,4"), "01020304");
        // The end of memory: a part, then nothing.
        assert_eq!(expand(&gdb.ask("mfffffe,8")).len(), 4);
        assert!(gdb.ask("m1000000,8").starts_with('E'));
        assert!(gdb.ask("M1000000,1:00").starts_with('E'));
        handle.stop().unwrap();
    });
}

#[test]
fn breakpoints_steps_and_interrupts() {
    debug(crate::Outcome::Requested, |mut gdb, handle, count| {
        gdb.ask("?");
        gdb.ask("qSupported:swbreak+;hwbreak+");
        assert_eq!(gdb.ask("Hg1"), "OK");
        for (kind, name) in [(0, "swbreak"), (1, "hwbreak")] {
            assert_eq!(gdb.ask(&format!("Z{kind},100010,1")), "OK");
            let stop = gdb.ask("vCont;c");
            assert!(stop.contains(name) && stop.contains("thread:"), "{stop}");
            assert_eq!(gdb.rip(), 0x10_0010);
            assert_eq!(gdb.ask(&format!("z{kind},100010,1")), "OK");
        }
        let before = count.load(Ordering::SeqCst);
        for step in 1..=3 {
            let stop = gdb.ask("vCont;s:1;c");
            assert!(stop.starts_with("T05"), "{stop}");
            assert_eq!(gdb.rip(), 0x10_0010 + 4 * step);
        }
        assert_eq!(count.load(Ordering::SeqCst), before + 3);
        // More than the engine has are refused, and the machine lives on.
        for index in 0..4 {
            assert_eq!(gdb.ask(&format!("Z0,20000{index},1")), "OK");
        }
        assert_ne!(gdb.ask("Z0,200009,1"), "OK");
        gdb.send("vCont;c");
        // However late its thread gets a processor.
        while count.load(Ordering::SeqCst) == before + 3 {
            thread::yield_now();
        }
        gdb.0.write_all(&[3]).unwrap();
        let stop = gdb.receive();
        assert!(stop.contains("02"), "{stop}");
        assert!(count.load(Ordering::SeqCst) > before + 3);
        handle.stop().unwrap();
    });
}

#[test]
fn killing_ends_the_machine() {
    debug(crate::Outcome::Requested, |mut gdb, _, _| {
        gdb.ask("?");
        gdb.send("k");
    });
}

#[test]
fn a_lost_debugger_leaves_the_guest_running() {
    debug(crate::Outcome::Requested, |mut gdb, handle, count| {
        gdb.ask("?");
        assert_eq!(gdb.ask("Z0,100010,1"), "OK");
        drop(gdb);
        let before = count.load(Ordering::SeqCst);
        while count.load(Ordering::SeqCst) < before + 5000 {
            thread::yield_now();
        }
        handle.stop().unwrap();
    });
}

#[test]
fn a_machine_can_end_under_its_debugger() {
    debug(crate::Outcome::Requested, |mut gdb, handle, count| {
        gdb.ask("?");
        let before = count.load(Ordering::SeqCst);
        gdb.send("vCont;c");
        while count.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        handle.stop().unwrap();
        assert!(gdb.receive().starts_with('W'));
    });
}

#[test]
fn registers_survive_the_way_there_and_back() {
    let mut state = CpuState {
        xsave: (0..832u32).map(|i| (i * 7) as u8).collect(),
        rip: 0x1234,
        rflags: 0x246,
        ..CpuState::default()
    };
    for (index, register) in state.registers.iter_mut().enumerate() {
        *register = index as u64 + 100;
    }
    let seen = to_gdb(&state);
    assert_eq!(seen.regs[1], 103, "RBX comes second");
    let mut back = state.clone();
    from_gdb(&seen, &mut back);
    assert_eq!(back, state);
    let mut changed = seen;
    changed.xmm[3] = 5;
    changed.rip = 9;
    from_gdb(&changed, &mut back);
    assert_eq!(back.rip, 9);
    assert_eq!(to_gdb(&back).xmm[3], 5);
    assert_eq!(back.xsave[512] & 3, 3);
}
