//! What a tap does not show to pasta: as [`martian`](crate::martian), for
//! frames that no process of Croft's sees.
//!
//! Who may send frames as they are (CAP_NET_RAW) could address the loopback
//! interface in one, and pasta of 2023 would connect to the host's. A program
//! of eBPF's, which belongs to the interface and not to whoever opens it, drops
//! them. Only root loads such programs on most hosts
//! (`kernel.unprivileged_bpf_disabled`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

/// Where fields are in a frame: behind the Ethernet header (IEEE 802.3) the
/// destination of IPv4 (RFC 791, 3.1) and of IPv6 (RFC 8200, 3).
const TYPE: u32 = 12;
const TO_4: u32 = 14 + 16;
const TO_6: u32 = 14 + 24;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86DD;

/// An instruction (`struct bpf_insn`, linux/bpf.h).
const fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
    let [a, b] = offset.to_le_bytes();
    let [c, d, e, f] = immediate.to_le_bytes();
    u64::from_le_bytes([code, registers, a, b, c, d, e, f])
}

/// R0 is that field of the frame; one that ends before it is dropped.
const fn byte(at: u32) -> u64 {
    instruction(0x30, 0, 0, at)
}
const fn half(at: u32) -> u64 {
    instruction(0x28, 0, 0, at)
}
const fn word(at: u32) -> u64 {
    instruction(0x20, 0, 0, at)
}
/// Goes on so many instructions later if R0 is that, or is not.
const fn if_is(value: u32, skip: i16) -> u64 {
    instruction(0x15, 0, skip, value)
}
const fn if_not(value: u32, skip: i16) -> u64 {
    instruction(0x55, 0, skip, value)
}
const fn skip(count: i16) -> u64 {
    instruction(0x05, 0, count, 0)
}
const EXIT: u64 = instruction(0x95, 0, 0, 0);

/// Says how many bytes of a frame pass: all or none.
const PROGRAM: [u64; 20] = [
    // R6 = the frame, for the loads.
    instruction(0xBF, 0x16, 0, 0),
    half(TYPE),
    if_is(IPV4, 2),
    if_is(IPV6, 5),
    skip(11),
    // 127.0.0.0/8 and 0.0.0.0/8.
    byte(TO_4),
    if_is(127, 11),
    if_is(0, 10),
    skip(7),
    // `::`, `::1` and all else of ::/96, and of ::ffff:0:0/96.
    word(TO_6),
    if_not(0, 5),
    word(TO_6 + 4),
    if_not(0, 3),
    word(TO_6 + 8),
    if_is(0, 3),
    if_is(0xFFFF, 2),
    // R0 = its length.
    instruction(0x61, 0x60, 0, 0),
    EXIT,
    // R0 = 0.
    instruction(0xB7, 0, 0, 0),
    EXIT,
];

/// Has the interface of `tap` drop them.
pub fn guard(tap: BorrowedFd<'_>) -> io::Result<()> {
    let program = sys::load_filter(&PROGRAM)?;
    sys::set_filter(tap, program.as_fd())
}
