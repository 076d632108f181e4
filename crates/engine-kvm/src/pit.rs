//! PIT state between KVM and the seam.
//!
//! KVM starts every count anew when it is restored, so the phase of the
//! current period is lost that way.

use croft_irqchip::pit::PIT_HZ;
use croft_irqchip::{PitChannelState, PitState};
use kvm_bindings::{KVM_PIT_FLAGS_SPEAKER_DATA_ON, kvm_pit_channel_state, kvm_pit_state2};

/// KVM's mode of a channel that was never programmed.
const MODE_NONE: u8 = 0xFF;
/// Access states (`rw_mode`, `read_state`, `write_state`, `count_latched`):
/// low byte, high byte, both with the low one next, both with the high next.
const LOW: u8 = 1;
const HIGH: u8 = 2;
const WORD_LOW: u8 = 3;
const WORD_HIGH: u8 = 4;

/// The timer as the seam has it, at guest time `now_ns` and host monotonic
/// time `monotonic_ns`.
pub fn from_kvm(pit: &kvm_pit_state2, now_ns: u64, monotonic_ns: u64) -> PitState {
    PitState {
        channels: pit
            .channels
            .each_ref()
            .map(|channel| channel_from_kvm(channel, now_ns, monotonic_ns)),
        speaker: pit.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0,
        last_edge_at: None,
    }
}

fn channel_from_kvm(
    channel: &kvm_pit_channel_state,
    now_ns: u64,
    monotonic_ns: u64,
) -> PitChannelState {
    let reload = channel.count.clamp(1, 0x1_0000);
    let armed = channel.mode <= 5;
    let mode = if armed { channel.mode } else { 0 };
    let access = match channel.rw_mode {
        LOW..=WORD_LOW => channel.rw_mode,
        _ => WORD_LOW,
    };
    let since = monotonic_ns.saturating_sub(channel.count_load_time.max(0) as u64);
    let clocks = (u128::from(since) * u128::from(PIT_HZ) / 1_000_000_000) as u64;
    let counted = if armed { clocks } else { 0 };
    let periods = counted / u64::from(reload);
    PitChannelState {
        reload,
        next_reload: None,
        mode,
        bcd: channel.bcd != 0,
        gate: channel.gate != 0,
        access,
        latched: (channel.count_latched != 0).then_some(channel.latched_count),
        latched_status: (channel.status_latched != 0).then_some(channel.status),
        read_high: access == WORD_LOW
            && if channel.count_latched != 0 {
                channel.count_latched == HIGH
            } else {
                channel.read_state == WORD_HIGH
            },
        write_low: (access == WORD_LOW && channel.write_state == WORD_HIGH)
            .then_some(channel.write_latch),
        loaded_at: now_ns,
        counted,
        armed,
        triggered: armed && matches!(mode, 1 | 5) && channel.gate != 0,
        edges_seen: match mode {
            2 | 3 => periods,
            0 | 1 => periods.min(1),
            _ => u64::from(counted > u64::from(reload)),
        },
        edge_due: false,
    }
}

/// The timer as KVM has it.
pub fn to_kvm(pit: &PitState) -> kvm_pit_state2 {
    kvm_pit_state2 {
        channels: pit.channels.each_ref().map(channel_to_kvm),
        flags: if pit.speaker {
            KVM_PIT_FLAGS_SPEAKER_DATA_ON
        } else {
            0
        },
        ..Default::default()
    }
}

fn channel_to_kvm(channel: &PitChannelState) -> kvm_pit_channel_state {
    let word = channel.access == WORD_LOW;
    let state = |high: bool| match (word, high) {
        (true, true) => WORD_HIGH,
        _ => channel.access,
    };
    kvm_pit_channel_state {
        count: channel.next_reload.unwrap_or(channel.reload),
        latched_count: channel.latched.unwrap_or_default(),
        count_latched: match channel.latched {
            Some(_) if word && channel.read_high => HIGH,
            Some(_) => channel.access,
            None => 0,
        },
        status_latched: channel.latched_status.is_some().into(),
        status: channel.latched_status.unwrap_or_default(),
        read_state: state(channel.read_high && channel.latched.is_none()),
        write_state: state(channel.write_low.is_some()),
        write_latch: channel.write_low.unwrap_or_default(),
        rw_mode: channel.access,
        mode: if channel.armed {
            channel.mode
        } else {
            MODE_NONE
        },
        bcd: channel.bcd.into(),
        gate: channel.gate.into(),
        count_load_time: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_irqchip::Pit;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_kvm_shows_is_accepted(
            (count, latched_count, bytes) in any::<(u32, u16, [u8; 10])>(),
            load_time in any::<i64>(),
            (now, monotonic) in any::<(u64, u64)>(),
        ) {
            let b = bytes;
            let channel = kvm_pit_channel_state {
                count, latched_count, count_latched: b[0], status_latched: b[1], status: b[2],
                read_state: b[3], write_state: b[4], write_latch: b[5], rw_mode: b[6],
                mode: b[7], bcd: b[8], gate: b[9], count_load_time: load_time,
            };
            let kvm = kvm_pit_state2 { channels: [channel; 3], ..Default::default() };
            let mut pit = Pit::new();
            pit.restore(&from_kvm(&kvm, now, monotonic)).unwrap();
            pit.poll(now);
            pit.next_edge_ns(now);
        }
    }

    #[test]
    fn a_programmed_timer_comes_back_but_for_its_phase() {
        let mut pit = Pit::new();
        for (port, value) in [
            (0x43, 0x34),
            (0x40, 0x9C),
            (0x40, 0x2E),
            (0x61, 3),
            (0x42, 7),
        ] {
            pit.write(port, value, 0);
        }
        pit.write(0x43, 0x00, 0);
        let _ = pit.read(0x40, 0);
        let state = pit.save();
        let back = from_kvm(&to_kvm(&state), 0, 0);
        assert_eq!(back.channels[0], state.channels[0]);
        assert!(back.speaker && back.channels[2].gate);
        assert_eq!(back.channels[2].write_low, Some(7));
    }

    #[test]
    fn a_running_period_goes_on() {
        let mut kvm = to_kvm(&PitState::default());
        kvm.channels[0] = kvm_pit_channel_state {
            count: 11932,
            mode: 2,
            rw_mode: 3,
            gate: 1,
            count_load_time: 1_000_000,
            ..Default::default()
        };
        // 25 ms after the load, two and a half periods of 10 ms.
        let state = from_kvm(&kvm, 7_000_000, 26_000_000);
        let mut pit = Pit::new();
        pit.restore(&state).unwrap();
        let next = pit.next_edge_ns(7_000_000).unwrap();
        assert!(next.abs_diff(12_000_000) < 10_000, "{next}");
        assert!(!pit.poll(7_000_000).rose);
    }
}
