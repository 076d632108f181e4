use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{INPUT_CAPACITY, OUTPUT_CAPACITY, Uart, UartNotify};
use crate::device::Device;
use crate::testing::{Recorder, hammer, port_read8, port_write8, refuses_newer, round_trip};

const BASE: u16 = 0x3F8;

#[derive(Default)]
struct Counter {
    output: AtomicUsize,
    room: AtomicUsize,
}

impl UartNotify for Counter {
    fn output_ready(&self) {
        self.output.fetch_add(1, Ordering::Relaxed);
    }

    fn input_room(&self) {
        self.room.fetch_add(1, Ordering::Relaxed);
    }
}

fn uart() -> (Uart, Arc<Recorder>, Arc<Counter>) {
    let recorder = Recorder::new();
    let counter = Arc::new(Counter::default());
    let uart = Uart::new(BASE, recorder.line(4), counter.clone());
    (uart, recorder, counter)
}

fn r(uart: &mut Uart, register: u16) -> u8 {
    port_read8(uart, BASE + register)
}

fn w(uart: &mut Uart, register: u16, value: u8) {
    port_write8(uart, BASE + register, value);
}

/// The probing steps of Linux's 8250 driver in their order.
#[test]
fn probes_as_16550a() {
    let (mut uart, ..) = uart();
    w(&mut uart, 1, 0);
    assert_eq!(r(&mut uart, 1), 0);
    w(&mut uart, 1, 0xFF);
    assert_eq!(r(&mut uart, 1), 0x0F);
    w(&mut uart, 1, 0);
    // Loopback: OUT2 and RTS come back as DCD and CTS.
    w(&mut uart, 4, 0x1A);
    assert_eq!(r(&mut uart, 6) & 0xF0, 0x90);
    w(&mut uart, 4, 0);
    // FIFOs, and none of the larger siblings'.
    w(&mut uart, 2, 0x01);
    assert_eq!(r(&mut uart, 2) & 0xC0, 0xC0);
    w(&mut uart, 3, 0x80);
    w(&mut uart, 2, 0x21);
    assert_eq!(r(&mut uart, 2) >> 5, 6);
    w(&mut uart, 3, 0);
    w(&mut uart, 7, 0xA5);
    assert_eq!(r(&mut uart, 7), 0xA5);
    // Enabling the transmit interrupt raises it, each time.
    for _ in 0..2 {
        w(&mut uart, 1, 2);
        assert_eq!(r(&mut uart, 2), 0xC2);
        assert_eq!(r(&mut uart, 2), 0xC1);
        w(&mut uart, 1, 0);
    }
}

#[test]
fn transmit_interrupt_makes_an_edge_for_each_byte() {
    let (mut uart, recorder, _) = uart();
    w(&mut uart, 4, 0x0B);
    w(&mut uart, 1, 2);
    assert_eq!(recorder.take_lines(), [(4, true)]);
    for _ in 0..3 {
        assert_eq!(r(&mut uart, 2), 0x02);
        assert_eq!(recorder.take_lines(), [(4, false)]);
        w(&mut uart, 0, b'x');
        assert_eq!(recorder.take_lines(), [(4, true)]);
    }
}

#[test]
fn interrupt_needs_out2() {
    let (mut uart, recorder, _) = uart();
    w(&mut uart, 1, 2);
    assert!(recorder.take_lines().is_empty());
    w(&mut uart, 4, 8);
    assert_eq!(recorder.take_lines(), [(4, true)]);
}

#[test]
fn full_output_holds_the_guest_and_loses_nothing() {
    let (mut uart, recorder, counter) = uart();
    let handle = uart.handle();
    w(&mut uart, 4, 8);
    let mut sent = 0;
    while r(&mut uart, 5) & 0x20 != 0 {
        for _ in 0..16 {
            w(&mut uart, 0, sent as u8);
            sent += 1;
        }
    }
    assert!(sent <= OUTPUT_CAPACITY);
    assert_eq!(counter.output.load(Ordering::Relaxed), 1);
    w(&mut uart, 1, 2);
    assert!(recorder.take_lines().is_empty());
    let mut out = Vec::new();
    handle.take_output(&mut out);
    assert_eq!(recorder.take_lines(), [(4, true)]);
    assert_eq!(out.len(), sent);
    assert!(out.iter().enumerate().all(|(i, b)| i as u8 == *b));
    assert_eq!(r(&mut uart, 5) & 0x60, 0x60);
}

#[test]
fn input_waits_until_somebody_listens() {
    let (mut uart, recorder, counter) = uart();
    let handle = uart.handle();
    let text: Vec<u8> = (0..=255u8).cycle().take(INPUT_CAPACITY + 5).collect();
    assert_eq!(handle.push_input(&text), INPUT_CAPACITY);
    // A driver opens the port: it clears the FIFOs and empties the receiver.
    w(&mut uart, 2, 0x07);
    assert_eq!(r(&mut uart, 5) & 1, 0);
    r(&mut uart, 0);
    assert!(recorder.take_lines().is_empty());
    w(&mut uart, 2, 0x81);
    w(&mut uart, 4, 0x0B);
    w(&mut uart, 1, 1);
    assert_eq!(recorder.take_lines(), [(4, true)]);
    assert_eq!(r(&mut uart, 2), 0xC4);
    let mut got = Vec::new();
    while r(&mut uart, 5) & 1 != 0 {
        got.push(r(&mut uart, 0));
    }
    assert_eq!(got, text[..INPUT_CAPACITY]);
    assert_eq!(recorder.take_lines(), [(4, false)]);
    assert_eq!(counter.room.load(Ordering::Relaxed), 1);
    // Below the trigger level the time-out tells.
    assert_eq!(handle.push_input(b"ab"), 2);
    assert_eq!(r(&mut uart, 2), 0xCC);
}

#[test]
fn polling_guest_gets_input_without_interrupts() {
    let (mut uart, ..) = uart();
    uart.handle().push_input(b"k");
    let seen = (0..20).any(|_| r(&mut uart, 5) & 1 != 0);
    assert!(seen);
    assert_eq!(r(&mut uart, 0), b'k');
}

#[test]
fn loopback_and_break() {
    let (mut uart, ..) = uart();
    let handle = uart.handle();
    w(&mut uart, 2, 1);
    w(&mut uart, 4, 0x10);
    handle.push_input(b"z");
    for byte in 0..17 {
        w(&mut uart, 0, byte);
    }
    assert_eq!(r(&mut uart, 5) & 3, 3);
    for byte in 0..16 {
        assert_eq!(r(&mut uart, 0), byte);
    }
    assert_eq!(r(&mut uart, 5) & 3, 0);
    let mut out = Vec::new();
    handle.take_output(&mut out);
    assert!(out.is_empty());
    w(&mut uart, 4, 0);
    w(&mut uart, 1, 5);
    assert_eq!(r(&mut uart, 0), b'z');
    assert!(handle.push_break());
    assert_eq!(r(&mut uart, 2) & 0xF, 6);
    assert_eq!(r(&mut uart, 5) & 0x91, 0x91);
    assert_eq!(r(&mut uart, 5) & 0x91, 0x01);
    assert_eq!(r(&mut uart, 0), 0);
}

#[test]
fn paused_takes_nothing_and_drives_nothing() {
    let (mut uart, recorder, counter) = uart();
    w(&mut uart, 4, 8);
    w(&mut uart, 1, 1);
    uart.pause();
    assert_eq!(uart.handle().push_input(b"x"), 0);
    assert!(recorder.take_lines().is_empty());
    uart.resume();
    assert_eq!(counter.room.load(Ordering::Relaxed), 1);
    assert_eq!(uart.handle().push_input(b"x"), 1);
    assert_eq!(recorder.take_lines(), [(4, true)]);
}

#[test]
fn state_round_trip() {
    let (mut one, ..) = uart();
    w(&mut one, 1, 0x0F);
    w(&mut one, 2, 0xC1);
    w(&mut one, 4, 0x0B);
    one.handle().push_input(b"hello");
    r(&mut one, 5);
    w(&mut one, 0, b'o');
    let (mut two, recorder, counter) = uart();
    round_trip(&mut one, &mut two);
    assert_eq!(recorder.take_lines(), [(4, true)]);
    assert_eq!(counter.output.load(Ordering::Relaxed), 1);
    refuses_newer(&mut two);
}

#[test]
fn any_access_is_harmless() {
    hammer(20_000, || {
        let (uart, ..) = uart();
        uart.handle().push_input(&[7; 40]);
        uart
    });
}
