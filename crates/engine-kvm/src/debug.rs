//! Breakpoints and single steps by the processor's debug registers. (SDM vol.
//! 3, chapter 18.)

use croft_engine::{Breakpoint, DebugControl, DebugStop, EngineError};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_debug_exit_arch,
    kvm_guest_debug,
};

/// Breakpoint registers of the processor.
const REGISTERS: usize = 4;
/// DR7: exact breakpoints, and the bit that is always set.
const DR7_FIXED: u64 = 1 << 8 | 1 << 9 | 1 << 10;
/// DR6: single step.
const DR6_STEP: u64 = 1 << 14;

fn unsupported(text: impl Into<String>) -> EngineError {
    EngineError::Unsupported(text.into())
}

/// Address, and the R/W and LEN bits of DR7 (18.2.4).
fn register(breakpoint: &Breakpoint) -> Result<(u64, u64), EngineError> {
    match *breakpoint {
        Breakpoint::Code(address) => Ok((address, 0)),
        Breakpoint::Data {
            address,
            len,
            reads,
        } => {
            let len_bits = match len {
                1 => 0b00,
                2 => 0b01,
                4 => 0b11,
                8 => 0b10,
                _ => return Err(unsupported("watched data has 1, 2, 4 or 8 bytes")),
            };
            if address % u64::from(len) != 0 {
                return Err(unsupported(
                    "watched data must be aligned to its size on the kvm engine",
                ));
            }
            Ok((address, if reads { 0b11 } else { 0b01 } | len_bits << 2))
        }
    }
}

/// What KVM is told for `control`.
pub fn to_kvm(control: &DebugControl) -> Result<kvm_guest_debug, EngineError> {
    if control.breakpoints.len() > REGISTERS {
        return Err(unsupported(format!(
            "{} breakpoints asked for, the kvm engine has {REGISTERS}; remove some",
            control.breakpoints.len()
        )));
    }
    let mut debug = kvm_guest_debug::default();
    if control.single_step {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    if !control.breakpoints.is_empty() {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        let mut dr7 = DR7_FIXED;
        for (n, breakpoint) in control.breakpoints.iter().enumerate() {
            let (address, bits) = register(breakpoint)?;
            debug.arch.debugreg[n] = address;
            // Enabled globally, so that a task switch does not disable it.
            dr7 |= 2 << (2 * n) | bits << (16 + 4 * n);
        }
        debug.arch.debugreg[7] = dr7;
    }
    Ok(debug)
}

/// Why KVM stopped for the debugger.
pub fn from_kvm(exit: &kvm_debug_exit_arch, control: &DebugControl) -> DebugStop {
    let hit = control
        .breakpoints
        .iter()
        .enumerate()
        .find(|(n, _)| exit.dr6 >> n & 1 != 0);
    match hit {
        Some((_, breakpoint)) if exit.dr6 & DR6_STEP == 0 || !control.single_step => {
            DebugStop::Breakpoint(*breakpoint)
        }
        _ => DebugStop::Step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_become_debug_registers() {
        let control = DebugControl {
            single_step: false,
            breakpoints: vec![
                Breakpoint::Code(0x1000),
                Breakpoint::Data {
                    address: 0x2008,
                    len: 8,
                    reads: false,
                },
                Breakpoint::Data {
                    address: 0x3002,
                    len: 2,
                    reads: true,
                },
            ],
        };
        let debug = to_kvm(&control).unwrap();
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(debug.arch.debugreg[..3], [0x1000, 0x2008, 0x3002]);
        assert_eq!(debug.arch.debugreg[7], DR7_FIXED | 0b10_1010 | 0x790 << 16);
        let exit = kvm_debug_exit_arch {
            dr6: 0b10,
            ..Default::default()
        };
        assert_eq!(
            from_kvm(&exit, &control),
            DebugStop::Breakpoint(control.breakpoints[1])
        );
    }

    #[test]
    fn what_hardware_cannot_watch_is_refused() {
        let data = |address, len| DebugControl {
            single_step: false,
            breakpoints: vec![Breakpoint::Data {
                address,
                len,
                reads: false,
            }],
        };
        assert!(to_kvm(&data(1, 2)).is_err());
        assert!(to_kvm(&data(0, 3)).is_err());
        let five = DebugControl {
            single_step: true,
            breakpoints: vec![Breakpoint::Code(0); 5],
        };
        assert!(to_kvm(&five).is_err());
        let none = to_kvm(&DebugControl::default()).unwrap();
        assert_eq!(none.control, 0);
    }

    #[test]
    fn a_step_is_told_from_a_breakpoint() {
        let control = DebugControl {
            single_step: true,
            breakpoints: vec![Breakpoint::Code(1)],
        };
        let exit = kvm_debug_exit_arch {
            dr6: DR6_STEP,
            ..Default::default()
        };
        assert_eq!(from_kvm(&exit, &control), DebugStop::Step);
    }
}
