//! Instruction forms that are not tested, and why.

use iced_x86::{Code, Mnemonic};

/// Why forms of these mnemonics are not tested.
const MNEMONICS: &[(&str, &[Mnemonic])] = &[
    (
        "its result is not a function of its operands",
        &[
            Mnemonic::Rdtsc,
            Mnemonic::Rdtscp,
            Mnemonic::Rdrand,
            Mnemonic::Rdseed,
            Mnemonic::Rdpmc,
        ],
    ),
    (
        "tells of the processor or kernel, which differ by intention",
        &[
            Mnemonic::Cpuid,
            Mnemonic::Xgetbv,
            Mnemonic::Rdpid,
            Mnemonic::Sgdt,
            Mnemonic::Sidt,
            Mnemonic::Sldt,
            Mnemonic::Str,
            Mnemonic::Smsw,
            Mnemonic::Lar,
            Mnemonic::Lsl,
            Mnemonic::Verr,
            Mnemonic::Verw,
        ],
    ),
    (
        "enters the host's kernel",
        &[
            Mnemonic::Syscall,
            Mnemonic::Sysenter,
            Mnemonic::Int,
            Mnemonic::Int1,
        ],
    ),
    (
        "far control transfer through the host's descriptors",
        &[
            Mnemonic::Iret,
            Mnemonic::Iretd,
            Mnemonic::Iretq,
            Mnemonic::Retf,
        ],
    ),
    (
        "loads a segment register from the host's descriptors",
        &[
            Mnemonic::Lfs,
            Mnemonic::Lgs,
            Mnemonic::Lss,
            Mnemonic::Lds,
            Mnemonic::Les,
        ],
    ),
    (
        "would take the host thread's FS base",
        &[Mnemonic::Wrfsbase],
    ),
];

/// The same for single forms.
const CODES: &[(&str, &[Code])] = &[
    (
        "far control transfer through the host's descriptors",
        &[
            Code::Call_m1616,
            Code::Call_m1632,
            Code::Call_m1664,
            Code::Jmp_m1616,
            Code::Jmp_m1632,
            Code::Jmp_m1664,
        ],
    ),
    (
        "loads a segment register from the host's descriptors",
        &[
            Code::Mov_Sreg_rm16,
            Code::Mov_Sreg_r32m16,
            Code::Mov_Sreg_r64m16,
            Code::Popw_FS,
            Code::Popw_GS,
            Code::Popq_FS,
            Code::Popq_GS,
        ],
    ),
];

/// Why `code` is not tested, if it is not.
pub fn reason(code: Code) -> Option<&'static str> {
    if !code.op_code().mode64() {
        return Some("not encodable in 64-bit mode");
    }
    if code.op_code().fwait() {
        return Some("two instructions: WAIT and one that is tested");
    }
    if !code.op_code().intel_decoder64() {
        return Some("16-bit branch that only AMD's processors have in 64-bit mode");
    }
    let by_mnemonic = MNEMONICS
        .iter()
        .find(|(_, mnemonics)| mnemonics.contains(&code.mnemonic()))
        .map(|(reason, _)| *reason);
    by_mnemonic.or_else(|| {
        CODES
            .iter()
            .find(|(_, codes)| codes.contains(&code))
            .map(|(reason, _)| *reason)
    })
}
