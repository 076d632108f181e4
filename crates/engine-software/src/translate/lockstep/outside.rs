//! Instructions whose effects are not a function of registers and RAM.

use iced_x86::{FlowControl, Instruction, Mnemonic};

/// Whether an instruction may only be run once: it reads the time, reaches a
/// device, or changes what lies beyond the state that lockstep puts back.
pub fn is_outside(insn: &Instruction) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        // Privileged by the manual, or by iced; all of the state put back.
        M::Cli | M::Sti | M::Clac | M::Stac | M::Swapgs | M::Cld | M::Std => false,
        M::Syscall | M::Sysretq => false,
        M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpmc
        | M::Rdrand
        | M::Rdseed
        | M::Cpuid
        | M::Pause
        | M::Hlt
        | M::Mwait
        | M::Monitor
        | M::Vmcall
        | M::Vmmcall
        | M::Sysret
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Retf
        | M::Xsetbv => true,
        _ if insn.is_call_far() || insn.is_jmp_far() => true,
        _ if insn.is_call_far_indirect() || insn.is_jmp_far_indirect() => true,
        _ => insn.is_privileged() || insn.flow_control() == FlowControl::Interrupt,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn outside(bytes: &[u8]) -> bool {
        is_outside(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn what_reaches_a_device_or_the_time_is_outside() {
        let rdmsr: &[u8] = &[0x0F, 0x32];
        let mov_cr3: &[u8] = &[0x0F, 0x22, 0xD8];
        for bytes in [
            &[0xE4, 1][..],
            &[0x0F, 0x31],
            rdmsr,
            mov_cr3,
            &[0xCC],
            &[0xF4],
        ] {
            assert!(outside(bytes), "{bytes:x?}");
        }
        let pushf: &[u8] = &[0x9C];
        for bytes in [&[0x01, 0xC0][..], &[0xFA], &[0xFB], &[0xEB, 0xFE], pushf] {
            assert!(!outside(bytes), "{bytes:x?}");
        }
    }
}
